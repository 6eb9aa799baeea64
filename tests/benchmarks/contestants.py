"""The compared ways of pushing, each with its own server.

All send texts of the same length: 116 bytes, a different text to each socket at each turn. Only the
yardstick has its frames ready.
"""

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, cast

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope
from websockets.asyncio.server import ServerConnection, broadcast, serve

from protocol.wire.codec import format_tick, tick_template
from server.transport.frames import text_frame
from server.transport.push import EXTENSION, PushSocket, uvicorn_options
from server.transport.websocket_protocol import forget_handshake

TICK = (
    b'{"type":"tick","session_id":"s%06d","elapsed_ms":%09d,"credits":"%05d.5",'
    b'"remaining_ms":%07d,"paid":true}'
)
OPEN_SECONDS_MAX = 10
TICK_TEXT = TICK.decode()
assert len(TICK % (1, 1, 1, 1)) == 116


class Contestant(ABC):
    """A server, and a way to push to its sockets."""

    name: ClassVar[str]
    handshake: ClassVar[bool] = True
    """Whether its sockets are WebSockets, or bare TCP sockets."""

    def __init__(self, *, pings: bool) -> None:
        # Clients that only read answer no pings, so in a long measurement there are none.
        self.keepalive: dict[str, Any] = {} if pings else {"ws_ping_interval": None}
        self.count = 0
        self._opened = asyncio.Event()

    def opened(self) -> int:
        """Counts a new open socket, and returns its number."""
        self.count += 1
        self._opened.set()
        return self.count - 1

    async def until_open(self, count: int) -> None:
        """Waits until ``count`` sockets are open.

        A client has its answer a moment before the server continues.
        """
        async with asyncio.timeout(OPEN_SECONDS_MAX):
            while self.count < count:
                self._opened.clear()
                await self._opened.wait()

    @abstractmethod
    async def start(self) -> int:
        """Listens on a port, and returns its number."""

    @abstractmethod
    async def push(self, elapsed_ms: int) -> int:
        """Pushes a message to every socket; returns how many were sent."""


async def serve_uvicorn(application: Any, **options: Any) -> int:
    """Starts uvicorn in this loop, on its own port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    options = {"interface": "asgi3", **options}
    config = uvicorn.Config(application, lifespan="off", log_config=None, **options)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    port: int = listener.getsockname()[1]
    return port


class Taximeter(Contestant):
    """The push path, which formats, frames and writes each tick per socket."""

    name = "taximeter push"

    def __init__(self, *, pings: bool) -> None:
        super().__init__(pings=pings)
        self.sockets: list[tuple[int, PushSocket]] = []

    async def start(self) -> int:
        """See Contestant."""
        return await serve_uvicorn(self.application, **uvicorn_options() | self.keepalive)

    async def application(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Accepts the socket, and takes the push path that its scope offers."""
        await receive()
        push_socket: PushSocket = scope["extensions"][EXTENSION]  # type: ignore
        await send({"type": "websocket.accept"})
        forget_handshake(scope)  # type: ignore[arg-type]
        self.sockets.append((self.opened(), push_socket))
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async def push(self, elapsed_ms: int) -> int:
        """See Contestant."""
        pushed = 0
        for number, push_socket in self.sockets:
            tick = TICK % (number, elapsed_ms, number, elapsed_ms)
            if push_socket.push_tick(text_frame(tick)):
                pushed += 1
        return pushed


class TaximeterWire(Taximeter):
    """The push path with the longer tick of the protocol's codec."""

    name = "taximeter wire tick"

    def __init__(self, *, pings: bool) -> None:
        super().__init__(pings=pings)
        self.templates: list[bytes] = []

    async def push(self, elapsed_ms: int) -> int:
        """See Contestant."""
        while len(self.templates) < len(self.sockets):
            self.templates.append(tick_template(f"s{len(self.templates):06d}"))
        pushed = 0
        for (number, push_socket), template in zip(self.sockets, self.templates, strict=True):
            tick = format_tick(
                template,
                elapsed_ms=elapsed_ms,
                free_remaining_ms=0,
                paid=True,
                credits_micros=98_500_000 + number,
                remaining_ms=elapsed_ms,
                limit="credits",
            )
            if push_socket.push_tick(text_frame(tick)):
                pushed += 1
        return pushed


class BareProtocol(asyncio.Protocol):
    """Hands its transport over."""

    def __init__(self, contestant: "Bare") -> None:
        self.contestant = contestant

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Prepares a unique frame for the connection."""
        number = self.contestant.opened()
        write = cast(asyncio.Transport, transport).write
        frame = text_frame(TICK % (number, number, number, number))
        self.contestant.writes.append((write, frame))


class Bare(Contestant):
    """uvloop alone: ready frames, written to transports. The yardstick."""

    name = "uvloop, frame ready"
    handshake = False

    def __init__(self, *, pings: bool) -> None:
        super().__init__(pings=pings)
        self.writes: list[tuple[Callable[[bytes], None], bytes]] = []

    async def start(self) -> int:
        """See Contestant."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(self._accept, sock=listener, backlog=2048)
        port: int = listener.getsockname()[1]
        return port

    def _accept(self) -> asyncio.Protocol:
        return BareProtocol(self)

    async def push(self, elapsed_ms: int) -> int:
        """See Contestant."""
        for write, frame in self.writes:
            write(frame)
        return self.count


class BareMade(Bare):
    """uvloop alone with a frame per message: the limit of every server."""

    name = "uvloop, frame made"

    async def push(self, elapsed_ms: int) -> int:
        """See Contestant."""
        number = 0
        for write, _ in self.writes:
            write(b"\x81\x74" + TICK % (number, elapsed_ms, number, elapsed_ms))
            number += 1
        return number


class Broadcast(Contestant):
    """websockets' own server, and its broadcast to one socket at a time."""

    name = "websockets broadcast"

    def __init__(self, *, pings: bool) -> None:
        super().__init__(pings=pings)
        self.connections: list[ServerConnection] = []

    async def start(self) -> int:
        """See Contestant."""
        self.server = await serve(
            self._handle, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=2048
        )
        port: int = next(iter(self.server.sockets)).getsockname()[1]
        return port

    async def _handle(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        self.opened()
        await connection.wait_closed()

    async def push(self, elapsed_ms: int) -> int:
        """See Contestant."""
        number = 0
        for connection in self.connections:
            broadcast((connection,), TICK_TEXT % (number, elapsed_ms, number, elapsed_ms))
            number += 1
        return number


class SendText(Contestant):
    """Starlette's ``send_text`` on uvicorn's sans-I/O WebSocket."""

    name = "starlette send_text"

    def __init__(self, *, pings: bool) -> None:
        super().__init__(pings=pings)
        self.sockets: list[WebSocket] = []

    async def start(self) -> int:
        """See Contestant."""
        return await serve_uvicorn(
            Starlette(routes=[WebSocketRoute("/v1/ws", self._endpoint)]),
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            **self.keepalive,
        )

    async def _endpoint(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.sockets.append(websocket)
        self.opened()
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass

    async def push(self, elapsed_ms: int) -> int:
        """See Contestant."""
        number = 0
        for websocket in self.sockets:
            await websocket.send_text(TICK_TEXT % (number, elapsed_ms, number, elapsed_ms))
            number += 1
        return number


class TaximeterStarlette(Taximeter):
    """The push path under a Starlette application, to measure its layers' memory."""

    name = "taximeter, starlette"

    async def start(self) -> int:
        """See Contestant."""
        return await serve_uvicorn(
            Starlette(routes=[WebSocketRoute("/v1/ws", self._endpoint)]),
            **uvicorn_options() | self.keepalive,
        )

    async def _endpoint(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.sockets.append((self.opened(), websocket.scope["extensions"][EXTENSION]))
        forget_handshake(websocket.scope)
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass


class BareAsgi(SendText):
    """uvicorn's sans-I/O WebSocket under the smallest application, for its memory."""

    name = "uvicorn, bare asgi"

    async def start(self) -> int:
        """See Contestant."""
        return await serve_uvicorn(
            self._application,
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            **self.keepalive,
        )

    async def _application(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.opened()
        while (await receive())["type"] != "websocket.disconnect":
            pass
