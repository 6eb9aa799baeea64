"""A server that echoes requests, and peers that read its answers."""

import asyncio
import contextlib
import json
from typing import Any

from uvicorn._types import ASGIReceiveCallable, ASGISendCallable

from server.transport.connection_limiter import ConnectionLimiter
from tests.server.peers import (
    Peer,
    Served,
    serving,
)

GET = b"GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /first HTTP/1.1\r\nHost: localhost\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: 4\r\n"
LAST_CHUNK = b"0\r\n\r\n"
LARGE_BYTES = 4 * 1024 * 1024


class Echo(Served):
    """Answers a request with what it was.

    ``/hold`` waits for the test to ``release`` it, ``/early`` does not wait for the body,
    ``/large`` has a long answer.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked: list[str] = []
        self.left: asyncio.Queue[str] = asyncio.Queue()
        """Paths of requests whose peer left before the end of the body."""
        self.release = asyncio.Event()

    async def answer(
        self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        path = scope["path"]
        self.asked.append(path)
        body = b""
        while path != "/early":
            event = await receive()
            if event["type"] == "http.disconnect":
                self.left.put_nowait(path)
                return
            assert event["type"] == "http.request"
            body += event["body"]
            if not event["more_body"]:
                break
        if path == "/hold":
            await self.release.wait()
        names = sorted(name.decode() for name, _ in scope["headers"])
        content = json.dumps({"path": path, "body": len(body), "names": names}).encode()
        if path == "/large":
            content = b"x" * LARGE_BYTES
        headers = [(b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": False})


def hasty(**waits: float) -> ConnectionLimiter:
    """A limiter that checks often, with long waits except those given."""
    limiter = ConnectionLimiter()
    limiter.look_s = 0.01
    limiter.head_s = limiter.body_s = limiter.keep_alive_s = limiter.drain_s = limiter.linger_s = (
        60.0
    )
    for name, seconds in waits.items():
        assert hasattr(limiter, name)
        setattr(limiter, name, seconds)
    return limiter


def echoing(
    limiter: ConnectionLimiter | None = None,
) -> contextlib.AbstractAsyncContextManager[Any]:
    return serving(kind=Echo, limiter=limiter or hasty())


async def answer_of(peer: Peer) -> tuple[int, bytes]:
    """The status and the body of the next answer."""
    head = await peer.head()
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return int(head.split()[1]), await peer._exactly(int(lengths[0].split()[1]))


async def status_of(peer: Peer) -> int:
    return (await answer_of(peer))[0]


async def ends(peer: Peer) -> bool:
    """Waits for the connection's end; returns whether it came without a reset."""
    try:
        await peer.end()
    except ConnectionResetError:
        return False
    return True


async def write_until_cut(peer: Peer, drop: bytes) -> None:
    """Writes until the connection is cut."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while True:
            await peer.write(drop)
            await asyncio.sleep(0)


def cuts(served: Served, why: str) -> float:
    return float(served.limiter.metrics.connections_cut.labels(why)._value.get())
