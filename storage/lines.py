"""A line to Redis that one task reads while others subscribe on it.

``PubSub`` of redis-py (8.1) makes its connection within whatever call finds that there is
none, and makes it again within whatever call finds it broken. Two calls that find so together
make two, of which one is never read; or one of them reads what the other's handshake waits
for ("readuntil() called while another coroutine is already waiting for incoming data"). And
whoever only listens never learns that nobody speaks to him any more: where a machine between
the two has gone, nothing comes, and nothing breaks.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as LineError

QUIET_S = 2.0
"""A line that says nothing for so long is asked whether it lives; and given up after again
so long."""


class Line(PubSub):
    """A ``PubSub`` that one call at a time connects, while all others wait, and that breaks when
    it is dead."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connecting = asyncio.Lock()
        self._connector: asyncio.Task[Any] | None = None
        self._is_asked = False
        """It has been asked whether it lives, and has said nothing since."""

    async def connect(self) -> None:
        """Connects where there is no connection, and subscribes to all channels anew."""
        async with self._alone():
            await super().connect()  # type: ignore[no-untyped-call]

    async def get_message(
        self,
        ignore_subscribe_messages: bool = False,
        timeout: float | None = 0.0,  # noqa: ASYNC109
    ) -> dict[str, Any] | None:
        """The next message; None: there is none in time. Raises ``ConnectionError`` where the
        line is broken, or dead."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (timeout or 0.0)
        while True:
            wait_s = min(QUIET_S, max(0.0, until - loop.time()))
            message: dict[str, Any] | None = await super().get_message(
                ignore_subscribe_messages, wait_s
            )
            if message is not None:
                self._is_asked = False
                if message["type"] != "pong":
                    return message
            elif wait_s == QUIET_S:
                await self._ask()
            else:
                return None

    async def _ask(self) -> None:
        """Asks a quiet line whether it lives; breaks it where it was asked before."""
        if self._is_asked:
            self._is_asked = False
            connection: Any = self.connection
            await connection.disconnect(nowait=True)
            raise LineError("the line is dead")
        self._is_asked = True
        await self.ping()

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
