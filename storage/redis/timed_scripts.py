"""Scripts that do nothing once their process has given them up.

A command may reach Redis long after its process has stopped waiting for the answer. The caller
asks again meanwhile, and may get a contrary answer, which is final: a spend is refused, a limit
is changed once more. So the command carries the last instant at which it may run, by the clock
of Redis (``overdue.lua``), and its process does not give it up before that instant.

What the clock of a Redis shows, a process infers from answers: at the moment of an answer, it is
at least the time that the answer carries. So the instant is too early rather than too late.
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
from storage.redis.cluster import ELSEWHERE, ClusterRedis
from storage.redis.scripts import LiveError, Script, text_of

_WORK: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()
"""When the work of a task is given up, in seconds of the monotonic clock."""


@contextmanager
def work_until(ends_at: float) -> Iterator[None]:
    """Nothing that this task asks of a timed script meanwhile runs after an instant, in seconds of
    the monotonic clock. A process that stood still finds that it is too late."""
    task = asyncio.current_task()
    assert task is not None
    before = _WORK.get(task, math.inf)
    _WORK[task] = min(ends_at, before)
    try:
        yield
    finally:
        _WORK[task] = before


class _RedisTime(NamedTuple):
    """What an answer says of the clock of a Redis: milliseconds ahead of the monotonic clock."""

    ahead_ms: float
    """At least."""
    answered_at: float
    """When that was, in seconds of the monotonic clock."""


class RedisTimes:
    """What the clock of each Redis shows, as far as one process knows."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.reading: Callable[[], float] = time.monotonic
        """Reads the monotonic clock of the process, in seconds."""
        self._known: dict[object, _RedisTime] = {}

    def _place(self, key: str) -> object:
        """Who has a key, as far as is known: each Redis has a clock of its own."""
        return self._redis.master_of(key) if isinstance(self._redis, ClusterRedis) else None

    def observe(self, key: str, redis_ms: float, sent_at: float) -> None:
        """The Redis that has a key said its time, when it was asked at ``sent_at``."""
        now_s, place = self.reading(), self._place(key)
        ahead_ms, before = redis_ms - now_s * 1000, self._known.get(place)
        # A faster answer said it better, unless the clock has gone back since.
        if (
            before is not None
            and now_s - before.answered_at < storage_limits.REDIS_TIME_FRESH_S
            and ahead_ms < before.ahead_ms <= redis_ms - sent_at * 1000
        ):
            return
        self._known[place] = _RedisTime(ahead_ms, now_s)

    def latest(self, key: str, given_up_at: float) -> int:
        """What the clock of the Redis that has a key shows at the earliest when a command is given
        up, epoch ms; 0 where that is not known."""
        known = self._known.get(self._place(key))
        if known is None or self.reading() - known.answered_at >= storage_limits.REDIS_TIME_KNOWN_S:
            return 0
        return int(given_up_at * 1000 + known.ahead_ms) - storage_limits.GIVEN_UP_MARGIN_MS

    async def wait_until(self, at: float) -> None:
        """Waits until a reading of the monotonic clock."""
        await asyncio.sleep(max(0.0, at - self.reading()))


class TimedScript(Script):
    """A script that does nothing once its process has given it up."""

    def __init__(self, redis: Redis, name: str, times: RedisTimes) -> None:
        super().__init__(redis, name, text_of("overdue") + text_of(name))
        self._times = times

    async def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs the script. Raises :class:`LiveError` when no answer comes in time, and then it
        does not run later."""
        for _ in range(storage_limits.OVERDUE_ATTEMPTS_MAX):
            sent_at = self._times.reading()
            answer = await self._ask(keys, args, sent_at)
            if not (isinstance(answer, list) and answer and answer[0] == b"overdue"):
                return answer
            # It was answered in time, so the clock of Redis was not known, or was stepped.
            self._times.observe(keys[0], int(answer[1]) * 1000 + int(answer[2]) / 1000, sent_at)
        raise LiveError("it came too late")

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
        except ResponseError as error:
            if not isinstance(error, ELSEWHERE):
                raise
            raise LiveError(str(error) or type(error).__name__) from error
        except (RedisError, OSError, TimeoutError) as error:
            if not _is_refused(error):
                await self._times.wait_until(given_up_at)
            raise LiveError(str(error) or type(error).__name__) from error
        except asyncio.CancelledError:
            await self._times.wait_until(given_up_at)
            raise


def _is_refused(error: BaseException) -> bool:
    """Whether nothing listens where Redis is expected: then nothing was sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ConnectionRefusedError, FileNotFoundError)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
