"""All timers of a process, behind one timer of the event loop.

A wheel of milliseconds: all timers of one millisecond share a bucket, and a heap contains only the
buckets, so setting and firing a timer costs the same for ten sessions as for ten thousand.
Deadlines come before ticks: a stop is never late because of a tick.
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterator

from server import limits as server_limits
from server.runtime.clock import Clock, ClusterClock
from server.runtime.isolation import isolated
from server.runtime.round_robin import RoundRobin


class Timer:
    """A callback that fires once at an instant, unless it is cancelled."""

    __slots__ = ("_callback", "at", "owner", "wheel")

    def __init__(
        self, at: int, callback: Callable[[int], None], owner: Hashable | None = None
    ) -> None:
        self.at = at
        self.owner = owner
        self.wheel: Wheel | None = None
        """The wheel that contains the timer, until it is due."""
        self._callback: Callable[[int], None] | None = callback

    @property
    def is_cancelled(self) -> bool:
        """Whether the timer was cancelled, or has fired."""
        return self._callback is None

    def cancel(self) -> None:
        """Cancels the timer; its wheel frees its place later, see :class:`Wheel`."""
        if self._callback is not None:
            self._callback = None
            if self.wheel is not None:
                self.wheel.cancelled_one()

    def fire(self, now_ms: int) -> None:
        """Calls the callback, once."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(now_ms)


class Wheel:
    """Timers in buckets of a millisecond.

    A single timer is its own bucket. A cancelled timer keeps its place until its time comes, which
    for most timers is soon. A token, however, may be good for years, and a peer may renew it
    without limit. So when most of the timers are cancelled, the wheel removes all cancelled timers
    together.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, Timer | list[Timer]] = {}
        self._order: list[int] = []
        self._size = 0
        self._cancelled = 0

    def add(self, timer: Timer) -> None:
        """Puts a timer in its bucket."""
        timer.wheel = self
        self._size += 1
        bucket = self._buckets.get(timer.at)
        if bucket is None:
            self._buckets[timer.at] = timer
            heapq.heappush(self._order, timer.at)
        elif isinstance(bucket, Timer):
            self._buckets[timer.at] = [bucket, timer]
        else:
            bucket.append(timer)

    def __iter__(self) -> Iterator[Timer]:
        """All timers, including cancelled ones."""
        for bucket in self._buckets.values():
            yield from [bucket] if isinstance(bucket, Timer) else bucket

    @property
    def next_at(self) -> int | None:
        """The instant of the earliest bucket; None when the wheel is empty."""
        return self._order[0] if self._order else None

    def pop_due(self, now_ms: int) -> list[Timer]:
        """Takes out the earliest bucket's timers; empty if none is due."""
        if not self._order or self._order[0] > now_ms:
            return []
        bucket = self._buckets.pop(heapq.heappop(self._order))
        due = [bucket] if isinstance(bucket, Timer) else bucket
        self._size -= len(due)
        for timer in due:
            timer.wheel = None
            self._cancelled -= timer.is_cancelled
        return due

    def cancelled_one(self) -> None:
        """Counts that one of the timers here was cancelled."""
        self._cancelled += 1
        if (
            self._cancelled > server_limits.TIMERS_CANCELLED_MAX
            and 2 * self._cancelled > self._size
        ):
            self._throw_out()

    def _throw_out(self) -> None:
        kept = [timer for timer in self if not timer.is_cancelled]
        self._buckets.clear()
        self._order.clear()
        self._size = self._cancelled = 0
        for timer in kept:
            self.add(timer)


class Timers:
    """The timers of a process.

    Without an event loop (tests) call ``run_due`` by hand.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._deadlines = Wheel()
        self._ticks = Wheel()
        self._due = RoundRobin[Timer]()
        """Deadlines that are due, by their owner."""
        self._due_ticks: deque[Timer] = deque()
        """Ticks that are due, and for which no turn had room yet."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._armed_at: int | None = None

    def start(self) -> None:
        """Lets the running event loop fire timers from now on."""
        self._loop = asyncio.get_running_loop()
        self._arm()

    def stop(self) -> None:
        """Stops all timers."""
        self._loop = None
        if self._handle is not None:
            self._handle.cancel()

    def deadline(
        self, at: int, callback: Callable[[int], None], owner: Hashable | None = None
    ) -> Timer:
        """Calls ``callback(now_ms)`` at ``at``, before any tick that is due as well.

        When more deadlines are due than one turn may fire, the owners take turns with one deadline
        each. An owner with hundreds of simultaneous deadlines so delays no other owner's.
        """
        return self._add(self._deadlines, Timer(at, callback, owner))

    def tick(self, at: int, callback: Callable[[int], None]) -> Timer:
        """Calls ``callback(now_ms)`` at ``at``, when no deadline is due."""
        return self._add(self._ticks, Timer(at, callback))

    def _add(self, wheel: Wheel, timer: Timer) -> Timer:
        wheel.add(timer)
        if self._armed_at is None or timer.at < self._armed_at:
            self._arm()
        return timer

    @property
    def next_at(self) -> int | None:
        """The instant of the earliest timer."""
        found = [at for at in (self._deadlines.next_at, self._ticks.next_at) if at is not None]
        found += [timer.at for timer in self._due.heads()]
        found += [timer.at for timer in itertools.islice(self._due_ticks, 1)]
        return min(found) if found else None

    def run_due(self, now_ms: int) -> None:
        """Fires all due timers that fit into one turn, deadlines first.

        A timer that raises does not stop the others.
        """
        left = server_limits.TICKS_PER_TURN_MAX
        while left > 0:
            while due := self._deadlines.pop_due(now_ms):
                for timer in due:
                    self._due.append(timer.owner, timer)
            if self._due:
                left -= server_limits.DEADLINE_TICKS * self._fire_one(now_ms)
                continue
            if not self._due_ticks:
                self._due_ticks.extend(self._ticks.pop_due(now_ms))
            if not self._due_ticks:
                return
            left -= self._fire_tick(now_ms)

    def _fire_one(self, now_ms: int) -> bool:
        """Fires a deadline of the next owner; False if cancelled meanwhile."""
        timer = self._due.popleft()
        is_live = not timer.is_cancelled
        isolated("timer", timer.fire, now_ms)
        return is_live

    def _fire_tick(self, now_ms: int) -> bool:
        """Fires the oldest waiting tick; False if it was cancelled meanwhile.

        Sessions that began in one instant have their ticks in one millisecond, hundreds of them.
        """
        timer = self._due_ticks.popleft()
        is_live = not timer.is_cancelled
        isolated("timer", timer.fire, now_ms)
        return is_live

    def _arm(self) -> None:
        if self._loop is None:
            return
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._armed_at = self.next_at
        if self._armed_at is not None:
            assert isinstance(self.clock, ClusterClock)
            self._handle = self._loop.call_later(self.clock.delay_s(self._armed_at), self._wake)

    def _wake(self) -> None:
        self._handle = None
        self._armed_at = None
        try:
            self.run_due(self.clock.now())
        finally:
            self._arm()
