"""The clock of a process: cluster time.

Durations come from the monotonic clock alone, so a step of any wall clock changes no
bill. What makes instants of different processes comparable is one offset to the clock
of Redis, taken when the process starts. Later beats only nudge it, by far less than a
bill could show: the drift of two quartzes, never a step. A step is noticed and said.
"""

import time
from typing import Protocol

NUDGE_MS = 0.05
"""The most that one beat a second moves the offset: 50 parts in a million."""
STEP_MS = 250
"""A difference that no drift explains: some wall clock was stepped."""


class Clock(Protocol):
    """Whatever tells the time: the cluster's in a server, a hand-set one in a test."""

    def now(self) -> int:
        """The instant, in epoch milliseconds."""


class ClusterClock:
    """Epoch milliseconds that run with this machine's monotonic clock."""

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000
        self._anchored = False
        self.stepped_ms = 0.0
        """How far the clock of Redis has gone away from cluster time; for operators."""

    def now(self) -> int:
        """The instant, in epoch milliseconds."""
        return int(time.monotonic() * 1000 + self._offset_ms)

    def delay_s(self, at_ms: int) -> float:
        """The time until ``at_ms``, in seconds; never negative."""
        return max(0.0, at_ms - time.monotonic() * 1000 - self._offset_ms) / 1000

    def observe(self, redis_ms: float, sent_at: float, received_at: float) -> None:
        """Redis's clock said ``redis_ms`` between two readings of ``time.monotonic``."""
        middle_ms = (sent_at + received_at) * 500
        difference_ms = redis_ms - middle_ms - self._offset_ms
        if not self._anchored:
            self._offset_ms += difference_ms
            self._anchored = True
            return
        self.stepped_ms = difference_ms if abs(difference_ms) > STEP_MS else 0.0
        if not self.stepped_ms:
            self._offset_ms += max(-NUDGE_MS, min(NUDGE_MS, difference_ms))
