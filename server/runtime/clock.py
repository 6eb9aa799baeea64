"""Cluster time: the clock of a process, comparable between processes.

Durations come from the monotonic clock alone, so a step of any wall clock changes no bill. One
offset makes instants of different processes comparable. The first process takes it from the clock
of Redis, and every later process from the living ones: they hand cluster time on, even when the
clock of Redis says otherwise by then. Later heartbeats only nudge the offset, by far less than a
bill could show: they correct the drift of two quartzes, never a step. A step is detected and
logged, and cluster time keeps that distance from the clock of Redis.

An answer of Redis is about half a round trip old: the shorter the round trip, the more exact the
answer. A process that took its time from a slow answer corrects the offset after a faster answer, a
little with each heartbeat. The time that the clock returns never goes back.
"""

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from server import limits as server_limits


class Clock(Protocol):
    """A clock: cluster time, or a test's own time."""

    def now(self) -> int:
        """The present instant, in epoch milliseconds."""


class Sample(NamedTuple):
    """A time that Redis answered, and the round trip of the question."""

    redis_ms: float
    middle_ms: float
    """The middle between question and answer by the monotonic clock: the most likely instant of the
    reading."""
    round_trip_ms: float

    @classmethod
    def of(cls, redis_ms: float, sent_at: float, received_at: float) -> "Sample":
        """The sample of a question at ``sent_at``; both arguments are monotonic seconds."""
        return cls(redis_ms, (sent_at + received_at) * 500, (received_at - sent_at) * 1000)


class ClusterClock:
    """Epoch milliseconds that run with this machine's monotonic clock."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset_ms = time.time() * 1000 - monotonic() * 1000
        self.stepped_ms = 0.0
        """How far the clock of Redis was stepped away from cluster time; for operators."""
        self._redis_ahead_ms = 0.0
        self._unsure_ms = 0.0
        """Possible error of the answer that set the clock: half of its round trip."""
        self._behind_ms = 0.0
        """How far the clock may be behind other processes, whose heartbeats were late while Redis's
        clock was stepped."""
        self._newest_ms = 0

    def now(self) -> int:
        """The present instant, in epoch milliseconds.

        Once the clock is set, it never goes back.
        """
        now_ms = int(self.at_ms(self._monotonic()))
        self._newest_ms = max(self._newest_ms, now_ms)
        return self._newest_ms

    def at_ms(self, reading_s: float) -> float:
        """The instant of a reading of the monotonic clock, in epoch milliseconds."""
        return reading_s * 1000 + self._offset_ms

    def redis_ms(self) -> float:
        """The clock of Redis now, as far as this process knows."""
        return self.at_ms(self._monotonic()) + self._redis_ahead_ms

    def delay_s(self, at_ms: int) -> float:
        """The time until ``at_ms``, in seconds; never negative."""
        return max(0.0, at_ms - self.at_ms(self._monotonic())) / 1000

    def reading(self) -> float:
        """A reading of the monotonic clock, in seconds, for samples and ``observe``."""
        return self._monotonic()

    def set(self, sample: "Sample", ahead_ms: float, behind_ms: float = 0.0) -> None:
        """Sets the clock by a sample of Redis.

        The clock of Redis is ``ahead_ms`` ahead of cluster time; or by up to ``behind_ms`` less,
        when no process could tell exactly.
        """
        self._behind_ms = behind_ms
        self._offset_ms = sample.redis_ms - ahead_ms - sample.middle_ms
        self._unsure_ms = sample.round_trip_ms / 2
        self._newest_ms = 0
        self._redis_ahead_ms = ahead_ms
        self.stepped_ms = _step(ahead_ms)

    def observe(self, redis_ms: float, sent_at: float) -> None:
        """Takes in an answer of Redis to a question at ``sent_at``.

        The answer was ``redis_ms``, just now.
        """
        sample = Sample.of(redis_ms, sent_at, self._monotonic())
        if sample.round_trip_ms > server_limits.CLOCK_DRIFT_MS_MAX:
            return
        difference_ms = redis_ms - sample.middle_ms - self._offset_ms
        self._redis_ahead_ms = difference_ms
        drift_ms = difference_ms - self.stepped_ms
        sure_ms = sample.round_trip_ms / 2
        if abs(drift_ms) > max(server_limits.CLOCK_DRIFT_MS_MAX, self._unsure_ms + sure_ms):
            self.stepped_ms = _step(difference_ms)
            self._unsure_ms = 0.0
            return
        # The possible error of a slow answer is corrected in larger steps.
        most_ms = (
            server_limits.CLOCK_SLEW_MS_MAX
            if self._unsure_ms > sure_ms
            else server_limits.CLOCK_NUDGE_MS_MAX
        )
        moved_ms = max(-most_ms, min(most_ms, drift_ms))
        self._offset_ms += moved_ms
        self._unsure_ms = min(self._unsure_ms, max(sure_ms, abs(drift_ms - moved_ms)))

    def follow(self, proof_ms: int) -> None:
        """Takes in another process's proof of life at ``proof_ms``.

        ``proof_ms`` is by that process's clock.
        """
        behind_ms = proof_ms - self.at_ms(self._monotonic())
        if 0 < behind_ms <= self._behind_ms:
            moved_ms = min(server_limits.CLOCK_SLEW_MS_MAX, behind_ms)
            self._offset_ms += moved_ms
            self._behind_ms -= moved_ms
            self._redis_ahead_ms -= moved_ms
            self.stepped_ms -= moved_ms


def _step(difference_ms: float) -> float:
    return difference_ms if abs(difference_ms) > server_limits.CLOCK_DRIFT_MS_MAX else 0.0
