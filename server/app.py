"""The composition root: routes and middleware around one process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, WebSocketRoute
from starlette.websockets import WebSocket

from server.api import (
    accounts,
    adjustments,
    demo,
    description,
    grants,
    health,
    heartbeats,
    holds,
    organizations,
    pages,
    preparations,
    reports,
    sessions,
    spends,
    statistics,
    time_tracking,
    usage,
)
from server.connection import Connection
from server.heartbeats import Heartbeats
from server.http import Observed, Problem, bearer_of
from server.idempotency import KEY_HEADER, REPLAYED_HEADER, forget_old_keys
from server.months import Months
from server.process import Process
from server.tracking import Trackers
from storage.usage import Usage

PREFLIGHT_KEPT_S = 600


async def socket(websocket: WebSocket) -> None:
    """``GET /v1/ws``: PROTOCOL section 1."""
    process: Process = websocket.app.state.process
    if not _same_site(websocket, process.settings.origins):
        await websocket.send_denial_response(
            Problem(403, "forbidden", "pages of this origin may not connect").response()
        )
        return
    address = websocket.client.host if websocket.client else ""
    wait_ms = process.failures.wait_ms(address)
    if wait_ms:
        refusal = Problem(
            429,
            "rate_limited",
            "too many requests without a good token from this address",
            retry_after_s=-(-wait_ms // 1000),
        )
        await websocket.send_denial_response(refusal.response())
        return
    if process.draining or not process.sockets.admit(address):
        await websocket.send_denial_response(
            Problem(503, "unavailable", "no more sockets now").response()
        )
        return
    try:
        await Connection(process, websocket, address).run(bearer_of(websocket.headers))
    finally:
        process.sockets.dismiss(address)


def _same_site(websocket: WebSocket, origins: tuple[str, ...]) -> bool:
    """RFC 6455 section 10.2: a browser says which origin a page is of; a page of any site
    could open a socket here otherwise. What is no browser sends no origin."""
    origin = websocket.headers.get("origin")
    if origin is None or "*" in origins or origin in origins:
        return True
    try:
        return urlsplit(origin).netloc == websocket.headers.get("host")
    except ValueError:
        return False  # no origin that a browser would send


async def failed(request: Request, error: Exception) -> Response:
    """What the router refuses, as a problem document."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_message")
    response = Problem(error.status_code, code, error.detail).response()
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        # RFC 9110 section 15.5.6: Allow lists what the resource supports, and a resource
        # may have a route for each method.
        methods = {
            method
            for route in request.app.routes
            if route.matches(request.scope)[0] is not Match.NONE
            for method in getattr(route, "methods", None) or ()
        }
        response.headers["Allow"] = ", ".join(sorted(methods))
    return response


def _middleware(process: Process) -> list[Middleware]:
    """What stands around the routes: pages of other origins first, if there are any."""
    around = [Middleware(Observed, metrics=process.metrics)]
    if process.settings.origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=process.settings.origins,
            allow_methods=("GET", "HEAD", "POST", "PUT"),
            # Tokens travel in a header, so no cookie is ever let through.
            allow_headers=("Authorization", "Content-Type", KEY_HEADER),
            expose_headers=(REPLAYED_HEADER, "Retry-After"),
            max_age=PREFLIGHT_KEPT_S,
        )
        around.insert(0, cors)
    return around


def create_app(process: Process, routes: list[BaseRoute] | None = None) -> Starlette:
    """The ASGI application of a process, which it starts and stops."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await process.start()
        forgetting = asyncio.create_task(forget_old_keys(process.records, process.clock))
        try:
            yield
        finally:
            forgetting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await forgetting
            await process.stop()

    all_routes: list[BaseRoute] = [
        WebSocketRoute("/v1/ws", socket),
        *health.ROUTES,
        *description.ROUTES,
        *sessions.ROUTES,
        *preparations.ROUTES,
        *heartbeats.ROUTES,
        *accounts.ROUTES,
        *grants.ROUTES,
        *spends.ROUTES,
        *holds.ROUTES,
        *organizations.ROUTES,
        *adjustments.ROUTES,
        *usage.ROUTES,
        *statistics.ROUTES,
        *time_tracking.ROUTES,
        *reports.ROUTES,
        *(routes or []),
    ]
    if process.settings.is_development:
        all_routes += demo.ROUTES
    all_routes += pages.ROUTES
    app = Starlette(
        routes=all_routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: failed},
        middleware=_middleware(process),
    )
    app.state.process = process
    app.state.heartbeats = Heartbeats(process)
    process.at_drain.append(app.state.heartbeats.drain)
    app.state.usage = Usage.over(process.records)
    app.state.months = Months(process)
    app.state.trackers = Trackers(process, app.state.usage, app.state.months)
    app.state.reports = 0
    return app
