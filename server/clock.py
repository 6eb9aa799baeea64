"""The clock of a process: cluster time.

Durations come from the monotonic clock alone, so a step of any wall clock changes no
bill. What makes instants of different processes comparable is one offset, which the first
process takes from the clock of Redis, and every later one from those that live: they hand
cluster time on, whatever the clock of Redis says by then. Later beats only nudge it, by
far less than a bill could show: the drift of two quartzes, never a step. A step is noticed
and said, and cluster time stays that far away from the clock of Redis.
"""

import time
from collections.abc import Callable
from typing import Protocol

NUDGE_MS = 0.05
"""The most that one beat a second moves the offset: 50 parts in a million."""
STEP_MS = 250
"""A difference that no drift explains: some wall clock was stepped. An answer that took so
long to come says nothing about the clock."""


class Clock(Protocol):
    """Whatever tells the time: the cluster's in a server, a hand-set one in a test."""

    def now(self) -> int:
        """The instant, in epoch milliseconds."""


class ClusterClock:
    """Epoch milliseconds that run with this machine's monotonic clock."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset_ms = time.time() * 1000 - monotonic() * 1000
        self.stepped_ms = 0.0
        """How far the clock of Redis has gone away from cluster time; for operators."""
        self._redis_ahead_ms = 0.0

    def now(self) -> int:
        """The instant, in epoch milliseconds."""
        return int(self.at_ms(self._monotonic()))

    def at_ms(self, reading_s: float) -> float:
        """The instant of a reading of the monotonic clock, in epoch milliseconds."""
        return reading_s * 1000 + self._offset_ms

    def redis_ms(self) -> float:
        """What the clock of Redis says now, as far as this process knows."""
        return self.at_ms(self._monotonic()) + self._redis_ahead_ms

    def delay_s(self, at_ms: int) -> float:
        """The time until ``at_ms``, in seconds; never negative."""
        return max(0.0, at_ms - self.at_ms(self._monotonic())) / 1000

    def reading(self) -> float:
        """A reading of the monotonic clock, in seconds, for ``anchor`` and ``observe``."""
        return self._monotonic()

    def anchor(self, cluster_ms: float, redis_ms: float, sent_at: float) -> None:
        """It was ``cluster_ms`` when Redis said ``redis_ms``, which was asked at ``sent_at``."""
        middle_ms = (sent_at + self._monotonic()) * 500
        self._offset_ms = cluster_ms - middle_ms
        self._redis_ahead_ms = redis_ms - cluster_ms
        self.stepped_ms = _step(self._redis_ahead_ms)

    def observe(self, redis_ms: float, sent_at: float) -> None:
        """Redis said ``redis_ms`` just now, to what was asked at ``sent_at``."""
        received_at = self._monotonic()
        if (received_at - sent_at) * 1000 > STEP_MS:
            return
        difference_ms = redis_ms - (sent_at + received_at) * 500 - self._offset_ms
        self._redis_ahead_ms = difference_ms
        drift_ms = difference_ms - self.stepped_ms
        if abs(drift_ms) > STEP_MS:
            self.stepped_ms = _step(difference_ms)
        else:
            self._offset_ms += max(-NUDGE_MS, min(NUDGE_MS, drift_ms))


def _step(difference_ms: float) -> float:
    return difference_ms if abs(difference_ms) > STEP_MS else 0.0
