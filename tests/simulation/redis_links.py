"""The lines between processes and Redis, and what may happen to a message on one.

The clients are those of redis-py, down to where they would write to a socket: there the
message is carried over the line instead, or is lost, or late, or comes twice. What waits
for an answer waits in virtual time, and gives up as it would.
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
"""Brings commands to Redis and answers what it answers, errors among it."""


class Mishap(NamedTuple):
    """What happens to a message: ``lost``, ``unanswered``, ``late``, ``slow``, ``twice``, ``held``
    on its way and answered all the same; or its sender dies, ``died`` before it was sent or
    ``died_after`` it was done."""

    kind: str
    ms: int = 0


NONE = Mishap("none")


class RedisLink:
    """The line of one process to Redis."""

    def __init__(self, carry: Carry, timeout_ms: int) -> None:
        self._carry = carry
        self.timeout_s = timeout_ms / 1000
        self.is_away = False
        """Redis cannot be reached from here."""
        self.mishaps: deque[Mishap] = deque()
        """What happens to the next messages."""
        self.delays: list[int] = []
        """How long the answers take, in ms, one after the other and then from the first again;
        what Redis publishes takes half as long as the first of them."""
        self._delayed = 0
        self.die: Callable[[], None] = lambda: None
        """Ends the process that sends."""
        self.ears: list[VirtualPubSub] = []
        self.troubled = 0
        """Messages to which something happened."""
        self.answered_since_s = asyncio.get_running_loop().time()
        """Since when, on the loop, no answer was given up."""
        self._late: set[asyncio.Task[None]] = set()

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Sends commands together; the answers."""
        await asyncio.sleep(0)  # whoever else is ready goes on first, as on a real line
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
                # It comes even if its sender has died meanwhile.
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
        """Sends them over a slow line: half of the time to Redis, and half of it back."""
        way_s = self.delays[self._delayed % len(self.delays)] / 2000
        self._delayed += 1
        self.troubled += 1
        if 2 * way_s >= self.timeout_s:
            # It comes all the same, after the sender has given it up.
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
        # The sender may give it up a little before.
        self.answered_since_s = asyncio.get_running_loop().time() + self.timeout_s
        await asyncio.sleep(self.timeout_s)
        raise LateError("Timeout reading from socket")

    async def _deliver(self, commands: list[Command], ms: int) -> None:
        await asyncio.sleep(ms / 1000)
        self._carry(commands)

    def cut(self) -> None:
        """Redis goes away: what it publishes is not heard any more."""
        self.is_away = True
        for listener in self.ears:
            listener.drop()


class VirtualRedis(Redis):
    """A client of redis-py at the end of a line."""

    def __init__(self, line: RedisLink, **options: Any) -> None:
        super().__init__(unix_socket_path="/nowhere", **options)
        self.line = line

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """One command, and its answer in the shape that redis-py gives it."""
        (answer,) = await self.line.send([args])
        return shaped(self.response_callbacks, args, options, answer)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "Pipeline":
        """Commands that are sent together."""
        return VirtualPipeline(self, transaction, shard_hint)

    def pubsub(self, **_: Any) -> "VirtualPubSub":  # type: ignore[override]
        """Whoever listens to channels."""
        listener = VirtualPubSub(self.line)
        self.line.ears.append(listener)
        return listener

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """There is no connection."""


class VirtualPipeline(Pipeline):
    """Commands that are sent together. Nobody else sends meanwhile, so it is atomic too."""

    def __init__(self, redis: VirtualRedis, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(redis.connection_pool, redis.response_callbacks, transaction, shard_hint)
        self.line = redis.line

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Sends them; the answers, or the first error."""
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
    """An answer as redis-py hands it out, which raises an error."""
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
    """Subscriptions of one process, as redis-py keeps them through a broken line."""

    def __init__(self, line: RedisLink) -> None:
        self._line = line
        self._channels: set[bytes] = set()
        self._heard: deque[dict[str, Any]] = deque()
        self._coming: deque[tuple[float, dict[str, Any]]] = deque()
        """What is on its way here, and when it comes."""
        self._comes_at = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._is_broken = False

    @property
    def subscribed(self) -> bool:
        """Whether it listens to anything."""
        return bool(self._channels)

    async def subscribe(self, *names: str) -> None:
        """Listens to more channels; each is confirmed by a message."""
        await asyncio.sleep(0)
        self._connect()
        for channel in (name.encode() for name in names):
            self._channels.add(channel)
            self._hear({"type": "subscribe", "channel": channel, "data": 1})

    async def unsubscribe(self, *names: str) -> None:
        """Listens to fewer channels."""
        await asyncio.sleep(0)
        self._channels -= {name.encode() for name in names}
        self._connect()

    async def get_message(self, *, timeout: float) -> dict[str, Any] | None:  # noqa: ASYNC109
        """The next message; None when none came in time."""
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
        """Listens to nothing any more."""
        self._channels.clear()
        if self in self._line.ears:
            self._line.ears.remove(self)

    def publish(self, channel: bytes, message: bytes) -> None:
        """Redis tells something."""
        if channel not in self._channels or self._is_broken:
            return
        told = {"type": "message", "channel": channel, "data": message}
        if not self._line.delays and not self._coming:
            self._hear(told)
            return
        # What was told before comes before it, over a line that has become faster too.
        way_s = self._line.delays[0] / 2000 if self._line.delays else 0.0
        loop = asyncio.get_running_loop()
        self._comes_at = max(loop.time() + way_s, self._comes_at)
        self._coming.append((self._comes_at, told))
        loop.call_at(self._comes_at, self._arrive, self._comes_at, context=contextvars.Context())

    def _arrive(self, at: float) -> None:
        # What comes at one instant comes in order, in whatever order the loop's timers do.
        while self._coming and self._coming[0][0] <= at:
            self._hear(self._coming.popleft()[1])

    def drop(self) -> None:
        """The line is broken: what was on its way is lost, and who waits is told so."""
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
