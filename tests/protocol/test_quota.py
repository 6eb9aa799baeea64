"""Claims ask for whole increments, the best first, within bounds."""

import datetime
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.metering.quota import Offer, OfferBasis, Rest, month_after, month_ends_at
from protocol.metering.session import Standing
from protocol.metering.terms import MINUTE_MS, Terms, minutes_begun
from tests.protocol.examples import (
    NOW,
    identity_of,
    month_of,
    months_that_change_at,
    standing_of,
    terms_of,
)

any_terms = st.builds(
    terms_of,
    price_micros=st.sampled_from([0, 1, 777_777, 1_000_000]),
    first_increment_ms=st.sampled_from([1_000, 6_000, 30_000, 60_000]),
    next_increment_ms=st.sampled_from([1_000, 6_000, 7_000, 60_000]),
    free_ms=st.sampled_from([0, 60_000, 61_500]),
    counts_minutes=st.booleans(),
    session_cap_ms=st.sampled_from([0, 0, 90_500]),
    speed=st.sampled_from([1, 1, 10]),
)


def offer_basis_of(terms: Terms, elapsed_ms: int, settled_ms: int | None = None) -> OfferBasis:
    """The basis of a session with only its last second unsettled.

    ``settled_ms`` changes how much is settled.
    """
    if settled_ms is None:
        settled_ms = max(0, elapsed_ms - 1_000)
    kept = settled_ms // MINUTE_MS
    standing = standing_of(
        elapsed_ms=elapsed_ms,
        at=NOW + elapsed_ms // terms.speed,
        free_ms=terms.free_ms,
        settled_ms=settled_ms,
        charged_micros=terms.cost_micros(settled_ms, terms.free_ms),
        minutes_kept=kept,
        minute_at=NOW + kept * MINUTE_MS // terms.speed,
    )
    return OfferBasis(identity_of(terms), standing, month_of)


def positions_of(offers: tuple[Offer, ...]) -> list[int]:
    """The positions up to which the offers reach."""
    return [offer.grant.granted_ms for offer in offers]


@given(terms=any_terms, elapsed_ms=st.integers(0, 90_000), shrink=st.booleans())
def test_offers_lead_on_and_the_longest_comes_first(
    terms: Terms, elapsed_ms: int, shrink: bool
) -> None:
    offers = offer_basis_of(terms, elapsed_ms).offers(shrink=shrink)
    positions = positions_of(offers)
    assert positions == sorted(set(positions), reverse=True)
    assert offers
    assert all(position > elapsed_ms for position in positions if not terms.session_cap_ms)
    # There is always an offer that is considered, however little is left.
    assert any(offer.floor_ms == 0 for offer in offers)


@given(terms=any_terms, elapsed_ms=st.integers(0, 90_000), shrink=st.booleans())
def test_an_offer_holds_what_running_to_its_end_would_cost(
    terms: Terms, elapsed_ms: int, shrink: bool
) -> None:
    offer_basis = offer_basis_of(terms, elapsed_ms)
    charged_micros = offer_basis.standing.charged_micros
    for offer in offer_basis.offers(shrink=shrink):
        end_ms = offer.grant.granted_ms
        cost_micros = terms.cost_micros(end_ms, terms.free_ms)
        assert offer.grant.held_micros == max(0, cost_micros - charged_micros)
        held_minutes = sum(offer.grant.held_minutes.values())
        begun = minutes_begun(end_ms) - minutes_begun(offer_basis.standing.settled_ms)
        assert held_minutes == (begun if terms.counts_minutes else 0)
        # What more would take is more of something, or the same of everything.
        assert offer.more_micros >= offer.grant.held_micros
        assert sum(offer.more_minutes.values()) >= held_minutes


@given(terms=any_terms, elapsed_ms=st.integers(0, 90_000))
def test_offers_are_whole_increments_but_for_minutes_and_the_cap(
    terms: Terms, elapsed_ms: int
) -> None:
    for offer in offer_basis_of(terms, elapsed_ms).offers(shrink=False):
        end_ms = offer.grant.granted_ms
        if terms.price_micros and offer.grant.final is None:
            whole = terms.increment_end_ms(end_ms, terms.free_ms) == end_ms
            assert (
                whole
                or (terms.counts_minutes and end_ms % MINUTE_MS == 0)
                or (end_ms < terms.free_ms)
            )


@given(terms=any_terms, elapsed_ms=st.integers(0, 90_000), shrink=st.booleans())
def test_nothing_is_offered_beyond_the_cap(terms: Terms, elapsed_ms: int, shrink: bool) -> None:
    capped = msgspec.structs.replace(terms, session_cap_ms=90_500)
    for offer in offer_basis_of(capped, elapsed_ms).offers(shrink=shrink):
        assert offer.grant.granted_ms <= 90_500
        assert (offer.grant.final == "session_cap") == (offer.grant.granted_ms == 90_500)


def test_in_plenty_a_grant_reaches_a_margin_beyond_the_minute() -> None:
    offers = offer_basis_of(terms_of(), 0).offers(shrink=False)
    assert positions_of(offers) == [65_000, 5_000, 1_000]
    assert [offer.floor_ms for offer in offers] == [120_000, 20_000, 0]
    by_the_minute = terms_of(first_increment_ms=60_000, next_increment_ms=60_000)
    assert positions_of(offer_basis_of(by_the_minute, 0).offers(shrink=False)) == [120_000, 60_000]


def test_a_recalled_session_keeps_enough_to_run_on() -> None:
    assert positions_of(offer_basis_of(terms_of(), 10_500).offers(shrink=True)) == [12_000, 11_000]
    by_six = terms_of(first_increment_ms=30_000, next_increment_ms=6_000)
    assert positions_of(offer_basis_of(by_six, 10_500).offers(shrink=True)) == [30_000]


def test_free_time_is_granted_before_any_that_costs() -> None:
    terms = terms_of(free_ms=60_000)
    offers = offer_basis_of(terms, 0, 0).offers(shrink=False)
    assert [offer.grant.held_micros for offer in offers] == [83_333, 0]
    assert positions_of(offers) == [65_000, 60_000]


def test_a_begun_minute_is_offered_to_its_end() -> None:
    # The increment reaches to 63 s, and the second minute may not be had.
    terms = terms_of(counts_minutes=True, first_increment_ms=7_000, next_increment_ms=7_000)
    offers = offer_basis_of(terms, 56_500).offers(shrink=False)
    assert positions_of(offers) == [70_000, 63_000, 60_000]
    to_its_end = offers[-1]
    assert to_its_end.grant.held_minutes == {}  # its only minute is already used
    assert to_its_end.more_minutes == {"2026-05-01": 1}
    assert to_its_end.grant.held_micros == terms.cost_micros(63_000, 0) - terms.cost_micros(
        55_500, 0
    )


def test_the_rest_of_a_minute_causes_no_earlier_stop() -> None:
    terms = terms_of(counts_minutes=True, first_increment_ms=7_000, next_increment_ms=7_000)
    offer_basis = offer_basis_of(terms, 50_000, 50_000)
    (offer,) = [
        offer for offer in offer_basis.offers(shrink=False) if offer.grant.granted_ms == 56_000
    ]
    assert offer.more_minutes == offer.grant.held_minutes


def test_minutes_without_a_price_have_no_smaller_part() -> None:
    terms = terms_of(price_micros=0, counts_minutes=True)
    offers = offer_basis_of(terms, 59_500).offers(shrink=False)
    assert positions_of(offers) == [120_000, 65_000, 64_500, 60_000]


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("ahead_ms", [1, 500, 999])
def test_the_next_minute_is_offered_before_it_begins(shrink: bool, ahead_ms: int) -> None:
    """A claim offers the next minute before that minute begins.

    With only the minute under way, a session would claim ever more often and stop at its end.
    """
    terms = terms_of(price_micros=0, counts_minutes=True)
    offers = offer_basis_of(terms, 60_000 - ahead_ms).offers(shrink=shrink)
    assert [offer.grant.granted_ms for offer in offers if not offer.floor_ms] == [120_000, 60_000]


def test_a_recalled_session_keeps_no_later_minute() -> None:
    terms = terms_of(price_micros=0, counts_minutes=True)
    assert positions_of(offer_basis_of(terms, 59_000).offers(shrink=True)) == [60_000]
    offers = offer_basis_of(terms, 59_001).offers(shrink=True)
    assert positions_of(offers) == [120_000, 60_000]


def test_minutes_are_held_in_the_month_in_which_they_begin() -> None:
    terms = terms_of(counts_minutes=True)
    standing = standing_of()
    ends = {
        NOW - 1: {"2026-06-01": 2},
        NOW: {"2026-06-01": 2},
        NOW + 1: {"2026-05-01": 1, "2026-06-01": 1},
        NOW + 60_000: {"2026-05-01": 1, "2026-06-01": 1},
        NOW + 60_001: {"2026-05-01": 2},
    }
    for at, months in ends.items():
        offer_basis = OfferBasis(identity_of(terms), standing, months_that_change_at(at))
        assert offer_basis.offers(shrink=False)[0].grant.held_minutes == months, at


def lost(terms: Terms, elapsed_ms: int) -> Standing:
    """A session that was lost after this counted time, which is settled."""
    return msgspec.structs.replace(
        offer_basis_of(terms, elapsed_ms, elapsed_ms).standing, at=NOW, elapsed_ms=elapsed_ms
    )


@given(
    terms=any_terms,
    elapsed_ms=st.integers(0, 90_000),
    gap_ms=st.integers(0, 600_000),
    available_micros=st.integers(-1_000_000, 20_000_000),
    needed_micros=st.integers(0, 10_000_000),
)
def test_a_partly_covered_gap_is_final_unless_recall_helps(
    terms: Terms, elapsed_ms: int, gap_ms: int, available_micros: int, needed_micros: int
) -> None:
    offer_basis = OfferBasis(identity_of(terms), lost(terms, elapsed_ms), month_of)
    until_ms = elapsed_ms + gap_ms
    least_micros = available_micros - needed_micros
    offers = offer_basis.gap_offers(until_ms, (least_micros, available_micros))
    positions = positions_of(offers)
    assert positions == sorted(set(positions), reverse=True)
    assert len(offers) <= 2 * limits.GAP_PARTS_MAX + limits.GAP_MINUTES_MAX + 16
    for longer, offer in itertools.pairwise(offers):
        if offer.grant.granted_ms < until_ms:
            assert offer.floor_ms == 0
            assert offer.more_micros == longer.grant.held_micros
            assert offer.more_minutes == longer.grant.held_minutes


def test_a_billed_gap_is_offered_up_to_the_balance() -> None:
    terms = terms_of()
    offer_basis = OfferBasis(identity_of(terms), lost(terms, 10_000), month_of)
    positions = positions_of(offer_basis.gap_offers(600_000, (0, terms.cost_micros(123_000, 0))))
    assert 123_000 in positions
    counting = terms_of(price_micros=0, counts_minutes=True)
    offer_basis = OfferBasis(identity_of(counting), lost(counting, 10_000), month_of)
    positions = positions_of(offer_basis.gap_offers(310_000, (0, 0)))
    assert positions[-5:] == [300_000, 240_000, 180_000, 120_000, 60_000]


def test_each_minute_of_the_longest_gap_is_offered() -> None:
    terms = terms_of(price_micros=0, counts_minutes=True)
    offer_basis = OfferBasis(identity_of(terms), lost(terms, 0), month_of)
    until_ms = limits.RECONNECT_GRACE_MS_MAX + MINUTE_MS
    positions = positions_of(offer_basis.gap_offers(until_ms, (0, 0)))
    assert positions[-60:] == list(range(60 * MINUTE_MS, 0, -MINUTE_MS))


@pytest.mark.parametrize("needed_ms", [0, 1_000, 7_000, 31_000])
def test_each_increment_that_the_others_may_leave_is_offered(needed_ms: int) -> None:
    terms = terms_of()
    offer_basis = OfferBasis(identity_of(terms), lost(terms, 10_000), month_of)
    most_ms = 123_000
    available = terms.cost_micros(most_ms - needed_ms, 0), terms.cost_micros(most_ms, 0)
    positions = positions_of(offer_basis.gap_offers(600_000, available))
    assert set(range(most_ms - needed_ms, most_ms + 1, 1_000)) <= set(positions)


@pytest.mark.parametrize(
    ("month", "following"),
    [("2026-01-01", "2026-02-01"), ("2026-11-01", "2026-12-01"), ("2026-12-01", "2027-01-01")],
)
def test_month_after(month: str, following: str) -> None:
    assert month_after(month) == following


@pytest.mark.parametrize("month", ["2026-05-01", "2026-12-01"])
@given(away_ms=st.integers(-14 * 3_600_000, 14 * 3_600_000))
def test_a_month_ends_where_the_calendar_says(month: str, away_ms: int) -> None:
    year, number, _ = map(int, month_after(month).split("-"))
    begins = datetime.datetime(year, number, 1, tzinfo=datetime.UTC)
    ends_at = int(begins.timestamp()) * 1000 + away_ms
    assert month_ends_at(month, lambda at: month if at < ends_at else month_after(month)) == ends_at


# --- The rest, and slow answers -----------------------------------------------------------


@given(
    terms=any_terms,
    elapsed_ms=st.integers(0, 90_000),
    micros=st.integers(0, 3_000_000),
    minutes=st.integers(0, 6),
)
def test_the_low_rest_is_offered_first_and_never_exceeded(
    terms: Terms, elapsed_ms: int, micros: int, minutes: int
) -> None:
    offer_basis = offer_basis_of(terms, elapsed_ms)
    offers = offer_basis.offers(shrink=False, rest=Rest(micros, minutes))
    assert not any(offer.rest for offer in offers[1:])
    assert offers[0].rest or offers == offer_basis.offers(shrink=False)
    if offers[0].rest:
        end_ms = offers[0].grant.granted_ms
        assert 0 < end_ms - elapsed_ms <= 120_000 * terms.speed
        assert not terms.price_micros or terms.cost_micros(end_ms, terms.free_ms) <= micros
        assert not terms.counts_minutes or minutes_begun(end_ms) <= minutes
    assert not any(
        offer.rest for offer in offer_basis.offers(shrink=True, rest=Rest(micros, minutes))
    )


def test_a_rest_that_is_not_low_is_not_offered() -> None:
    offer_basis = offer_basis_of(terms_of(), 10_000)
    assert not offer_basis.offers(shrink=False, rest=Rest(2_200_000))[0].rest
    assert offer_basis.offers(shrink=False, rest=Rest(2_100_000))[0].grant.granted_ms == 126_000


def test_the_shortest_grants_outlast_two_answers() -> None:
    offer_basis = offer_basis_of(terms_of(), 10_000)
    assert positions_of(offer_basis.offers(shrink=False, response_ms=1_200))[1:3] == [
        15_000,
        13_000,
    ]
    assert positions_of(offer_basis.offers(shrink=True, response_ms=1_200)) == [11_000]


def test_of_a_share_that_is_known_no_more_is_offered() -> None:
    offer_basis = offer_basis_of(terms_of(), 10_000)
    offers = offer_basis.offers(shrink=False)
    now = NOW + 10_000
    assert positions_of(offer_basis.within(offers, now + 2_500)) == [13_000, 11_000]
    assert offer_basis.within(offers, now) == ()
    assert offer_basis.within(offers, now + 600_000) == offers
