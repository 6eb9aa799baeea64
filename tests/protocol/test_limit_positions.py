"""Positions of limits in a session's counted time, and the nearest one."""

from typing import Any

import pytest

from protocol.metering.counted_time import CountedTime
from protocol.metering.limit_positions import first, positions, threshold, uncovered_ends
from protocol.metering.projection import AccountProjection, MonthProjection
from protocol.metering.session import Grant, SessionState
from protocol.metering.terms import MINUTE_MS
from tests.protocol.examples import CREDIT, NOW, account_of, line, session_of, terms_of

UNLIMITED = MonthProjection()


def alone(micros: int) -> AccountProjection:
    """An account on which only this session runs, since now."""
    account = account_of(micros)
    account.replace(1, micros, 0, {"chat-1": line(terms_of())})
    return account


def month(limit_minutes: int, used_minutes: int = 0, **changes: Any) -> MonthProjection:
    return MonthProjection("2026-05-01", limit_minutes, used_minutes, active=1, **changes)


def at_start(
    session: SessionState, *, member: MonthProjection = UNLIMITED, org: MonthProjection = UNLIMITED
) -> dict[str, int]:
    return positions(session, 0, NOW, alone(3 * CREDIT), member, org)


def counted(**changes: Any) -> SessionState:
    """A session that counts minutes and costs nothing."""
    return session_of(terms_of(price_micros=0, counts_minutes=True), grant=Grant(), **changes)


def test_credits_bind_where_the_account_is_used_up() -> None:
    assert at_start(session_of(grant=Grant())) == {"credits": 3 * MINUTE_MS}


def test_nothing_binds_before_the_end_of_what_is_granted() -> None:
    granted = session_of(grant=Grant(granted_ms=5 * MINUTE_MS))
    assert at_start(granted) == {"credits": 5 * MINUTE_MS}
    final = session_of(grant=Grant(granted_ms=MINUTE_MS, final="credits"))
    assert at_start(final) == {"credits": MINUTE_MS}


def test_a_cap_binds_whatever_is_there() -> None:
    session = session_of(terms_of(price_micros=0, session_cap_ms=90_000), grant=Grant())
    assert at_start(session) == {"session_cap": 90_000}
    assert at_start(session_of(terms_of(price_micros=0), grant=Grant())) == {}


@pytest.mark.parametrize(
    ("limit_minutes", "used_minutes", "position_ms"),
    [(60, 0, 60 * MINUTE_MS), (60, 57, 3 * MINUTE_MS), (60, 60, 0), (60, 99, 0)],
)
def test_minutes_bind_where_the_month_has_none_left(
    limit_minutes: int, used_minutes: int, position_ms: int
) -> None:
    found = at_start(counted(), member=month(limit_minutes, used_minutes), org=month(1_000))
    assert found == {"member_minutes": position_ms, "org_minutes": 1_000 * MINUTE_MS}
    assert first(found) == "member_minutes"


def test_a_month_ending_before_its_limit_binds_next_month() -> None:
    ends_at = NOW + 10 * MINUTE_MS
    unlimited = alone(0)
    found = positions(counted(), 0, NOW, unlimited, month(60), UNLIMITED, ends_at)
    assert found == {"member_minutes": (10 + 60) * MINUTE_MS}
    found = positions(counted(), 0, NOW, unlimited, month(60, 55), UNLIMITED, ends_at)
    assert found == {"member_minutes": 5 * MINUTE_MS}


def test_without_a_grant_a_session_goes_as_far_as_its_counters() -> None:
    session = session_of(terms_of(counts_minutes=True), grant=Grant(granted_ms=MINUTE_MS))
    counted_time = CountedTime(session, 60_000)
    ends = uncovered_ends(session, counted_time, NOW, alone(3 * CREDIT), month(60, 58), UNLIMITED)
    assert ends == {"credits": 3 * MINUTE_MS, "member_minutes": 3 * MINUTE_MS}
    ends = uncovered_ends(
        session, counted_time, NOW, alone(0), month(60, 58, held_minutes=2), month(9, 9)
    )
    assert ends == {"credits": 0, "member_minutes": MINUTE_MS, "org_minutes": MINUTE_MS}


def test_no_limit_is_first_where_there_is_none() -> None:
    assert first({}) is None
    assert first({"credits": 5, "session_cap": 4}) == "session_cap"


@pytest.mark.parametrize(
    ("remaining_ms", "found"),
    [(300_001, None), (300_000, 300_000), (60_001, 300_000), (60_000, 60_000), (0, 10_000)],
)
def test_the_lowest_threshold_that_is_reached(remaining_ms: int, found: int | None) -> None:
    assert threshold((300_000, 60_000, 10_000), remaining_ms) == found
