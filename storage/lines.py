"""A line to Redis that one task reads while others subscribe on it.

``PubSub`` of redis-py (8.1) makes its connection within whatever call finds that there is
none, and makes it again within whatever call finds it broken. Two calls that find so together
make two, of which one is never read; or one of them reads what the other's handshake waits
for ("readuntil() called while another coroutine is already waiting for incoming data").
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub


class Line(PubSub):
    """A ``PubSub`` that one call at a time connects, while all others wait."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connecting = asyncio.Lock()
        self._connector: asyncio.Task[Any] | None = None

    async def connect(self) -> None:
        """Connects where there is no connection, and subscribes to all channels anew."""
        async with self._alone():
            await super().connect()  # type: ignore[no-untyped-call]

    async def parse_response(self, block: bool = True, timeout: float = 0) -> Any:  # noqa: ASYNC109
        """What Redis says next, connected first where it was not."""
        await self.connect()
        return await super().parse_response(block, timeout)

    async def _reconnect(self, conn: Any, *_: Any) -> None:
        """What a call does that found the connection broken: it says so, and the next one, of
        whichever task, connects."""
        await conn.disconnect(nowait=True)

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        if self._connector is task:  # what is subscribed to anew while connecting
            yield
            return
        async with self._connecting:
            self._connector = task
            try:
                yield
            finally:
                self._connector = None


class LineRedis(Redis):
    """A client whose lines are such ones."""

    def pubsub(self, **options: Any) -> Line:
        """A line, which connects when it is first subscribed on."""
        return Line(self.connection_pool, **options)
