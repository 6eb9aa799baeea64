"""A distant Redis: a proxy on loopback that delays all data."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote, urlsplit

CHUNK_BYTES = 65_536
CHUNKS_WAITING_MAX = 4_096
"""Bytes in transit in one direction of a connection; with more, the sender waits."""


class DistantRedis:
    """The proxy's address, and its delay."""

    def __init__(self, url: str) -> None:
        self.away_ms = 0
        """Additional time that a command and its answer together take from now on."""
        self.port = 0
        self._url = url
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The URL of the proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self._url)
        if parts.scheme == "unix":
            return await asyncio.open_unix_connection(unquote(parts.path))
        return await asyncio.open_connection(parts.hostname, parts.port or 6379)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries one connection, until either end closes it."""
        from_redis, to_redis = await self._connect()
        ways = [
            asyncio.create_task(self._carry(reader, to_redis)),
            asyncio.create_task(self._carry(from_redis, writer)),
        ]
        self._tasks.update(ways)
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
                self._tasks.discard(way)
            to_redis.close()
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_WAITING_MAX)

        async def deliver() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                writer.write(data)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(CHUNK_BYTES):
                    await waiting.put((loop.time() + self.away_ms / 2000, data))
        finally:
            delivery.cancel()

    async def close(self) -> None:
        """Ends all connections."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def distant_redis(url: str) -> AsyncIterator[DistantRedis]:
    """A proxy to the Redis at ``url``.

    The proxy adds no delay until ``away_ms`` is set.
    """
    far = DistantRedis(url)
    server = await asyncio.start_server(far.serve, "127.0.0.1", 0)
    far.port = server.sockets[0].getsockname()[1]
    try:
        yield far
    finally:
        server.close()
        await far.close()
