"""Virtual time: a clock that is set by hand, and an event loop that runs by it.

Every wait of the product (time-outs, retries, beats, its wheel of timers) is the event
loop's, and so passes when the clock is set forward and not before. Between two such
instants only what is ready runs, so a run is the same each time that it is made.
"""

import asyncio
import contextlib
import heapq
import math
import selectors
from collections.abc import Iterator
from typing import Any
from unittest import mock

import server.process
import server.runtime.clock
from server.runtime.clock import ClusterClock

START_AT = 1_780_000_000_000
"""The instant at which every virtual cluster begins (2026-05-28, 20:26:40 UTC)."""
FRACTION_MS = 0.25
"""Clocks are read a quarter of a millisecond late: no deadline is a float's error ahead."""
FLOAT_ERROR_MS = 0.001
"""A timer that is due so much after a millisecond is due at that one."""


class VirtualClock:
    """True time, and how wrong the wall clocks are."""

    def __init__(self) -> None:
        self.now_ms = START_AT
        self.redis_ahead_ms = 0
        """The wall clock of Redis's host, as far as it has been stepped."""
        self.wall_ahead_ms = 0
        """The wall clocks of the processes' hosts."""

    def now(self) -> int:
        """The instant."""
        return self.now_ms

    # What the product asks of the module ``time``

    def monotonic(self) -> float:
        """Seconds since the beginning; no step changes it."""
        return (self.now_ms - START_AT + FRACTION_MS) / 1000

    def time(self) -> float:
        """What the wall clock of a process's host shows, in seconds."""
        return (self.now_ms + self.wall_ahead_ms + FRACTION_MS) / 1000

    def time_ns(self) -> int:
        """The same in nanoseconds."""
        return int(self.time() * 1e9)

    def perf_counter(self) -> float:
        """For what measures itself: it takes no time here."""
        return self.monotonic()

    def cluster_clock(self) -> ClusterClock:
        """The clock of one more process."""
        with mock.patch.object(server.runtime.clock, "time", self):
            return _RoundingClock(self.monotonic)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Has every process that is made meanwhile tell the time by this clock."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(server.process, "time", self))
            stack.enter_context(
                mock.patch.object(server.process, "ClusterClock", self.cluster_clock)
            )
            yield


class _RoundingClock(ClusterClock):
    """Milliseconds are rounded here, and not cut off: half of one is no matter."""

    def now(self) -> int:
        return round(self._monotonic() * 1000 + self._offset_ms)


class DeadlockError(AssertionError):
    """Everybody waits, and nobody sets the clock forward."""


class _Standstill(selectors.SelectSelector):
    """Nothing ever comes in from outside."""

    def select(self, timeout: float | None = None) -> list[Any]:
        """Answers at once, for all that happens here is ready or a matter of virtual time."""
        if timeout is None or timeout > 0:
            raise DeadlockError("nothing is ready")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until somebody sets it forward."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        super().__init__(_Standstill())

    def time(self) -> float:
        """Virtual seconds."""
        return (self.clock.now_ms - START_AT) / 1000

    async def quiet(self) -> None:
        """Waits until nothing goes on before the clock is set forward."""
        while True:
            await asyncio.sleep(0)
            if not self._ready:  # type: ignore[attr-defined]
                return

    @property
    def next_at(self) -> int | None:
        """The instant at which the next of all timers is due."""
        timers: list[Any] = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            heapq.heappop(timers)._scheduled = False
        if not timers:
            return None
        due_at: float = timers[0]._when * 1000
        return START_AT + math.ceil(due_at - FLOAT_ERROR_MS)


def run(main: Any) -> Any:
    """Runs a coroutine on a virtual loop; ``main`` is called with the loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        with loop.clock.installed():
            return runner.run(main(loop))
