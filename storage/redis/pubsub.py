"""A line to Redis that one task reads while others subscribe on it.

``PubSub`` of redis-py (8.1) makes its connection within whatever call finds that there is
none, and makes it again within whatever call finds it broken. Two calls that find so together
make two, of which one is never read; or one of them reads what the other's handshake waits
for ("readuntil() called while another coroutine is already waiting for incoming data"). And
whoever only listens never learns that nobody speaks to him any more: where a machine between
the two has gone, nothing comes, and nothing breaks.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline, PubSub
from redis.exceptions import ConnectionError as LineError
from redis.exceptions import TimeoutError as LateError

from storage import limits as storage_limits
from storage.tasks import end


class PubSubConnection(PubSub):
    """A ``PubSub`` that all who use it connect together, and that breaks when it is dead.

    Whoever finds it broken says so, by ``ConnectionError``, and does not repeat what it was
    about; whoever comes next connects, and all who come meanwhile wait for that one attempt
    and share what comes of it. What was subscribed to is subscribed to anew, and confirmed.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._attempt: asyncio.Task[None] | None = None
        """The one that connects."""
        self._attempts = 0
        self._is_closed = False
        self._given_up: list[tuple[bool, Any]] = []
        """Channels that were given up during the attempt: whether sharded, and which."""
        self._is_asked = False
        """It has been asked whether it lives, and has said nothing since."""
        self._due_at = math.inf
        """When it is to be asked, or given up, by the loop's clock."""

    # --- Connecting ----------------------------------------------------------------

    @property
    def _is_connected(self) -> bool:
        connection: Any = self.connection
        return connection is not None and bool(connection.is_connected)

    async def connect(self) -> None:
        """Connects where there is no connection, and subscribes to all channels anew."""
        if self._attempt is None:
            if self._is_connected:
                return
            if self._is_closed:
                raise LineError("the line is closed")
            self._attempts += 1
            self._attempt = asyncio.create_task(self._connect())
            self._attempt.add_done_callback(self._tried)
        elif self._attempt is asyncio.current_task():
            return  # this is what is subscribed to anew, on the connection that is there
        attempt, waiter = self._attempt, asyncio.current_task()
        try:
            await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if attempt.cancelled() and waiter is not None and not waiter.cancelling():
                raise LineError("the line is closed") from None
            raise
        if not self._is_connected or self._attempt is not None:
            # Or redis-py would connect, in the task of whoever waited.
            raise LineError("the line broke again")

    async def _connect(self) -> None:
        try:
            await super().connect()  # type: ignore[no-untyped-call]
            while self._given_up:
                await self._take_back(*self._given_up.pop())
        except BaseException as error:
            await self._break()  # it may be half made
            if isinstance(error, AttributeError):
                raise LineError("the line broke") from error  # see _execute
            raise
        self._heard()

    async def _break(self) -> None:
        connection: Any = self.connection
        if connection is not None:
            await connection.disconnect(nowait=True)

    def _tried(self, attempt: "asyncio.Task[None]") -> None:
        self._attempt = None
        while self._given_up:
            self._forget(*self._given_up.pop())
        if not attempt.cancelled():
            attempt.exception()  # whoever waited for it has been told, or has gone

    async def aclose(self) -> None:
        """Closes the line for good."""
        self._is_closed = True
        await end([self._attempt])
        await super().aclose()  # type: ignore[no-untyped-call]

    # --- Saying ----------------------------------------------------------------------

    async def unsubscribe(self, *channels: Any) -> None:
        """Listens no more. Whoever connects just now takes back what he has subscribed to anew;
        where the line is broken there is nothing to take back."""
        for channel in channels:
            await self._give_up(False, channel)

    async def sunsubscribe(self, *channels: Any, target_node: Any = None) -> None:
        """Listens no more to sharded channels."""
        for channel in channels:
            await self._give_up(True, channel)

    async def _give_up(self, sharded: bool, channel: Any) -> None:
        self._forget(sharded, channel)
        if self._attempt is not None:
            self._given_up.append((sharded, channel))
        elif self._is_connected:
            await self._take_back(sharded, channel)

    def _forget(self, sharded: bool, channel: Any) -> None:
        """It is not subscribed to anew, should the line break before it is confirmed."""
        kept = self.shard_channels if sharded else self.channels
        for name in self._normalize_keys({channel: None}):
            kept.pop(name, None)

    async def _take_back(self, sharded: bool, channel: Any) -> None:
        await (super().sunsubscribe if sharded else super().unsubscribe)(channel)

    async def _execute(
        self, conn: Any, command: Callable[..., Awaitable[Any]], *args: Any, **options: Any
    ) -> Any:
        """Says or reads something, once."""
        attempts = self._attempts
        try:
            return await command(*args, **options)
        except (LineError, LateError, OSError):
            # Unless somebody has begun to connect meanwhile: that is not what broke.
            if attempts == self._attempts:
                await conn.disconnect(nowait=True)
            raise
        except AttributeError as error:
            # redis-py writes to what another task has just found broken, and let go of.
            if attempts == self._attempts and self._is_connected:
                raise
            raise LineError("the line broke") from error

    # --- Reading -----------------------------------------------------------------------

    async def parse_response(self, block: bool = True, timeout: float = 0) -> Any:  # noqa: ASYNC109
        """What Redis says next, connected first where it was not."""
        await self.connect()
        return await super().parse_response(block, timeout)

    async def get_message(
        self,
        ignore_subscribe_messages: bool = False,
        timeout: float | None = 0.0,  # noqa: ASYNC109
    ) -> dict[str, Any] | None:
        """The next message; None: there is none in time, which without a ``timeout`` is for
        ever. Raises ``ConnectionError`` where the line is broken, or dead."""
        clock = asyncio.get_running_loop().time
        until = math.inf if timeout is None else clock() + timeout
        while True:
            wait_s = min(
                storage_limits.CHANNEL_QUIET_S, max(0.0, min(until, self._due_at) - clock())
            )
            message: dict[str, Any] | None = await super().get_message(
                ignore_subscribe_messages, wait_s
            )
            if message is not None:
                self._heard()
                if message["type"] != "pong":
                    return message
            elif clock() >= self._due_at and not (self._is_asked and wait_s):
                # What came while this process stood still is read first, without waiting.
                await self._ask()
            elif clock() >= until:
                return None

    def _heard(self) -> None:
        self._is_asked = False
        self._due_at = asyncio.get_running_loop().time() + storage_limits.CHANNEL_QUIET_S

    async def _ask(self) -> None:
        """Asks a quiet line whether it lives; breaks it where it was asked before."""
        if self._is_asked:
            await self._break()
            raise LineError("the line is dead")
        self._heard()
        self._is_asked = True
        await self.ping()


class FairPipeline(Pipeline):
    """A pipeline whose answers are read a few at a time: redis-py reads all that have come
    without others' having a turn, and 64 answers of a step take it some 10 ms."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._answers = 0

    async def parse_response(
        self, connection: Any, command_name: str | bytes, **options: Any
    ) -> Any:
        """The next answer."""
        self._answers += 1
        if self._answers % storage_limits.ANSWERS_PER_TURN == 0:
            await asyncio.sleep(0)
        return await super().parse_response(connection, command_name, **options)


class FairRedis(Redis):
    """A client whose lines are such ones, and whose pipelines are fair."""

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> FairPipeline:
        """A pipeline."""
        return FairPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    def pubsub(self, **options: Any) -> PubSubConnection:
        """A line, which connects when it is first used."""
        return PubSubConnection(self.connection_pool, **options)
