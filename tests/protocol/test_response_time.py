"""How long Redis takes to answer, and how far ahead of a grant's end a claim is made for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.metering.counted_time import Course
from protocol.metering.response_time import ResponseTime
from protocol.metering.session import Grant
from tests.protocol.examples import session_of, terms_of


def bound_after(*measured_ms: float) -> int:
    """What is expected after these."""
    response_time = ResponseTime()
    for ms in measured_ms:
        response_time.measured(ms)
    return response_time.bound_ms


def test_nothing_is_expected_before_the_first_answer() -> None:
    assert bound_after() == 0


def test_steady_answers_are_expected_as_they_are() -> None:
    assert bound_after(*[20] * 40) in (20, 21)


def test_one_slow_answer_is_taken_seriously_and_many_fast_ones_after_it_too() -> None:
    assert bound_after(*[1] * 40, 800) >= 800
    assert bound_after(*[1] * 40, 800, *[1] * 40) < 50


@given(st.lists(st.floats(-10, 10_000), min_size=1))
def test_it_is_never_more_than_one_waits_for_an_answer(measured_ms: list[float]) -> None:
    assert 0 <= bound_after(*measured_ms) <= limits.REDIS_TIMEOUT_MS


@pytest.mark.parametrize(
    ("granted_ms", "response_ms", "claimed_at_ms"),
    [
        (65_000, 0, 61_000),  # proof of life for the minute is waited for
        (65_000, 1_500, 61_000),
        (1_000, 0, 500),
        (1_000, 800, 200),
        (1_000, 1_500, 0),
        (5_000, 1_500, 2_500),
    ],
)
def test_a_claim_is_made_so_early_that_its_answer_is_there(
    granted_ms: int, response_ms: int, claimed_at_ms: int
) -> None:
    session = session_of(grant=Grant(granted_ms=granted_ms))
    assert Course(session, 60_000, response_ms).claim_ms == claimed_at_ms


def test_where_time_runs_faster_a_claim_is_made_as_much_earlier() -> None:
    session = session_of(terms_of(speed=10), grant=Grant(granted_ms=10_000))
    assert Course(session, 60_000, 800).claim_ms == 2_000
