"""One session at an instant: its running time and its shown time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.metering.meter_state import MeterState
from protocol.metering.session import Grant
from protocol.metering.states import Phase
from tests.protocol.examples import (
    CREDIT,
    NOW,
    account_of,
    month_of,
    session_of,
    standing_of,
    terms_of,
)


def state_of(phase: Phase = Phase.ACTIVE, *, uncovered_ms: int = 0) -> MeterState:
    """A session in ``phase`` since now, with a grant of 65 s."""
    session = session_of(standing=standing_of(phase))
    return MeterState(session, account_of(10 * CREDIT), month_of, uncovered_ms)


@given(passed_ms=st.integers(min_value=0, max_value=10_000_000))
def test_time_runs_up_to_the_grant(passed_ms: int) -> None:
    assert state_of().elapsed_at(NOW + passed_ms) == min(passed_ms, 65_000)


@pytest.mark.parametrize("phase", [Phase.PAUSED, Phase.SUSPENDED, Phase.ENDED])
def test_time_stands_still_unless_the_session_is_active(phase: Phase) -> None:
    state = state_of(phase)
    assert not state.counting
    assert state.elapsed_at(NOW + 50_000) == state.shown_at(NOW + 50_000) == 0


@given(instants=st.lists(st.integers(min_value=0, max_value=200_000), min_size=2))
def test_shown_time_does_not_step_back(instants: list[int]) -> None:
    state = state_of()
    shown = [state.shown_at(NOW + passed_ms) for passed_ms in sorted(instants)]
    assert shown == sorted(shown)


def test_proof_of_life_is_the_later_of_answer_and_promise() -> None:
    state = state_of()
    assert state.alive_at == NOW
    state.promised_until = NOW + 75_000
    assert state.alive_at == NOW + 75_000
    state.proof_at = NOW + 80_000
    assert state.alive_at == NOW + 80_000


@pytest.mark.parametrize("proven_ms", [0, 10_000, 60_000])
def test_ticks_go_out_for_a_fraction_of_proven_time(proven_ms: int) -> None:
    state = state_of()
    state.proof_at = NOW + proven_ms
    window_ms = min(proven_ms // limits.UNPROVEN_SHARE, limits.PROOF_FRESH_MS_MAX)
    assert state.window_ms(NOW + proven_ms) == window_ms
    assert state.fresh_until(NOW + proven_ms) == NOW + proven_ms + window_ms


def test_time_is_paid_after_the_free_time() -> None:
    terms = terms_of(free_ms=60_000)
    state = MeterState(session_of(terms), account_of(CREDIT), month_of)
    assert [state.paid(elapsed_ms) for elapsed_ms in (0, 59_999, 60_000)] == [False, False, True]
    free = MeterState(session_of(terms_of(price_micros=0)), account_of(CREDIT), month_of)
    assert not free.paid(60_000)


def test_balance_is_below_zero_for_a_debt_alone() -> None:
    for micros, shown in ((5, 5), (0, 0), (-7, -7)):
        state = MeterState(session_of(grant=Grant()), account_of(micros), month_of)
        assert state.credits_at(NOW) == shown


def test_the_deadline_is_the_minutes_end_and_none_after_it() -> None:
    assert state_of().timer() == NOW + 60_000
    assert state_of(Phase.ENDED).timer() is None
