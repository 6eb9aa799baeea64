"""Steps settle each minute once, and in sum the whole cost."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.metering.records import MinuteUsed, SessionEnded
from protocol.metering.session import Grant, SessionState
from protocol.metering.states import Phase
from protocol.metering.steps import Settling, Step, ended_record, kept_offer
from protocol.metering.terms import MINUTE_MS, Terms
from tests.protocol.examples import (
    CREDIT,
    NOW,
    identity_of,
    month_of,
    session_of,
    standing_of,
    terms_of,
)

some_terms = st.builds(
    terms_of,
    price_micros=st.integers(0, 3 * CREDIT),
    free_ms=st.integers(0, 150_000),
    first_increment_ms=st.sampled_from([1_000, 30_000, 60_000]),
    next_increment_ms=st.sampled_from([1_000, 6_000, 60_000]),
    counts_minutes=st.booleans(),
)


def settling(terms: Terms, **standing: Any) -> Settling:
    return Settling(
        identity_of(terms), month_of, standing_of(free_ms=terms.free_ms, minute_at=NOW, **standing)
    )


@given(terms=some_terms, positions_ms=st.lists(st.integers(0, 600_000), min_size=1, max_size=8))
def test_parts_settle_to_what_the_whole_costs(terms: Terms, positions_ms: list[int]) -> None:
    made = settling(terms)
    used: dict[str, int] = {}
    for position_ms in positions_ms:
        made.used_minutes = {}
        made.settle(position_ms)
        used = {"2026-05-01": used.get("2026-05-01", 0) + sum(made.used_minutes.values())}
    last_ms = max(positions_ms)
    standing = made.standing
    assert standing.settled_ms == last_ms
    assert standing.charged_micros == terms.cost_micros(last_ms, terms.free_ms)
    assert standing.minutes_kept == last_ms // MINUTE_MS
    assert sum(used.values()) == (standing.counted_minutes if terms.counts_minutes else 0)
    made.standing = msgspec.structs.replace(standing, elapsed_ms=last_ms)
    made.end(NOW + last_ms, "client", None)
    minutes = [record for record in made.records if isinstance(record, MinuteUsed)]
    assert [one.minute for one in minutes] == list(range(len(minutes)))
    assert [one.seconds for one in minutes[:-1]] == [60] * (len(minutes) - 1)
    assert sum(one.credits_micros for one in minutes) == standing.charged_micros
    assert sum(one.free_ms for one in minutes) == min(terms.free_ms, last_ms)
    assert isinstance(made.records[-1], SessionEnded)


def test_one_claim_keeps_a_bounded_number_of_minutes() -> None:
    made = settling(terms_of())
    made.settle(1_000 * MINUTE_MS)
    assert len(made.records) == limits.MINUTES_PER_CLAIM_MAX
    assert made.standing.settled_ms == limits.MINUTES_PER_CLAIM_MAX * MINUTE_MS
    made.settle(1_000 * MINUTE_MS)
    assert len(made.records) == 2 * limits.MINUTES_PER_CLAIM_MAX


def test_settled_uncovered_time_is_debt() -> None:
    made = settling(terms_of(), ungranted=((10_000, 30_000), (50_000, 70_000)))
    made.settle(20_000)
    assert (made.standing.uncovered_ms, made.standing.ungranted) == (
        10_000, ((10_000, 30_000), (50_000, 70_000)),
    )  # fmt: skip
    made.settle(60_000)
    assert (made.standing.uncovered_ms, made.standing.ungranted) == (30_000, ((50_000, 70_000),))


@pytest.mark.parametrize(("settled_ms", "held"), [(0, CREDIT), (30_000, CREDIT // 2)])
def test_the_held_rest_is_kept_minus_the_charge(settled_ms: int, held: int) -> None:
    before = session_of(grant=Grant(granted_ms=MINUTE_MS, held_micros=CREDIT))
    made = Settling(before.identity, month_of, before.standing)
    made.settle(settled_ms)
    kept = kept_offer(made.offer_basis(), before)
    assert (kept.grant.granted_ms, kept.grant.held_micros) == (MINUTE_MS, held)


def test_a_reported_session_began_and_ended_where_its_minutes_did() -> None:
    standing = standing_of(
        Phase.ENDED, ended_at=NOW, reason="client", segments=((NOW - 5, NOW - 1), (NOW, NOW + 9))
    )
    record = ended_record(identity_of(is_reported=True), standing)
    assert (record.started_at, record.ended_at) == (NOW - 5, NOW + 9)
    record = ended_record(identity_of(), standing)
    assert (record.started_at, record.ended_at) == (NOW, NOW)


def test_a_step_tells_the_minutes_that_it_completes() -> None:
    made = settling(terms_of())
    before = SessionState(made.identity, made.standing, Grant())
    made.settle(2 * MINUTE_MS + 500)
    step = Step(before, made.standing, "2026-05-01", records=tuple(made.records))
    assert step.charge_micros == made.standing.charged_micros
    assert [msgspec.json.decode(one)["minute"] for one in step.minute_messages] == [0, 1]
    assert step.waits_for_others
    kept = msgspec.structs.replace(step, keep=kept_offer(made.offer_basis(), before))
    assert not kept.waits_for_others
