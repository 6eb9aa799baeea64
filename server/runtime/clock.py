"""The clock of a process: cluster time.

Durations come from the monotonic clock alone, so a step of any wall clock changes no
bill. What makes instants of different processes comparable is one offset, which the first
process takes from the clock of Redis, and every later one from those that live: they hand
cluster time on, whatever the clock of Redis says by then. Later beats only nudge it, by
far less than a bill could show: the drift of two quartzes, never a step. A step is noticed
and said, and cluster time stays that far away from the clock of Redis.

What Redis says is half a round trip old, or so: the shorter the round trip, the surer it is. A
process that took its time from a slow answer corrects it once a faster one comes, a little with
each beat. The time that it says never goes back.
"""

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from server import limits as server_limits


class Clock(Protocol):
    """Whatever tells the time: the cluster's in a server, a hand-set one in a test."""

    def now(self) -> int:
        """The instant, in epoch milliseconds."""


class Sample(NamedTuple):
    """What Redis said of the time, and how long it took to say it."""

    redis_ms: float
    middle_ms: float
    """The middle between question and answer, by the monotonic clock: most likely it was then."""
    round_trip_ms: float

    @classmethod
    def of(cls, redis_ms: float, sent_at: float, received_at: float) -> "Sample":
        """The sample of a question at ``sent_at``, in seconds of the monotonic clock."""
        return cls(redis_ms, (sent_at + received_at) * 500, (received_at - sent_at) * 1000)


class ClusterClock:
    """Epoch milliseconds that run with this machine's monotonic clock."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset_ms = time.time() * 1000 - monotonic() * 1000
        self.stepped_ms = 0.0
        """How far the clock of Redis has gone away from cluster time; for operators."""
        self._redis_ahead_ms = 0.0
        self._unsure_ms = 0.0
        """How far off the answer may be that set the clock: half of its round trip."""
        self._behind_ms = 0.0
        """How far it may be behind others, whose word was long on its way and Redis stepped."""
        self._newest_ms = 0

    def now(self) -> int:
        """The instant, in epoch milliseconds. Once the clock is set it never goes back."""
        now_ms = int(self.at_ms(self._monotonic()))
        self._newest_ms = max(self._newest_ms, now_ms)
        return self._newest_ms

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
        """A reading of the monotonic clock, in seconds, for samples and ``observe``."""
        return self._monotonic()

    def set(self, sample: "Sample", ahead_ms: float, behind_ms: float = 0.0) -> None:
        """Sets the clock by what Redis said, whose clock is ``ahead_ms`` of cluster time; less
        by ``behind_ms`` at most, where no process could say it better."""
        self._behind_ms = behind_ms
        self._offset_ms = sample.redis_ms - ahead_ms - sample.middle_ms
        self._unsure_ms = sample.round_trip_ms / 2
        self._newest_ms = 0
        self._redis_ahead_ms = ahead_ms
        self.stepped_ms = _step(ahead_ms)

    def observe(self, redis_ms: float, sent_at: float) -> None:
        """Redis said ``redis_ms`` just now, to what was asked at ``sent_at``."""
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
        # Of what a slow answer may have been off by, more is corrected at once.
        most_ms = (
            server_limits.CLOCK_SLEW_MS_MAX
            if self._unsure_ms > sure_ms
            else server_limits.CLOCK_NUDGE_MS_MAX
        )
        moved_ms = max(-most_ms, min(most_ms, drift_ms))
        self._offset_ms += moved_ms
        self._unsure_ms = min(self._unsure_ms, max(sure_ms, abs(drift_ms - moved_ms)))

    def follow(self, proof_ms: int) -> None:
        """Another process has given a proof of life at ``proof_ms`` already, by its clock."""
        behind_ms = proof_ms - self.at_ms(self._monotonic())
        if 0 < behind_ms <= self._behind_ms:
            moved_ms = min(server_limits.CLOCK_SLEW_MS_MAX, behind_ms)
            self._offset_ms += moved_ms
            self._behind_ms -= moved_ms
            self._redis_ahead_ms -= moved_ms
            self.stepped_ms -= moved_ms


def _step(difference_ms: float) -> float:
    return difference_ms if abs(difference_ms) > server_limits.CLOCK_DRIFT_MS_MAX else 0.0
