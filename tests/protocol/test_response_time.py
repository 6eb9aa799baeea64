"""Response times of Redis, and how long to wait for an answer."""

from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.metering.response_time import ResponseTime


def bound_after(*measured_ms: float) -> int:
    """The wait that is expected after these response times."""
    response_time = ResponseTime()
    for ms in measured_ms:
        response_time.measured(ms)
    return response_time.bound_ms


def test_nothing_is_expected_before_the_first_answer() -> None:
    assert bound_after() == 0


def test_steady_answers_are_expected_as_they_are() -> None:
    assert bound_after(*[20] * 40) in (20, 21)


def test_both_slow_and_fast_answers_change_the_wait() -> None:
    assert bound_after(*[1] * 40, 800) >= 800
    assert bound_after(*[1] * 40, 800, *[1] * 40) < 50


@given(st.lists(st.floats(-10, 10_000), min_size=1))
def test_the_wait_never_exceeds_the_time_out(measured_ms: list[float]) -> None:
    assert 0 <= bound_after(*measured_ms) <= limits.REDIS_TIMEOUT_MS
