"""A Pub/Sub connection: one task reads while others subscribe.

``PubSub`` of redis-py (8.1) connects within any call that finds no connection, and reconnects
within any call that finds a broken one. Two such calls at once make two connections, of which one
is never read; or one call reads what the other's handshake waits for ("readuntil() called while
another coroutine is already waiting for incoming data"). Furthermore, a subscriber cannot tell a
dead connection from a quiet one: if a machine between the two is gone, nothing arrives, and nothing
breaks.
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
    """A ``PubSub`` that connects once for all, and breaks when dead.

    A call that finds the connection broken raises ``ConnectionError``, and does not repeat its
    command. The next call connects; all calls meanwhile wait for that one attempt and share its
    result. After it, every channel is subscribed to again, and confirmed.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._attempt: asyncio.Task[None] | None = None
        """The attempt to connect that is under way."""
        self._attempts = 0
        self._is_closed = False
        self._given_up: list[tuple[bool, Any]] = []
        """Channels that were given up during the attempt: whether sharded, and the name."""
        self._is_asked = False
        """A ping was sent, and nothing has arrived since."""
        self._due_at = math.inf
        """When to ping the connection, or to give it up, by the event loop's clock."""

    # --- Connecting ----------------------------------------------------------------

    @property
    def _is_connected(self) -> bool:
        connection: Any = self.connection
        return connection is not None and bool(connection.is_connected)

    async def connect(self) -> None:
        """Connects if there is no connection, and subscribes to all channels again."""
        if self._attempt is None:
            if self._is_connected:
                return
            if self._is_closed:
                raise LineError("the connection is closed")
            self._attempts += 1
            self._attempt = asyncio.create_task(self._connect())
            self._attempt.add_done_callback(self._tried)
        elif self._attempt is asyncio.current_task():
            return  # this call subscribes again within the attempt, on the existing connection
        attempt, waiter = self._attempt, asyncio.current_task()
        try:
            await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if attempt.cancelled() and waiter is not None and not waiter.cancelling():
                raise LineError("the connection is closed") from None
            raise
        if not self._is_connected or self._attempt is not None:
            # Without this, redis-py would connect in the task that waited.
            raise LineError("the connection broke again")

    async def _connect(self) -> None:
        try:
            await super().connect()  # type: ignore[no-untyped-call]
            while self._given_up:
                await self._take_back(*self._given_up.pop())
        except BaseException as error:
            await self._break()  # it may be half made
            if isinstance(error, AttributeError):
                raise LineError("the connection broke") from error  # see _execute
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
            attempt.exception()  # waiting callers have the error already, or have gone

    async def aclose(self) -> None:
        """Closes the connection for good."""
        self._is_closed = True
        await end([self._attempt])
        await super().aclose()  # type: ignore[no-untyped-call]

    # --- Writing ---------------------------------------------------------------------

    async def unsubscribe(self, *channels: Any) -> None:
        """Ends subscriptions.

        An attempt under way undoes what it has subscribed to again. On a broken connection there is
        nothing to undo.
        """
        for channel in channels:
            await self._give_up(False, channel)

    async def sunsubscribe(self, *channels: Any, target_node: Any = None) -> None:
        """Ends subscriptions to sharded channels."""
        for channel in channels:
            await self._give_up(True, channel)

    async def _give_up(self, sharded: bool, channel: Any) -> None:
        self._forget(sharded, channel)
        if self._attempt is not None:
            self._given_up.append((sharded, channel))
        elif self._is_connected:
            await self._take_back(sharded, channel)

    def _forget(self, sharded: bool, channel: Any) -> None:
        """Removes a channel, which a reconnect then does not restore."""
        kept = self.shard_channels if sharded else self.channels
        for name in self._normalize_keys({channel: None}):
            kept.pop(name, None)

    async def _take_back(self, sharded: bool, channel: Any) -> None:
        await (super().sunsubscribe if sharded else super().unsubscribe)(channel)

    async def _execute(
        self, conn: Any, command: Callable[..., Awaitable[Any]], *args: Any, **options: Any
    ) -> Any:
        """Sends or reads once."""
        attempts = self._attempts
        try:
            return await command(*args, **options)
        except (LineError, LateError, OSError):
            # If another task has begun to connect meanwhile, that connection is not the broken one.
            if attempts == self._attempts:
                await conn.disconnect(nowait=True)
            raise
        except AttributeError as error:
            # redis-py writes to a connection that another task has just found broken and dropped.
            if attempts == self._attempts and self._is_connected:
                raise
            raise LineError("the connection broke") from error

    # --- Reading -----------------------------------------------------------------------

    async def parse_response(self, block: bool = True, timeout: float = 0) -> Any:  # noqa: ASYNC109
        """Returns the next answer of Redis; connects first if necessary."""
        await self.connect()
        return await super().parse_response(block, timeout)

    async def get_message(
        self,
        ignore_subscribe_messages: bool = False,
        timeout: float | None = 0.0,  # noqa: ASYNC109
    ) -> dict[str, Any] | None:
        """Returns the next message; None: none arrived within ``timeout`` seconds.

        A ``timeout`` of None has no end. Raises ``ConnectionError`` if the connection is broken or
        dead.
        """
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
                # Messages that arrived while this process stood still are read first, without
                # waiting.
                await self._ask()
            elif clock() >= until:
                return None

    def _heard(self) -> None:
        self._is_asked = False
        self._due_at = asyncio.get_running_loop().time() + storage_limits.CHANNEL_QUIET_S

    async def _ask(self) -> None:
        """Pings a quiet connection; breaks it if it was pinged before."""
        if self._is_asked:
            await self._break()
            raise LineError("the connection is dead")
        self._heard()
        self._is_asked = True
        await self.ping()


class FairPipeline(Pipeline):
    """A pipeline that reads its answers a few at a time.

    redis-py reads all answers that have arrived before other tasks run. For 64 answers of a step,
    that takes some 10 ms.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._answers = 0

    async def parse_response(
        self, connection: Any, command_name: str | bytes, **options: Any
    ) -> Any:
        """Returns the next answer."""
        self._answers += 1
        if self._answers % storage_limits.ANSWERS_PER_TURN == 0:
            await asyncio.sleep(0)
        return await super().parse_response(connection, command_name, **options)


class FairRedis(Redis):
    """A client with ``PubSubConnection`` for channels, and with fair pipelines."""

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> FairPipeline:
        """Returns a fair pipeline."""
        return FairPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    def pubsub(self, **options: Any) -> PubSubConnection:
        """Returns a Pub/Sub connection, which connects at its first use."""
        return PubSubConnection(self.connection_pool, **options)
