"""A Taximeter server whose messages the test scripts.

It serves the page and the client as the real server does, under the same paths and with the
strictest content security policy that they must work with, and accepts WebSockets at ``/v1/ws``.
Each connection is a :class:`BrowserSocket`, through which the test speaks::

    line = await server.line()
    await line.welcome()
    start = await line.receive("start")
    await line.send(type="session", id=start["id"], **snapshot())

The server answers nothing by itself and does not wait for time to pass. The waits below only bound
the time after which a test fails.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

Message = dict[str, Any]

PATIENCE_S = 20
"""Longest wait for an expected message. It decides nothing while tests pass."""

SERVER_TIME_AT = 1_795_000_000_000

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "/pages/": "server/pages",
    "/client/": "protocol/browser",
    "/tests/": "tests/browser/pages",
}
CONTENT_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class BrowserSocket:
    """One WebSocket of a browser."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._received: asyncio.Queue[Message | None] = asyncio.Queue()
        self.path = "" if connection.request is None else connection.request.path
        self.subprotocol = connection.subprotocol

    async def read(self) -> None:
        """Keeps the browser's messages for the test, until the browser is gone."""
        try:
            async for text in self._connection:
                self._received.put_nowait(json.loads(text))
        except ConnectionClosed:
            pass
        self._received.put_nowait(None)

    async def receive(self, expected: str) -> Message:
        """The next message of the browser; its type must be ``expected``."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self._received.get()
        assert message is not None, f"the browser hung up instead of sending {expected!r}"
        assert message["type"] == expected, message
        return message

    async def receive_close(self) -> int | None:
        """Waits for the connection's end; returns the close code.

        No other message may arrive before.
        """
        async with asyncio.timeout(PATIENCE_S):
            message = await self._received.get()
        assert message is None, message
        return self._connection.close_code

    async def send(self, **message: Any) -> None:
        await self._connection.send(json.dumps(message))

    async def answer(self, request: Message, **message: Any) -> None:
        """Sends a message that echoes the ``id`` of ``request``."""
        await self.send(id=request["id"], **message)

    async def welcome(self, **changes: Any) -> Message:
        """Takes ``auth`` and answers it; returns the ``auth`` message."""
        auth = await self.receive("auth")
        await self.answer(auth, **welcome(**changes))
        return auth

    async def join(self, **changes: Any) -> Message:
        """Takes ``start`` and answers it with a snapshot; returns the ``start`` message."""
        start = await self.receive("start")
        await self.answer(start, **snapshot(session_id=start["session_id"], **changes))
        return start

    async def join_again(self, **changes: Any) -> Message:
        """Answers the request of a further tab, and returns it."""
        watch = await self.receive("watch")
        await self.answer(watch, **snapshot(session_id=watch["session_id"], **changes))
        return watch

    @property
    def is_open(self) -> bool:
        return self._connection.close_code is None

    async def close(self, code: int, reason: str = "") -> None:
        await self._connection.close(code, reason)

    def cut(self) -> None:
        """Drops the connection without a close, which the browser reads as 1006."""
        self._connection.transport.abort()


class MockServer:
    """The server: its address, and its connections in order."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[BrowserSocket] = asyncio.Queue()
        self._server: Server | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The address, which stays the same after the server has closed."""
        if not self._url:
            assert self._server is not None
            port = next(iter(self._server.sockets)).getsockname()[1]
            self._url = f"http://127.0.0.1:{port}"
        return self._url

    async def line(self) -> BrowserSocket:
        """The next connection."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._lines.get()

    def has_new_line(self) -> bool:
        return not self._lines.empty()

    async def handle(self, connection: ServerConnection) -> None:
        line = BrowserSocket(connection)
        self._lines.put_nowait(line)
        await line.read()

    def respond(self, _: ServerConnection, request: Request) -> Response | None:
        """Serves the files; None lets the WebSocket's handshake continue."""
        path = request.path.partition("?")[0]
        if path == "/v1/ws":
            return None
        if path == "/blank":
            return _response(HTTPStatus.OK, "text/html", b"<!doctype html><title>Blank</title>")
        folder, _slash, name = path.rpartition("/")
        file = ROOT / FOLDERS.get(f"{folder}/", "server/pages") / (name or "index.html")
        if file.suffix not in CONTENT_TYPES or not file.is_file():
            return _response(HTTPStatus.NOT_FOUND, "text/plain", b"Not found")
        return _response(HTTPStatus.OK, CONTENT_TYPES[file.suffix], file.read_bytes())


def _response(status: HTTPStatus, content_type: str, body: bytes) -> Response:
    headers = Headers(
        {
            "Content-Type": f"{content_type}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": SECURITY_POLICY,
            "Cache-Control": "no-store",
            "Connection": "close",
        }
    )
    return Response(status.value, status.phrase, headers, body)


@asynccontextmanager
async def running_server() -> AsyncIterator[MockServer]:
    """A mock server on its own port."""
    mock = MockServer()
    async with serve(
        mock.handle,
        "127.0.0.1",
        0,
        process_request=mock.respond,
        subprotocols=[Subprotocol("taximeter.v1")],
        ping_interval=None,
        close_timeout=1,
    ) as server:
        mock._server = server
        yield mock


def welcome(**changes: Any) -> Message:
    """A ``welcome`` for a token that is valid for an hour."""
    return {
        "type": "welcome",
        "user_id": "user-1",
        "org_id": None,
        "account_id": "user-1",
        "credits": "2.5",
        "node": "node-1",
        "server_time_at": SERVER_TIME_AT,
        "ping_ms": 10_000,
        "expires_at": SERVER_TIME_AT + 3_600_000,
        **changes,
    }


def snapshot(**changes: Any) -> Message:
    """A ``session``: a chat at its beginning.

    The chat has a free minute and 2.5 credits.
    """
    return {
        "type": "session",
        "session_id": "session-1",
        "kind": "chat",
        "state": "active",
        "seq": 0,
        "started_at": SERVER_TIME_AT,
        "elapsed_ms": 0,
        "free_remaining_ms": 60_000,
        "paid": False,
        "credits": "2.5",
        "credits_per_minute": "1",
        "limit": "credits",
        "remaining_ms": 210_000,
        "ends_at": SERVER_TIME_AT + 210_000,
        "limits": [{"limit": "credits", "remaining_ms": 210_000}],
        "missed": [],
        "server_time_at": SERVER_TIME_AT,
        "speed": 1,
        **changes,
    }


def tick(elapsed_ms: int, **changes: Any) -> Message:
    """The ``tick`` of that session at ``elapsed_ms``, billed without increments."""
    paid_ms = max(0, elapsed_ms - 60_000)
    return {
        "type": "tick",
        "session_id": "session-1",
        "elapsed_ms": elapsed_ms,
        "free_remaining_ms": max(0, 60_000 - elapsed_ms),
        "paid": paid_ms > 0,
        "credits": f"{2.5 - paid_ms / 60_000:.6f}",
        "remaining_ms": 210_000 - elapsed_ms,
        "limit": "credits",
        **changes,
    }


def receipt(**changes: Any) -> Message:
    """The receipt of that session after its limit, with one unbilled gap."""
    start = SERVER_TIME_AT
    return {
        "session_id": "session-1",
        "kind": "chat",
        "user_id": "user-1",
        "org_id": None,
        "counterpart_id": None,
        "started_at": start,
        "ended_at": start + 240_000,
        "reason": "client",
        "elapsed_ms": 210_000,
        "free_ms": 60_000,
        "billed_ms": 150_000,
        "minutes": 4,
        "credits": "2.5",
        "segments": [
            {"from_at": start, "to_at": start + 90_000},
            {"from_at": start + 120_000, "to_at": start + 240_000},
        ],
        "gaps": [{"from_at": start + 90_000, "to_at": start + 120_000, "billed": False}],
        **changes,
    }


def warning(seq: int) -> Message:
    """A ``limit_warning`` a minute before that session's credits are used up."""
    return {
        "type": "limit_warning",
        "session_id": "session-1",
        "seq": seq,
        "limit": "credits",
        "remaining_ms": 60_000,
        "threshold_ms": 60_000,
    }


def stopped(seq: int, **changes: Any) -> Message:
    """The ``stopped`` of that session; ``changes`` are those of its receipt."""
    bill = receipt(**changes)
    return {
        "type": "stopped",
        "session_id": "session-1",
        "seq": seq,
        "reason": bill["reason"],
        "receipt": bill,
    }
