"""Steps settle each minute once, and in sum the whole cost."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.metering.quota import Rest
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


@given(
    terms=some_terms,
    cap_ms=st.sampled_from([0, 100_000, 182_000, 186_000]),
    elapsed_ms=st.integers(0, 180_000),
    minutes=st.integers(1, 5),
)
def test_a_kept_grant_lacks_what_its_offer_lacked(
    terms: Terms, cap_ms: int, elapsed_ms: int, minutes: int
) -> None:
    """Also where a month ends the grant inside an increment."""
    terms = msgspec.structs.replace(terms, session_cap_ms=cap_ms)
    elapsed_ms = min(elapsed_ms, cap_ms or elapsed_ms)
    made = settling(terms)
    made.settle(elapsed_ms)
    made.standing = msgspec.structs.replace(made.standing, elapsed_ms=elapsed_ms)
    basis = made.offer_basis()
    for offer in basis.offers(shrink=False, rest=Rest(None, minutes)):
        kept = kept_offer(basis, SessionState(made.identity, made.standing, offer.grant))
        assert kept.grant == offer.grant
        assert (kept.more_micros, kept.more_minutes) == (offer.more_micros, offer.more_minutes)


def test_a_kept_grant_before_the_cap_does_not_end_at_the_cap() -> None:
    terms = terms_of(
        first_increment_ms=7_000, next_increment_ms=7_000, counts_minutes=True,
        session_cap_ms=182_000,
    )  # fmt: skip
    made = settling(terms)
    made.settle(120_000)
    made.standing = msgspec.structs.replace(made.standing, elapsed_ms=120_000)
    grant = Grant(3 * MINUTE_MS, made.offer_basis().held_micros(3 * MINUTE_MS), {month_of(0): 1})
    kept = kept_offer(made.offer_basis(), SessionState(made.identity, made.standing, grant))
    assert kept.grant == grant
    assert kept.more_micros == grant.held_micros
    assert kept.more_minutes == {month_of(0): 2}


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
