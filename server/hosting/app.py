"""The composition root: routes and middleware around one process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from server import limits as server_limits
from server.api import (
    accounts,
    adjustments,
    call_list,
    call_reports,
    calls,
    demo,
    description,
    estimates,
    grants,
    health,
    heartbeats,
    holds,
    live_sessions,
    operator_sessions,
    operators_log,
    organizations,
    pages,
    preparations,
    reports,
    session_list,
    sessions,
    spends,
    statistics,
    streams,
    study_sessions,
    time_tracking,
    usage,
)
from server.calls.providers import CallProviders
from server.calls.service import Calls
from server.calls.study import StudySessions
from server.gateway.connection import SUBPROTOCOL, Connection
from server.gateway.heartbeats import Heartbeats
from server.gateway.streams import Streams
from server.http.idempotency import KEY_HEADER, REPLAYED_HEADER, forget_old_keys
from server.http.middleware import RequestObserver
from server.http.problems import Problem
from server.http.requests import bearer_of
from server.http.routes import gated
from server.ops.feed import Feed
from server.ops.log import OperatorsLog
from server.ops.sign_in import SignIn
from server.process import Process
from server.runtime.origins import Origins, reached
from server.transport.connection_limiter import PEER
from server.transport.push import EXTENSION, PushSocket
from server.transport.websocket_protocol import forget_handshake
from server.usage.months import Months
from server.usage.reported_minutes import ReportedMinutes
from storage.postgres.usage import Usage
from storage.tasks import end

SOCKET_PATH = "/v1/ws"


class Application(Starlette):
    """Starlette, whose layers WebSockets bypass.

    Starlette's middlewares and router are coroutines that wait as long as a WebSocket lives. They
    take 5 KB for each, and a WebSocket needs none of them.
    """

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Serves a request or a socket (the interface of ASGI)."""
        if scope["type"] == "websocket":
            if scope["path"] == SOCKET_PATH:
                return socket(self.state.process, scope, receive, send)
            # The router would answer 403 without a document.
            missing = Problem(404, "not_found", "there is no socket of this path").response()
            return WebSocket(scope, receive, send).send_denial_response(missing)
        return super().__call__(scope, receive, send)


async def socket(process: Process, scope: Scope, receive: Receive, send: Send) -> None:
    """Serves ``GET /v1/ws``: PROTOCOL section 1.

    A local variable of this coroutine lives as long as the socket.
    """
    address = scope["client"][0] if scope["client"] else ""
    if not await _admitted(process, WebSocket(scope, receive, send), address):
        return
    try:
        push_socket, bearer = await _opened(WebSocket(scope, receive, send))
        await Connection(process, push_socket, receive, address).run(bearer)
    finally:
        process.sockets.dismiss(address)


async def _admitted(process: Process, websocket: WebSocket, address: str) -> bool:
    """Admits and counts the socket, or refuses it; returns which.

    A refused socket gets the reason.
    """
    if not _may_connect(process, websocket):
        await websocket.send_denial_response(
            Problem(403, "forbidden", "pages of this origin may not connect").response()
        )
        return False
    if process.draining or not process.sockets.admit(address):
        await websocket.send_denial_response(
            Problem(503, "unavailable", "no more sockets now").response()
        )
        return False
    return True


async def _opened(websocket: WebSocket) -> tuple[PushSocket, str | None]:
    """Accepts the socket; returns its push path and the handshake's token."""
    push_socket: PushSocket = websocket.scope["extensions"][EXTENSION]
    bearer = bearer_of(websocket.headers)
    offered = websocket.scope.get("subprotocols") or []
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    forget_handshake(websocket.scope)
    return push_socket, bearer


def _may_connect(process: Process, websocket: WebSocket) -> bool:
    """Whether the page that opens the socket may do so.

    RFC 6455 section 10.2: a browser says which origin a page is of; without this check any page
    could open a socket here. A client other than a browser sends no origin.
    """
    told, headers = websocket.headers.getlist("origin"), websocket.headers
    if not told:
        return True
    scope = websocket.scope
    peer = scope["extensions"].get(PEER, "")
    server = scope.get("server")
    own = reached(
        headers,
        scope["scheme"],
        server[1] if server else None,
        proxied=process.limiter.trusts(peer),
    )
    if len(told) == 1 and (process.origins.lists(told[0]) or own.is_own(told[0])):
        return True
    process.origins.refused(told[0], own.hosts[-1] if own.hosts else "")
    return False


class Pages(CORSMiddleware):
    """Lets listed pages of other origins make HTTP requests."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        super().__init__(
            app,
            allow_origins=tuple(origins.entries),
            allow_methods=("GET", "HEAD", "POST", "PUT"),
            # Tokens travel in a header, so cookies are never allowed.
            allow_headers=("Authorization", "Content-Type", KEY_HEADER),
            expose_headers=(REPLAYED_HEADER, "Retry-After"),
            max_age=server_limits.PREFLIGHT_KEPT_S,
        )
        self.origins = origins

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether a page of ``origin`` may make requests."""
        return self.origins.lists(origin)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser's preflight request."""
        origin = request_headers["origin"]
        if not self.origins.lists(origin):
            self.origins.refused(origin, request_headers.get("host", ""))
        return super().preflight_response(request_headers)


async def failed(request: Request, error: Exception) -> Response:
    """The router's refusals, as problem documents."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _no_such_path(request).response()
    code, detail, headers = "bad_message", error.detail, dict(error.headers or {})
    if error.status_code == 405:
        # RFC 9110 section 15.5.6: Allow lists what the resource supports, and a resource
        # may have a route for each method.
        methods = {
            method
            for route in request.app.routes
            if route.matches(request.scope)[0] is not Match.NONE
            for method in getattr(route, "methods", None) or ()
        }
        headers["Allow"] = ", ".join(sorted(methods))
        code, detail = "method_not_allowed", f"the methods of this path are {headers['Allow']}"
    response = Problem(error.status_code, code, detail).response()
    response.headers.update(headers)
    return response


def _no_such_path(request: Request) -> Problem:
    path = request.url.path
    hint = ": leave out the slash at its end" if path.endswith("/") else ""
    return Problem(404, "not_found", f"there is no such path{hint}")


def _middleware(process: Process) -> list[Middleware]:
    """The middleware around the routes.

    That for other origins is outermost, if there are any.
    """
    around = [Middleware(RequestObserver, metrics=process.metrics)]
    if process.settings.origins:
        around.insert(0, Middleware(Pages, process.origins))
    return around


def create_app(process: Process, routes: list[BaseRoute] | None = None) -> Starlette:
    """The ASGI application of a process, which it starts and stops.

    Raises ``UndeclaredRouteError`` for a route that does not say who may call it.
    """
    providers = CallProviders(process.settings, process.clock.now)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await process.start()
        forgetting = asyncio.create_task(forget_old_keys(process.records, process.clock))
        app.state.calls.start()
        await app.state.feed.start()
        try:
            yield
        finally:
            await app.state.feed.stop()
            await app.state.calls.stop()
            await end([forgetting])
            providers.close()
            await process.stop()

    app = Application(
        routes=gated(_routes(process, routes or [])),
        lifespan=lifespan,
        exception_handlers={HTTPException: failed},
        middleware=_middleware(process),
    )
    # A redirect would lead to the host that the request named, and to plain http.
    app.router.redirect_slashes = False
    app.state.process = process
    _add_operators(app, process)
    description.build(app)
    app.state.heartbeats = Heartbeats(process)
    app.state.streams = Streams(process)
    process.at_drain.append(app.state.heartbeats.drain)
    _add_usage(app, process, providers)
    return app


def _routes(process: Process, more: list[BaseRoute]) -> list[BaseRoute]:
    """Every route; those of the page come last."""
    routes: list[BaseRoute] = [
        *health.ROUTES,
        *description.ROUTES,
        *session_list.ROUTES,
        *sessions.ROUTES,
        *preparations.ROUTES,
        *heartbeats.ROUTES,
        *streams.ROUTES,
        *accounts.ROUTES,
        *estimates.ROUTES,
        *grants.ROUTES,
        *spends.ROUTES,
        *holds.ROUTES,
        *organizations.ROUTES,
        *adjustments.ROUTES,
        *usage.ROUTES,
        *statistics.ROUTES,
        *time_tracking.ROUTES,
        *study_sessions.ROUTES,
        *reports.ROUTES,
        *calls.ROUTES,
        *call_list.ROUTES,
        *call_reports.ROUTES,
        *operator_sessions.ROUTES,
        *operators_log.ROUTES,
        *live_sessions.ROUTES,
        *more,
    ]
    if process.settings.is_development:
        routes += demo.ROUTES
    return [*routes, *pages.ROUTES]


def _add_operators(app: Starlette, process: Process) -> None:
    """Adds what operators need: their sessions, their log, and the feed."""
    app.state.sign_in = SignIn(process)
    app.state.operators_log = OperatorsLog(app.state.sign_in.records, process.wall_ms)
    app.state.feed = Feed(process)


def _add_usage(app: Starlette, process: Process, providers: CallProviders) -> None:
    """Adds what counts minutes and calls."""
    app.state.usage = Usage.over(process.records)
    app.state.months = Months(process)
    app.state.reported_minutes = ReportedMinutes(process, app.state.usage, app.state.months)
    app.state.reports = 0
    app.state.calls = Calls(process, providers.adapters)
    app.state.studies = StudySessions(app.state.calls)
