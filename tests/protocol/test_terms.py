"""From counted time to money and exactly back: increments and free time."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.metering.terms import MINUTE_MS, Terms, minutes_begun
from tests.protocol.examples import TERMS, terms_of

INCREMENTS = [(60_000, 60_000), (30_000, 6_000), (1_000, 1_000), (6_000, 30_000), (1, 1)]

any_terms = st.builds(
    terms_of,
    price_micros=st.integers(1, 10**10),
    first_increment_ms=st.integers(1, 120_000),
    next_increment_ms=st.integers(1, 120_000),
)
times = st.integers(0, 3_600_000)
free_times = st.sampled_from([0, 0, 1, 60_000, 61_500])


def billed_by_counting(paid_ms: int, first_ms: int, next_ms: int) -> int:
    """One increment after the other, as a person would."""
    billed_ms = 0
    while billed_ms < paid_ms:
        billed_ms += next_ms if billed_ms else first_ms
    return billed_ms


@pytest.mark.parametrize(
    ("increments", "paid_ms", "billed_ms"),
    [
        ((60_000, 60_000), 0, 0),
        ((60_000, 60_000), 1, 60_000),
        ((60_000, 60_000), 60_000, 60_000),
        ((60_000, 60_000), 60_001, 120_000),
        ((30_000, 6_000), 1, 30_000),
        ((30_000, 6_000), 30_000, 30_000),
        ((30_000, 6_000), 30_001, 36_000),
        ((30_000, 6_000), 36_000, 36_000),
        ((30_000, 6_000), 36_001, 42_000),
        ((1_000, 1_000), 999, 1_000),
        ((1_000, 1_000), 1_000, 1_000),
        ((1_000, 1_000), 1_001, 2_000),
        ((6_000, 30_000), 6_001, 36_000),
    ],
)
def test_billed_time_by_increments(
    increments: tuple[int, int], paid_ms: int, billed_ms: int
) -> None:
    first_ms, next_ms = increments
    terms = terms_of(first_increment_ms=first_ms, next_increment_ms=next_ms)
    assert terms.billed_ms(paid_ms, 0) == billed_ms
    assert terms.billed_ms(60_000 + paid_ms, 60_000) == billed_ms


@pytest.mark.parametrize("increments", INCREMENTS)
@given(paid_ms=st.integers(0, 400_000))
def test_billed_time_is_what_counting_gives(increments: tuple[int, int], paid_ms: int) -> None:
    first_ms, next_ms = increments
    terms = terms_of(first_increment_ms=first_ms, next_increment_ms=next_ms)
    counted_ms = max(1, min(paid_ms, 20_000)) if next_ms == 1 else paid_ms
    expected_ms = billed_by_counting(counted_ms, first_ms, next_ms)
    assert terms.billed_ms(counted_ms, 0) == expected_ms


@given(terms=any_terms, elapsed_ms=times, free_ms=free_times, more_ms=st.integers(0, 100_000))
def test_cost_never_falls(terms: Terms, elapsed_ms: int, free_ms: int, more_ms: int) -> None:
    cost_micros = terms.cost_micros(elapsed_ms, free_ms)
    assert cost_micros >= 0
    assert terms.cost_micros(elapsed_ms + more_ms, free_ms) >= cost_micros
    assert terms.cost_micros(elapsed_ms, free_ms + more_ms) <= cost_micros


@given(terms=any_terms, elapsed_ms=times)
def test_free_time_costs_nothing(terms: Terms, elapsed_ms: int) -> None:
    assert terms.cost_micros(elapsed_ms, elapsed_ms) == 0
    assert terms.cost_micros(elapsed_ms + 1, elapsed_ms) == terms.cost_micros(1, 0)


@given(terms=any_terms, elapsed_ms=times, free_ms=free_times)
def test_an_increment_is_billed_only_once_begun(
    terms: Terms, elapsed_ms: int, free_ms: int
) -> None:
    end_ms = terms.increment_end_ms(elapsed_ms, free_ms)
    assert end_ms >= min(elapsed_ms, end_ms)
    assert terms.billed_ms(end_ms, free_ms) == terms.billed_ms(elapsed_ms, free_ms)
    assert terms.billed_ms(end_ms + 1, free_ms) > terms.billed_ms(elapsed_ms, free_ms)


@given(terms=any_terms, micros=st.integers(0, 10**12), free_ms=free_times)
def test_what_can_be_afforded_is_the_inverse_of_the_cost(
    terms: Terms, micros: int, free_ms: int
) -> None:
    affordable_ms = terms.affordable_ms(micros, free_ms)
    assert affordable_ms is not None
    assert affordable_ms >= free_ms
    assert terms.cost_micros(affordable_ms, free_ms) <= micros
    assert terms.cost_micros(affordable_ms + 1, free_ms) > micros


@given(terms=any_terms, elapsed_ms=times, free_ms=free_times)
def test_the_exact_cost_affords_the_whole_increment(
    terms: Terms, elapsed_ms: int, free_ms: int
) -> None:
    cost_micros = terms.cost_micros(elapsed_ms, free_ms)
    affordable_ms = terms.affordable_ms(cost_micros, free_ms)
    assert affordable_ms is not None
    assert affordable_ms >= terms.increment_end_ms(elapsed_ms, free_ms)


def test_what_costs_nothing_can_be_afforded_for_ever() -> None:
    terms = msgspec.structs.replace(TERMS, price_micros=0)
    assert terms.affordable_ms(0, 0) is None
    assert terms.cost_micros(10**9, 0) == 0


def test_fractions_of_micro_credits_are_dropped_once_a_session() -> None:
    terms = terms_of(price_micros=777_777)
    by_the_second = [terms.cost_micros(second * 1_000, 0) for second in range(61)]
    assert by_the_second[60] == 777_777
    assert by_the_second[1] == 12_962  # 12 962.95 micros
    assert sum(b - a for a, b in itertools.pairwise(by_the_second)) == 777_777


@pytest.mark.parametrize(
    ("elapsed_ms", "minutes"),
    [(0, 0), (1, 1), (MINUTE_MS - 1, 1), (MINUTE_MS, 1), (MINUTE_MS + 1, 2), (61_000, 2)],
)
def test_minutes_begun(elapsed_ms: int, minutes: int) -> None:
    assert minutes_begun(elapsed_ms) == minutes
