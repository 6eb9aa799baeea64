"""Scripts that do nothing after their process has given up waiting.

A command may reach Redis long after its process has stopped waiting for the answer. Meanwhile the
caller asks again, and may get a contrary answer, which is final: a spend is refused, or a limit is
changed once more. So the command carries the last instant at which it may run, by the clock of
Redis (``overdue.lua``), and the process waits for the answer until that instant.

A process infers the clock of a Redis from answers: at the moment of an answer, the clock shows at
least the time in the answer. So the instant is too early rather than too late.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from protocol import limits
from storage import limits as storage_limits
from storage.redis.cluster import ClusterRedis
from storage.redis.scripts import LiveError, Script, text_of, unanswered, was_not_run

_WORK: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()
"""When the work of a task is given up, in seconds of the monotonic clock."""


@contextmanager
def work_until(ends_at: float) -> Iterator[None]:
    """Bounds the timed scripts of this task: none runs after ``ends_at``.

    ``ends_at`` is in seconds of the monotonic clock. A process that stood still thus finds out that
    its work is too late.
    """
    task = asyncio.current_task()
    assert task is not None
    before = _WORK.get(task, math.inf)
    _WORK[task] = min(ends_at, before)
    try:
        yield
    finally:
        _WORK[task] = before


class _RedisTime(NamedTuple):
    """The clock of a Redis according to one answer."""

    ahead_ms: float
    """How far that clock is ahead of the monotonic clock, in ms; at least this much."""
    answered_at: float
    """The instant of the answer, in seconds of the monotonic clock."""


class RedisTimes:
    """The clock of each Redis, as far as one process knows it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.reading: Callable[[], float] = time.monotonic
        """Reads the monotonic clock of the process, in seconds."""
        self._known: dict[object, _RedisTime] = {}

    def _place(self, key: str) -> object:
        """Returns the node that has a key, as far as is known.

        Each node has its own clock.
        """
        return self._redis.master_of(key) if isinstance(self._redis, ClusterRedis) else None

    def observe(self, key: str, redis_ms: float, sent_at: float) -> None:
        """Takes the time in an answer to a command sent at ``sent_at``."""
        now_s, place = self.reading(), self._place(key)
        ahead_ms, before = redis_ms - now_s * 1000, self._known.get(place)
        # A faster answer was more precise, unless the clock has gone back since.
        if (
            before is not None
            and now_s - before.answered_at < storage_limits.REDIS_TIME_FRESH_S
            and ahead_ms < before.ahead_ms <= redis_ms - sent_at * 1000
        ):
            return
        self._known[place] = _RedisTime(ahead_ms, now_s)

    def latest(self, key: str, given_up_at: float) -> int:
        """Returns the least time that a Redis shows at ``given_up_at``.

        The result is in epoch milliseconds; 0: not known. ``given_up_at`` is when the command is
        given up.
        """
        known = self._known.get(self._place(key))
        if known is None or self.reading() - known.answered_at >= storage_limits.REDIS_TIME_KNOWN_S:
            return 0
        return int(given_up_at * 1000 + known.ahead_ms) - storage_limits.GIVEN_UP_MARGIN_MS

    async def wait_until(self, at: float) -> None:
        """Waits until the monotonic clock shows ``at``, in seconds."""
        await asyncio.sleep(max(0.0, at - self.reading()))


class TimedScript(Script):
    """A script that does nothing once its process gave it up."""

    def __init__(self, redis: Redis, name: str, times: RedisTimes) -> None:
        super().__init__(redis, name, text_of("overdue") + text_of(name))
        self._times = times

    async def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs the script. Raises :class:`LiveError` when no answer comes in time.

        The script then does not run later.
        """
        for _ in range(storage_limits.OVERDUE_ATTEMPTS_MAX):
            sent_at = self._times.reading()
            answer = await self._ask(keys, args, sent_at)
            if not (isinstance(answer, list) and answer and answer[0] == b"overdue"):
                return answer
            # The answer was in time, so the clock of Redis was unknown or was stepped.
            self._times.observe(keys[0], int(answer[1]) * 1000 + int(answer[2]) / 1000, sent_at)
        raise LiveError("the command came too late")

    async def _ask(self, keys: Sequence[str], args: Sequence[Any], sent_at: float) -> Any:
        given_up_at = sent_at + limits.REDIS_TIMEOUT_MS / 1000
        task = asyncio.current_task()
        if task is not None:
            given_up_at = min(given_up_at, _WORK.get(task, math.inf))
        if given_up_at <= sent_at:
            raise LiveError("the work was given up")
        try:
            async with asyncio.timeout(given_up_at - sent_at):
                return await self.run(keys, [*args, self._times.latest(keys[0], given_up_at)])
        except (RedisError, OSError, TimeoutError) as error:
            failure = unanswered(error)
            if not (isinstance(error, ResponseError) or was_not_run(error)):
                await self._times.wait_until(given_up_at)
            raise failure from error
        except asyncio.CancelledError:
            await self._times.wait_until(given_up_at)
            raise
