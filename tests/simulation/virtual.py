"""Virtual time: a clock set by hand, and its event loop.

Every wait of the product (time-outs, retries, heartbeats, the timer wheel) is a timer of the event
loop. Such a wait ends when the clock is set forward, and not before. Between two instants only
ready callbacks run, so every run with the same input is the same.
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
"""Clocks are read a quarter of a millisecond late, against rounding errors of floats."""
FLOAT_ERROR_MS = 0.001
"""A timer that is due at most this long after a millisecond is due at that millisecond."""


class VirtualClock:
    """True time, and the errors of the wall clocks."""

    def __init__(self) -> None:
        self.now_ms = START_AT
        self.redis_ahead_ms = 0
        """By how much the wall clock of Redis's host has been stepped."""
        self.wall_ahead_ms = 0
        """By how much the wall clocks of the processes' hosts have been stepped."""

    def now(self) -> int:
        """The current instant."""
        return self.now_ms

    # The functions that the product uses of the module ``time``

    def monotonic(self) -> float:
        """Seconds since the beginning; unaffected by steps of wall clocks."""
        return (self.now_ms - START_AT + FRACTION_MS) / 1000

    def time(self) -> float:
        """What the wall clock of a process's host shows, in seconds."""
        return (self.now_ms + self.wall_ahead_ms + FRACTION_MS) / 1000

    def time_ns(self) -> int:
        """The same in nanoseconds."""
        return int(self.time() * 1e9)

    def perf_counter(self) -> float:
        """Always the same within an instant: measured work takes no virtual time."""
        return self.monotonic()

    def cluster_clock(self) -> ClusterClock:
        """A cluster clock for one more process."""
        with mock.patch.object(server.runtime.clock, "time", self):
            return _RoundingClock(self.monotonic)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Makes every process that is created in this context use this clock."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(server.process, "time", self))
            stack.enter_context(
                mock.patch.object(server.process, "ClusterClock", self.cluster_clock)
            )
            yield


class _RoundingClock(ClusterClock):
    """Rounds to milliseconds.

    The product's clock cuts off; half a millisecond does not matter.
    """

    def now(self) -> int:
        return round(self._monotonic() * 1000 + self._offset_ms)


class DeadlockError(AssertionError):
    """Every task waits, and nothing sets the clock forward."""


class _Standstill(selectors.SelectSelector):
    """A selector to which nothing ever arrives from outside."""

    def select(self, timeout: float | None = None) -> list[Any]:
        """Returns at once: everything here is ready, or waits for virtual time."""
        if timeout is None or timeout > 0:
            raise DeadlockError("nothing is ready")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until the clock is set."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        super().__init__(_Standstill())

    def time(self) -> float:
        """Virtual seconds."""
        return (self.clock.now_ms - START_AT) / 1000

    async def quiet(self) -> None:
        """Waits until no callback is ready before the clock is set forward."""
        while True:
            await asyncio.sleep(0)
            if not self._ready:  # type: ignore[attr-defined]
                return

    @property
    def next_at(self) -> int | None:
        """The instant at which the next timer is due; None without timers."""
        timers: list[Any] = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            heapq.heappop(timers)._scheduled = False
        if not timers:
            return None
        due_at: float = timers[0]._when * 1000
        return START_AT + math.ceil(due_at - FLOAT_ERROR_MS)


def run(main: Any) -> Any:
    """Runs a coroutine on a virtual loop; ``main`` gets the loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        with loop.clock.installed():
            return runner.run(main(loop))
