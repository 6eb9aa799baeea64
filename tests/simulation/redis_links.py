"""Connections between processes and Redis, and the fates of their messages.

The clients are those of redis-py, down to where they would write to a socket. There the message is
carried over a ``RedisLink`` instead, or is lost, or late, or arrives twice. A task that waits for
an answer waits in virtual time, and times out as with a real socket.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.client import EMPTY_RESPONSE
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as LateError

Command = Sequence[Any]
Carry = Callable[[Sequence[Command]], list[Any]]
"""Brings commands to Redis and returns its answers, errors among them."""


class Mishap(NamedTuple):
    """What happens to a message.

    The message is ``lost``, ``unanswered``, ``late``, ``slow``, carried ``twice``, or ``held`` on
    its way and answered all the same; or its sender dies: ``died`` before the message was sent, or
    ``died_after`` it was carried out.
    """

    kind: str
    ms: int = 0


NONE = Mishap("none")


class RedisLink:
    """The connection of one process to Redis."""

    def __init__(self, carry: Carry, timeout_ms: int) -> None:
        self._carry = carry
        self.timeout_s = timeout_ms / 1000
        self.is_away = False
        """Redis is unreachable from this process."""
        self.mishaps: deque[Mishap] = deque()
        """What happens to the next messages, in order."""
        self.delays: list[int] = []
        """Delays of answers in ms, used one after the other and then from the first again.

        Messages that Redis publishes take half of the first delay.
        """
        self._delayed = 0
        self.die: Callable[[], None] = lambda: None
        """Kills the process that sends."""
        self.ears: list[VirtualPubSub] = []
        self.troubled = 0
        """Number of messages to which something happened."""
        self.answered_since_s = asyncio.get_running_loop().time()
        """Since when, in the loop's time, every answer came in time."""
        self.carried_late_s = -1.0
        """The last instant on the loop at which a message arrived that its sender had given up."""
        self._late: set[asyncio.Task[None]] = set()

    @property
    def is_late(self) -> bool:
        """Whether a next message, or one under way, takes long."""
        return bool(self._late) or any(
            mishap.kind not in ("none", "twice") for mishap in self.mishaps
        )

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Sends commands together. Returns their answers."""
        await asyncio.sleep(0)  # other ready tasks run first, as with a real socket
        if self.is_away:
            raise LostError("Redis is away")
        mishap = self.mishaps.popleft() if self.mishaps else NONE
        if mishap.kind == "none":
            return await self._travel(commands) if self.delays else self._carry(commands)
        self.troubled += 1
        match mishap.kind:
            case "lost":
                return await self._give_up()
            case "unanswered":
                self._carry(commands)
                return await self._give_up()
            case "late":
                # The message arrives even if its sender has died meanwhile.
                task = asyncio.get_running_loop().create_task(
                    self._deliver(list(commands), mishap.ms), context=contextvars.Context()
                )
                self._late.add(task)
                task.add_done_callback(self._late.discard)
                return await self._give_up()
            case "slow":
                answers = self._carry(commands)
                if mishap.ms / 1000 >= self.timeout_s:
                    return await self._give_up()
                await asyncio.sleep(mishap.ms / 1000)
                return answers
            case "held":
                await asyncio.sleep(mishap.ms / 1000)
                return self._carry(commands)
            case "twice":
                answers = self._carry(commands)
                self._carry(commands)
                return answers
            case "died":
                self.die()
            case "died_after":
                self._carry(commands)
                self.die()
        return await self._give_up()

    async def _travel(self, commands: Sequence[Command]) -> list[Any]:
        """Sends commands over a slow connection, half of the delay each way."""
        way_s = self.delays[self._delayed % len(self.delays)] / 2000
        self._delayed += 1
        self.troubled += 1
        if 2 * way_s >= self.timeout_s:
            # The message arrives all the same, after its sender has timed out.
            task = asyncio.get_running_loop().create_task(
                self._deliver(list(commands), int(1000 * way_s)), context=contextvars.Context()
            )
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            return await self._give_up()
        await asyncio.sleep(way_s)
        if self.is_away:
            raise LostError("Redis is away")
        answers = self._carry(commands)
        await asyncio.sleep(way_s)
        return answers

    async def _give_up(self) -> list[Any]:
        # The sender may time out a little earlier.
        self.answered_since_s = asyncio.get_running_loop().time() + self.timeout_s
        await asyncio.sleep(self.timeout_s)
        raise LateError("Timeout reading from socket")

    async def _deliver(self, commands: list[Command], ms: int) -> None:
        await asyncio.sleep(ms / 1000)
        self.carried_late_s = asyncio.get_running_loop().time()
        self._carry(commands)

    def cut(self) -> None:
        """Redis goes away: published messages no longer arrive."""
        self.is_away = True
        for listener in self.ears:
            listener.drop()


class VirtualRedis(Redis):
    """A client of redis-py at the end of a ``RedisLink``."""

    def __init__(self, line: RedisLink, **options: Any) -> None:
        super().__init__(unix_socket_path="/nowhere", **options)
        self.line = line

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Executes one command. The answer has the shape that redis-py gives it."""
        (answer,) = await self.line.send([args])
        return shaped(self.response_callbacks, args, options, answer)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "Pipeline":
        """Commands that are sent together."""
        return VirtualPipeline(self, transaction, shard_hint)

    def pubsub(self, **_: Any) -> "VirtualPubSub":  # type: ignore[override]
        """A Pub/Sub client."""
        listener = VirtualPubSub(self.line)
        self.line.ears.append(listener)
        return listener

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Does nothing: there is no connection."""


class VirtualPipeline(Pipeline):
    """Commands sent together, without others between them: atomic too."""

    def __init__(self, redis: VirtualRedis, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(redis.connection_pool, redis.response_callbacks, transaction, shard_hint)
        self.line = redis.line

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Sends the commands. Returns the answers, or raises the first error."""
        stack, self.command_stack = list(self.command_stack), []
        if not stack:
            return []
        answers: list[Any] = []
        found = await self.line.send([args for args, _ in stack])
        for (args, options), answer in zip(stack, found, strict=True):
            try:
                answers.append(shaped(self.response_callbacks, args, dict(options), answer))
            except ResponseError as error:
                if raise_on_error:
                    raise
                answers.append(error)
        return answers


def shaped(callbacks: Any, args: Command, options: dict[str, Any], answer: Any) -> Any:
    """An answer as redis-py returns it; an error is raised."""
    options = dict(options)
    empty = options.pop(EMPTY_RESPONSE, answer)
    options.pop("keys", None)
    if isinstance(answer, RedisError):
        if empty is not answer:
            return empty
        raise answer
    callback = callbacks.get(args[0])
    return answer if callback is None else callback(answer, **options)


class VirtualPubSub:
    """Subscriptions of one process. As in redis-py, they survive a broken connection."""

    def __init__(self, line: RedisLink) -> None:
        self._line = line
        self._channels: set[bytes] = set()
        self._heard: deque[dict[str, Any]] = deque()
        self._coming: deque[tuple[float, dict[str, Any]]] = deque()
        """Messages on their way here, each with its time of arrival."""
        self._comes_at = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._is_broken = False

    @property
    def subscribed(self) -> bool:
        """Whether any channel is subscribed."""
        return bool(self._channels)

    async def subscribe(self, *names: str) -> None:
        """Subscribes to more channels; a message confirms each."""
        await asyncio.sleep(0)
        self._connect()
        for channel in (name.encode() for name in names):
            self._channels.add(channel)
            self._hear({"type": "subscribe", "channel": channel, "data": 1})

    async def unsubscribe(self, *names: str) -> None:
        """Unsubscribes from channels."""
        await asyncio.sleep(0)
        self._channels -= {name.encode() for name in names}
        self._connect()

    async def get_message(self, *, timeout: float) -> dict[str, Any] | None:  # noqa: ASYNC109
        """The next message; None after the timeout."""
        self._connect()
        if not self._heard:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._waiter
            except TimeoutError:
                return None
            finally:
                self._waiter = None
        return self._heard.popleft()

    async def aclose(self) -> None:
        """Ends all subscriptions."""
        self._channels.clear()
        if self in self._line.ears:
            self._line.ears.remove(self)

    def publish(self, channel: bytes, message: bytes) -> None:
        """Redis publishes a message."""
        if channel not in self._channels or self._is_broken:
            return
        told = {"type": "message", "channel": channel, "data": message}
        if not self._line.delays and not self._coming:
            self._hear(told)
            return
        # An earlier message arrives first, even if the connection has become faster.
        way_s = self._line.delays[0] / 2000 if self._line.delays else 0.0
        loop = asyncio.get_running_loop()
        self._comes_at = max(loop.time() + way_s, self._comes_at)
        self._coming.append((self._comes_at, told))
        loop.call_at(self._comes_at, self._arrive, self._comes_at, context=contextvars.Context())

    def _arrive(self, at: float) -> None:
        # Messages of one instant arrive in order, whatever the order of the loop's timers.
        while self._coming and self._coming[0][0] <= at:
            self._hear(self._coming.popleft()[1])

    def drop(self) -> None:
        """The connection breaks.

        Messages on their way are lost, and a waiting reader gets an error.
        """
        self._is_broken = True
        self._heard.clear()
        self._coming.clear()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(LostError("the line is broken"))

    def _connect(self) -> None:
        if self._is_broken:
            if self._line.is_away:
                raise LostError("Redis is away")
            self._is_broken = False
            for channel in sorted(self._channels):
                self._hear({"type": "subscribe", "channel": channel, "data": 1})

    def _hear(self, message: dict[str, Any]) -> None:
        self._heard.append(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
