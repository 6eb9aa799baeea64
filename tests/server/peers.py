"""A real uvicorn server with the push path, application and peers.

It is for tests. The application is the test: it accepts, hands the socket over and does nothing
more, so a test decides when something is received. A peer is a socket without a library, to do what
no library does. Nothing here waits for time: every wait is for something to happen.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
import uvloop
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable
from websockets.frames import Frame, Opcode

from server.transport.connection_limiter import ConnectionLimiter
from server.transport.push import EXTENSION, PushProtocol, uvicorn_options

DEADLOCK_SECONDS = 30
SMALL_BUFFER_BYTES = 8192
LOOPS = (asyncio.new_event_loop, uvloop.new_event_loop)


def on_both_loops(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test on asyncio's loop and on uvloop.

    Their transports differ in their ways.
    """

    @pytest.mark.parametrize("new_loop", LOOPS, ids=("asyncio", "uvloop"))
    def test(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(DEADLOCK_SECONDS):
                await scenario()

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(bounded())

    test.__doc__ = scenario.__doc__
    return test


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until the condition holds."""
    loop = asyncio.get_running_loop()
    while not condition():
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn


class Hasty(PushProtocol):
    """The push path with time-outs of moments."""

    __slots__ = ()
    drain_timeout = 0.05
    closing_timeout = 0.05


@dataclass
class Accepted:
    """A socket as its application has it."""

    scope: Any
    receive: ASGIReceiveCallable
    send: ASGISendCallable
    returned: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def push(self) -> PushProtocol:
        """The extension, typed as the class behind it, for its insides."""
        protocol = self.scope["extensions"][EXTENSION]
        assert isinstance(protocol, PushProtocol)
        return protocol

    async def receive_event(self) -> dict[str, Any]:
        """The next event, as the plain dictionary that it is."""
        return dict(await self.receive())

    async def disconnect_code(self) -> object:
        """The code of the next event, which is a disconnect."""
        event = await self.receive_event()
        assert event["type"] == "websocket.disconnect", event
        return event["code"]

    async def send_text(self, text: str) -> None:
        """Send by ASGI."""
        await self.send({"type": "websocket.send", "text": text})


class Peer:
    """A client of bytes."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.loop = asyncio.get_running_loop()
        self.read = bytearray()

    async def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        await self.loop.sock_sendall(self.connection, data)

    async def write_frames(self, *frames: Frame) -> None:
        """Write frames together, masked as a client's are."""
        await self.write(b"".join(frame.serialize(mask=True) for frame in frames))

    async def _more(self) -> None:
        data = await self.loop.sock_recv(self.connection, 65_536)
        if not data:
            raise EOFError
        self.read += data

    async def _exactly(self, count: int) -> bytes:
        while len(self.read) < count:
            await self._more()
        taken = bytes(self.read[:count])
        del self.read[:count]
        return taken

    async def head(self) -> bytes:
        """Read the answer to the handshake."""
        while b"\r\n\r\n" not in self.read:
            await self._more()
        end = self.read.index(b"\r\n\r\n") + 4
        return await self._exactly(end)

    async def frame(self) -> tuple[int, bytes]:
        """Read one frame: its first byte, and its payload.

        EOFError at the end.
        """
        first, length = await self._exactly(2)
        if length == 126:
            length = int.from_bytes(await self._exactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await self._exactly(8), "big")
        return first, await self._exactly(length)

    async def close_code(self) -> int:
        """Read frames up to a close frame; its code."""
        while True:
            first, payload = await self.frame()
            if first == 0x88:
                return int.from_bytes(payload[:2], "big")

    async def end(self) -> None:
        """Read to the end of the connection.

        ConnectionResetError when it was reset.
        """
        while await self.loop.sock_recv(self.connection, 65_536):
            pass

    def close(self) -> None:
        """Close the socket, without a word of WebSocket."""
        self.connection.close()


def request(path: str = "/v1/ws", *headers: str) -> bytes:
    """An opening handshake."""
    lines = (
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    )
    return "\r\n".join((*lines, "", "")).encode()


class Served:
    """A server that runs."""

    def __init__(
        self,
        protocol: type[PushProtocol],
        limiter: ConnectionLimiter | None,
        options: dict[str, Any],
    ) -> None:
        self.limiter = limiter or ConnectionLimiter()
        self.arrivals: asyncio.Queue[Accepted] = asyncio.Queue()
        # Protocols whose connection is gone.
        self.lost: asyncio.Queue[PushProtocol] = asyncio.Queue()
        self.peers: list[Peer] = []
        self.accepted: list[Accepted] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        # Inherited by what it accepts: the kernel takes little, so the rest is seen here.
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES)
        self.port: int = self.listener.getsockname()[1]
        lost = self.lost

        class ObservedProtocol(protocol):  # type: ignore[misc, valid-type]
            __slots__ = ()

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                lost.put_nowait(self)

        settings = {**uvicorn_options(self.limiter), "ws": ObservedProtocol, **options}
        config = uvicorn.Config(self.application, lifespan="off", log_config=None, **settings)
        config.load()
        self.server = uvicorn.Server(config)
        self.server.lifespan = config.lifespan_class(config)

    async def application(
        self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Accept unless the path says otherwise; leave the rest to the test."""
        if scope["type"] == "http":
            await self.answer(scope, receive, send)
            return
        await receive()
        accepted = Accepted(scope, receive, send)
        self.accepted.append(accepted)
        if scope["path"] == "/refused":
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept"})
        self.arrivals.put_nowait(accepted)
        await accepted.returned.wait()

    async def answer(
        self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Answer a request with what it was, once its body is read.

        See the tests of HTTP.
        """
        raise NotImplementedError

    async def peer(self, asked: bytes = b"", source: str = "127.0.0.1") -> Peer:
        """Connect, with a handshake if one is given, and read nothing yet."""
        connection = socket.socket()
        connection.bind((source, 0))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        connection.setblocking(False)
        peer = Peer(connection)
        self.peers.append(peer)
        await peer.loop.sock_connect(connection, ("127.0.0.1", self.port))
        await peer.write(asked)
        return peer

    async def pair(self, path: str = "/v1/ws") -> tuple[Peer, Accepted]:
        """Both ends of an accepted WebSocket."""
        peer = await self.peer(request(path))
        assert (await peer.head()).startswith(b"HTTP/1.1 101 ")
        return peer, await self.arrivals.get()

    async def stop(self) -> None:
        """Cut everything."""
        for peer in self.peers:
            peer.close()
        for accepted in self.accepted:
            accepted.returned.set()
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()
        for listening in self.server.servers:
            listening.close()
            await listening.wait_closed()
        await until(lambda: not self.server.server_state.tasks)


@asynccontextmanager
async def serving(
    protocol: type[PushProtocol] = PushProtocol,
    *,
    kind: type[Served] = Served,
    limiter: ConnectionLimiter | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    """A server on a port of its own, with options of uvicorn."""
    served = kind(protocol, limiter, options)
    await served.server.startup(sockets=[served.listener])
    try:
        yield served
    finally:
        await served.stop()


@contextmanager
def everything_logged() -> Iterator[list[str]]:
    """All that any logger says from DEBUG on, rendered."""
    lines: list[str] = []

    class LogHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = LogHandler()
    names = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "taximeter", "taximeter.push")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    loggers[0].addHandler(handler)
    try:
        yield lines
    finally:
        loggers[0].removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def text(payload: bytes, fin: bool = True) -> Frame:
    """A frame of text."""
    return Frame(Opcode.TEXT, payload, fin)


def more(payload: bytes, fin: bool = True) -> Frame:
    """A continuation frame."""
    return Frame(Opcode.CONT, payload, fin)
