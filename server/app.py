"""The composition root: routes and middleware around one process."""

import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from server.api import demo, health, pages
from server.connection import Connection
from server.http import Problem, bearer_of, problem_of
from server.process import Process


async def socket(websocket: WebSocket) -> None:
    """``GET /v1/ws``: PROTOCOL section 1."""
    process: Process = websocket.app.state.process
    if not _same_site(websocket, process.settings.origins):
        await websocket.send_denial_response(
            Problem(403, "forbidden", "pages of this origin may not connect").response()
        )
        return
    address = websocket.client.host if websocket.client else ""
    if process.draining or not process.sockets.admit(address):
        await websocket.send_denial_response(
            Problem(503, "unavailable", "no more sockets now").response()
        )
        return
    try:
        await Connection(process, websocket).run(bearer_of(websocket.headers))
    finally:
        process.sockets.dismiss(address)


def _same_site(websocket: WebSocket, origins: tuple[str, ...]) -> bool:
    """RFC 6455 section 10.2: a browser says which origin a page is of; a page of any site
    could open a socket here otherwise. What is no browser sends no origin."""
    origin = websocket.headers.get("origin")
    if origin is None or "*" in origins or origin in origins:
        return True
    return urlsplit(origin).netloc == websocket.headers.get("host")


async def failed(_: Request, error: Exception) -> Response:
    """Any exception as a problem document."""
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_message")
        return Problem(error.status_code, code, error.detail).response()
    return problem_of(error).response()


def create_app(process: Process, routes: list[BaseRoute] | None = None) -> Starlette:
    """The ASGI application of a process, which it starts and stops."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await process.start()
        try:
            yield
        finally:
            await process.stop()

    all_routes: list[BaseRoute] = [
        WebSocketRoute("/v1/ws", socket),
        *health.ROUTES,
        *(routes or []),
    ]
    if process.settings.is_development:
        all_routes += demo.ROUTES
    all_routes += pages.ROUTES
    app = Starlette(
        routes=all_routes,
        lifespan=lifespan,
        exception_handlers={Exception: failed, HTTPException: failed},
    )
    app.state.process = process
    return app
