"""Uncovered time ends at every known limit, and is used only once."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.metering.effects import Ask, Show
from protocol.metering.meter import Meter
from protocol.metering.projection import AccountProjection, Granted, MonthProjection
from protocol.metering.session import Grant, SessionState
from protocol.metering.shared_months import SharedMonths
from protocol.metering.states import Event, Phase
from protocol.metering.terms import MINUTE_MS
from protocol.wire import messages
from tests.protocol.bench import Bench, alone, only, said, stop_of
from tests.protocol.examples import (
    CREDIT,
    NOW,
    account_of,
    identity_of,
    line,
    month_of,
    session_of,
    standing_of,
    terms_of,
)


def silence(bench: Bench, ms: int) -> list[Any]:
    """Time passes, the client lives, and Redis never answers in time."""
    seen = len(bench.effects)
    for _ in range(ms // 500):
        bench.run(500)
        bench.alive()
        if bench.now % 1_500 == 0 and bench.meter.asked is not None:
            bench.meter.unanswered(bench.now)
            bench.drain()
    return bench.effects[seen:]


def test_without_answers_time_ends_where_the_account_does() -> None:
    bench = alone(2 * CREDIT // 3)
    stop = stop_of(silence(bench, 90_000))
    assert (stop.limit, stop.elapsed_ms, stop.stopped_at) == ("credits", 40_000, NOW + 40_000)
    assert bench.meter.elapsed_at(bench.now) == 40_000
    bench.meter.unanswered(bench.now)
    bench.drain()
    step = bench.step
    assert (step.standing.phase, step.standing.limit) == (Phase.STOPPING, "credits")
    assert (step.standing.elapsed_ms, step.standing.uncovered_ms) == (40_000, 10_000)
    assert step.charge_micros == 2 * CREDIT // 3


def test_a_cap_ends_it_where_it_comes_before_the_account() -> None:
    bench = alone(CREDIT, terms_of(session_cap_ms=35_000))
    stop = stop_of(silence(bench, 90_000))
    assert (stop.limit, stop.elapsed_ms) == ("session_cap", 35_000)


def test_a_large_balance_allows_the_maximal_uncovered_time() -> None:
    bench = alone(100 * CREDIT)
    silence(bench, 120_000)
    assert bench.meter.elapsed_at(bench.now) == 90_000
    bench.meter.unanswered(bench.now)
    bench.drain()
    assert bench.step.standing.reason == "unavailable"


def test_a_final_stop_is_sent_once() -> None:
    bench = alone(2 * CREDIT // 3)
    bench.run(39_000)
    claim = bench.step
    bench.run(1_500)
    bench.now = NOW + 40_600
    assert claim is bench.step
    effects = bench.accept(granted_ms=40_000, held_micros=CREDIT, final="credits")
    effects += bench.run(5_000)
    assert not said(effects)
    assert not only(effects, Show)
    assert bench.step.standing.phase is Phase.STOPPING
    assert len([one for one in said(bench.effects) if isinstance(one, messages.LimitReached)]) == 1


def test_an_answer_that_reaches_beyond_the_stop_lifts_it() -> None:
    bench = alone(2 * CREDIT // 3)
    bench.run(40_500)
    effects = bench.accept(granted_ms=95_000, held_micros=2 * CREDIT)
    assert only(effects, Show)
    assert bench.meter.counting


def test_a_top_up_that_is_heard_lets_it_run_on() -> None:
    bench = alone(2 * CREDIT // 3)
    bench.run(35_000)
    bench.account.apply(2, 3 * CREDIT // 4, 0, None, None)
    bench.meter.changed(bench.now)
    bench.drain()
    assert stop_of(silence(bench, 60_000)).elapsed_ms == 45_000


def test_a_remote_spend_stops_uncovered_time_at_once() -> None:
    bench = alone(2 * CREDIT // 3)
    bench.run(35_000)
    shown_ms = bench.meter.shown_at(bench.now)
    bench.account.apply(2, CREDIT // 2, 0, None, None)
    bench.meter.changed(bench.now)
    bench.drain()
    stop = stop_of(silence(bench, 10_000))
    assert stop.elapsed_ms == shown_ms == 35_000


@pytest.mark.parametrize(("active", "beyond"), [(1, 2), (2, 1), (3, 0)])
def test_a_month_is_shared_by_those_that_count_on_it(active: int, beyond: int) -> None:
    terms = terms_of(price_micros=0, counts_minutes=True)
    month = MonthProjection("2026-05-01", 60, 50, active, held_minutes=8)
    bench = Bench(session_of(terms, grant=Grant(granted_ms=60_000)), uncovered_ms=600_000)
    bench.meter.member, bench.meter.org = month, msgspec.structs.replace(month, limit_minutes=None)
    stop = stop_of(silence(bench, 400_000))
    assert (stop.limit, stop.elapsed_ms) == ("member_minutes", (1 + beyond) * MINUTE_MS)


@pytest.mark.parametrize("limit", ["member_minutes", "org_minutes"])
@pytest.mark.parametrize(("active", "beyond"), [(2, 4), (3, 2), (9, 0)])
def test_with_silent_holders_each_session_counts_its_own_use(
    limit: str, active: int, beyond: int
) -> None:
    """With silent holders, each session counts its own use.

    Others hold the eight minutes that are left. They may have used as many of them as this session.
    """
    terms = terms_of(price_micros=0, counts_minutes=True)
    month = MonthProjection("2026-05-01", 60, 51, active, held_minutes=9)
    bench = Bench(
        session_of(terms, grant=Grant(granted_ms=60_000, final=limit)), uncovered_ms=600_000
    )
    bench.meter.member = bench.meter.org = msgspec.structs.replace(month, limit_minutes=None)
    bench.meter.know_months(*_months(limit, month))
    assert bench.meter.shared_limit == limit
    bench.meter.know_holders(bench.now, are_silent=True)
    stop = stop_of(silence(bench, 400_000))
    assert (stop.limit, stop.elapsed_ms) == (limit, (1 + beyond) * MINUTE_MS)


def test_an_unshared_month_ends_at_its_limit() -> None:
    terms = terms_of(price_micros=0, counts_minutes=True)
    month = MonthProjection("2026-05-01", 60, 59, 1, held_minutes=1)
    bench = Bench(session_of(terms, grant=Grant(granted_ms=60_000, final="org_minutes")))
    bench.meter.know_months(*_months("org_minutes", month))
    assert bench.meter.shared_limit is None
    bench.meter.know_holders(bench.now, are_silent=True)
    assert stop_of(silence(bench, 90_000)).elapsed_ms == MINUTE_MS


def test_after_the_holders_answer_the_month_is_asked_again() -> None:
    terms = terms_of(price_micros=0, counts_minutes=True)
    month = MonthProjection("2026-05-01", 60, 51, 2, held_minutes=9)
    grant = Grant(granted_ms=60_000, final="org_minutes")
    bench = Bench(session_of(terms, grant=grant))
    bench.meter.know_months(*_months("org_minutes", month))
    bench.meter.know_holders(bench.now, are_silent=True)
    assert not any(isinstance(effect, Ask) for effect in bench.drain())
    bench.meter.know_holders(bench.now, are_silent=False)
    assert any(isinstance(effect, Ask) for effect in bench.drain())
    assert bench.meter.kept_open is None


@pytest.mark.parametrize(
    ("active", "pace_ms"),
    [(2, 250), (64, 250), (65, 500), (3_000, 11_750), (15_360, 50_000), (1_000_000, 50_000)],
)
def test_a_bounded_number_of_waiting_sessions_asks_at_once(active: int, pace_ms: int) -> None:
    terms = terms_of(price_micros=0, counts_minutes=True)
    month = MonthProjection("2026-05-01", 60, 59, active, held_minutes=1)
    bench = Bench(session_of(terms, grant=Grant(granted_ms=400, final="org_minutes")))
    bench.meter.know_months(*_months("org_minutes", month))
    bench.meter.know_holders(bench.now, are_silent=True)
    assert bench.meter.counted_time.claim_ms == pace_ms


def _months(limit: str, month: MonthProjection) -> tuple[MonthProjection, MonthProjection]:
    """A month that is limited for a member, or for the organisation."""
    free = msgspec.structs.replace(month, limit_minutes=None)
    return (month, free) if limit == "member_minutes" else (free, month)


def test_sessions_of_one_month_share_what_the_newest_answer_leaves() -> None:
    """Sessions of one month share what the newest answer leaves.

    The first session was alone when it received eight more minutes; then two others started.
    """
    terms = terms_of(price_micros=0, counts_minutes=True)
    grant, months = Grant(granted_ms=60_000), SharedMonths()
    benches, used = [], 0
    for active in (1, 2, 3):
        month = MonthProjection("2026-05-01", 60, 51, active, held_minutes=active)
        session = session_of(terms, grant=grant)
        bench = Bench(session, uncovered_ms=900_000)
        bench.meter.counters = months.of("org:acme", "ann")
        bench.meter.know_months(month, msgspec.structs.replace(month, limit_minutes=None))
        benches.append(bench)
    for bench in benches:
        stop = stop_of(silence(bench, 600_000))
        assert stop.limit == "member_minutes"
        used += stop.elapsed_ms // MINUTE_MS
    assert used == 9


def test_counters_stay_while_a_session_counts_on_them() -> None:
    months = SharedMonths()
    first, other = months.of("org:acme", "ann"), months.of("org:acme", "bob")
    month = MonthProjection("2026-05-01", 60, 51, 1)
    first.tell(month, month)
    assert months.of("org:acme", "ann").member is first.member
    assert other.org is first.org
    assert (other.member.over(month), other.org.newest) == (month, month)
    assert (first.revision, other.revision) == (2, 1)
    del first
    assert months.of("org:acme", "ann").member.revision == 0


def test_minutes_of_the_next_month_are_the_next_months() -> None:
    terms = terms_of(price_micros=0, counts_minutes=True)
    month = MonthProjection("2026-05-01", 60, 59, 1, held_minutes=1)
    bench = Bench(session_of(terms, grant=Grant(granted_ms=60_000)), uncovered_ms=600_000)
    bench.meter.member = bench.meter.org = month
    bench.meter._ends = (month.month, NOW + 59_000)
    silence(bench, 400_000)
    assert bench.meter.counting


any_session = st.tuples(
    st.sampled_from([1_000, 6_000, 30_000]),  # increments
    st.sampled_from([CREDIT // 3, CREDIT, 60 * CREDIT]),  # price
    st.integers(0, 40_000),  # granted
    st.booleans(),  # final
    st.sampled_from([0, 0, 20_000]),  # free
    st.sampled_from([1, 1, 3]),  # speed
)


@given(
    sessions=st.lists(any_session, min_size=1, max_size=12),
    more_micros=st.integers(0, 5 * CREDIT),
)
def test_all_together_use_no_more_than_there_is(
    sessions: list[tuple[int, int, int, bool, int, int]], more_micros: int
) -> None:
    account = AccountProjection("user:ann", "ann")
    benches = []
    lines, held_micros = {}, 0
    for number, (increment_ms, price, granted_ms, is_final, free_ms, speed) in enumerate(sessions):
        terms = terms_of(
            first_increment_ms=increment_ms, next_increment_ms=increment_ms,
            price_micros=price, free_ms=free_ms, speed=speed,
        )  # fmt: skip
        until_ms = terms.increment_end_ms(granted_ms, free_ms)
        held = terms.cost_micros(until_ms, free_ms)
        held_micros += held
        grant = Grant(until_ms, held, final="credits" if is_final else None)
        identity = identity_of(terms, session_id=f"s{number}")
        benches.append(SessionState(identity, standing_of(free_ms=free_ms), grant))
        lines[f"s{number}"] = line(terms)
    account.replace(1, held_micros + more_micros, 0, lines)
    meters = [Meter(session, account, month_of) for session in benches]
    for meter in meters:
        meter.attach(NOW)
    for at in range(NOW, NOW + 101_000, 250):
        for meter in meters:
            while (due_at := meter.timer()) is not None and due_at <= at:
                meter.handle_timer(due_at)
                meter.effects()
            meter.alive(at, at)
            meter.effects()
    used = 0
    for meter in meters:
        terms = meter.session.identity.terms
        elapsed_ms = meter.elapsed_at(NOW + 101_000)
        assert elapsed_ms >= min(meter.session.grant.granted_ms, 100_000)
        used += terms.cost_micros(elapsed_ms, terms.free_ms)
    assert used <= held_micros + more_micros


def test_time_does_not_begin_beside_unrecorded_use_of_others() -> None:
    """Time does not begin beside the unrecorded use of other sessions.

    The step is not made yet: there is nothing to grant for it.
    """
    account = account_of(CREDIT)
    account.replace(1, CREDIT, 0, {"one": line(terms_of())})
    account.grant("one", Granted(60_000, is_final=True))
    account.uncovered.add("one")
    beginning = Meter(
        SessionState(identity_of(session_id="two"), standing_of(Phase.PAUSED, free_ms=0), Grant()),
        account,
        month_of,
    )
    beginning.attach(NOW)
    assert beginning.request(Event.RESUME, NOW, "resume")
    assert beginning.asked is not None
    assert beginning.asked.waits_for_others
    account.grant("one", None)
    beginning.unanswered(NOW + 1_000)
    assert not beginning.asked.waits_for_others
