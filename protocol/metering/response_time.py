"""Redis's response time, smoothed as TCP smooths round trips (RFC 6298)."""

from protocol import limits

GAIN = 1 / 8
"""The weight of one measurement in the mean."""
DEVIATION_GAIN = 1 / 4
DEVIATIONS = 4


class ResponseTime:
    """The response time of Redis, estimated from measurements."""

    __slots__ = ("_deviation_ms", "_mean_ms")

    def __init__(self) -> None:
        self._mean_ms: float | None = None
        self._deviation_ms = 0.0

    def measured(self, ms: float) -> None:
        """Takes a measurement in ms; for a missing answer, the time waited."""
        ms = min(max(0.0, ms), limits.REDIS_TIMEOUT_MS)
        if self._mean_ms is None:
            self._mean_ms, self._deviation_ms = ms, ms / 2
            return
        self._deviation_ms += DEVIATION_GAIN * (abs(ms - self._mean_ms) - self._deviation_ms)
        self._mean_ms += GAIN * (ms - self._mean_ms)

    @property
    def bound_ms(self) -> int:
        """The time in ms within which nearly every answer arrives.

        0 before the first measurement; never more than ``REDIS_TIMEOUT_MS``, the longest wait.
        """
        if self._mean_ms is None:
            return 0
        bound_ms = self._mean_ms + DEVIATIONS * self._deviation_ms
        return min(limits.REDIS_TIMEOUT_MS, int(bound_ms) + 1)
