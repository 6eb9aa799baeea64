"""A grant is extended early, so the answer precedes the grant's end."""

import pytest

from protocol.metering.counted_time import CountedTime
from protocol.metering.session import Grant
from tests.protocol.examples import session_of, terms_of


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
def test_a_claim_is_early_enough_for_its_answer(
    granted_ms: int, response_ms: int, claimed_at_ms: int
) -> None:
    session = session_of(grant=Grant(granted_ms=granted_ms))
    assert CountedTime(session, 60_000, response_ms).claim_ms == claimed_at_ms


def test_at_a_higher_speed_a_claim_is_made_earlier() -> None:
    session = session_of(terms_of(speed=10), grant=Grant(granted_ms=10_000))
    assert CountedTime(session, 60_000, 800).claim_ms == 2_000
