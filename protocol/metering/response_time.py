"""How long Redis takes to answer, smoothed as TCP smooths round trips (RFC 6298)."""

from protocol import limits

GAIN = 1 / 8
"""What one measurement counts in the mean."""
DEVIATION_GAIN = 1 / 4
DEVIATIONS = 4


class ResponseTime:
    """The time that an answer takes, from what was measured so far."""

    __slots__ = ("_deviation_ms", "_mean_ms")

    def __init__(self) -> None:
        self._mean_ms: float | None = None
        self._deviation_ms = 0.0

    def measured(self, ms: float) -> None:
        """Takes a measurement; of an answer that did not come, the time that was waited."""
        ms = min(max(0.0, ms), limits.REDIS_TIMEOUT_MS)
        if self._mean_ms is None:
            self._mean_ms, self._deviation_ms = ms, ms / 2
            return
        self._deviation_ms += DEVIATION_GAIN * (abs(ms - self._mean_ms) - self._deviation_ms)
        self._mean_ms += GAIN * (ms - self._mean_ms)

    @property
    def bound_ms(self) -> int:
        """Within this nearly every answer is there; 0 before the first measurement, and never
        more than one waits for an answer."""
        if self._mean_ms is None:
            return 0
        bound_ms = self._mean_ms + DEVIATIONS * self._deviation_ms
        return min(limits.REDIS_TIMEOUT_MS, int(bound_ms) + 1)
