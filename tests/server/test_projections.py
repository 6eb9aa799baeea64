"""Months, limits and projections: arithmetic at chosen instants."""

import datetime
from zoneinfo import ZoneInfo

import pytest

from server.counters.calendars import calendar
from server.counters.projections import Month, deciding_limit, project, recommend
from storage.rows.months import MemberRecord, UsageLimit

UNLIMITED = UsageLimit(True, 0, None, None, 0.0, None)


def month(zone: str, *instant: int) -> Month:
    at = datetime.datetime(*instant, tzinfo=ZoneInfo(zone))  # type: ignore[arg-type, misc]
    return Month(calendar(zone), int(at.timestamp() * 1000))


def record(member: int | None, org: int | None, *, allow_overage: bool = False) -> MemberRecord:
    return MemberRecord("UTC", "free", allow_overage, member, org, ())


def limited(used: int, minutes: int) -> UsageLimit:
    return deciding_limit(record(minutes, None), used, used)


# --- Months ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "instant", "first", "hours"),
    [
        ("UTC", (2026, 11, 30, 23, 59), "2026-11-01", 30 * 24),
        ("Europe/Berlin", (2026, 3, 29, 3, 0), "2026-03-01", 31 * 24 - 1),
        ("Europe/Berlin", (2026, 10, 25, 4, 0), "2026-10-01", 31 * 24 + 1),
        ("America/New_York", (2028, 2, 29, 12, 0), "2028-02-01", 29 * 24),
        ("Pacific/Kiritimati", (2026, 12, 1, 0, 0), "2026-12-01", 31 * 24),
    ],
)
def test_a_month_is_as_long_as_its_clocks_say(
    zone: str, instant: tuple[int, ...], first: str, hours: int
) -> None:
    found = month(zone, *instant)
    assert found.first.isoformat() == first
    assert found.ends_at - found.begins_at == hours * 3_600_000
    assert found.begins_at <= found.now_ms < found.ends_at


def test_one_instant_is_in_another_month_elsewhere() -> None:
    now_ms = month("UTC", 2026, 11, 30, 23, 30).now_ms
    months = {
        zone: Month(calendar(zone), now_ms).first.isoformat()
        for zone in ("America/New_York", "UTC", "Europe/Berlin")
    }
    assert months == {
        "America/New_York": "2026-11-01",
        "UTC": "2026-11-01",
        "Europe/Berlin": "2026-12-01",
    }


# --- Projections -------------------------------------------------------------------


def test_a_month_goes_on_as_it_went() -> None:
    found = project(month("UTC", 2026, 11, 16), 150, UNLIMITED)
    assert found.projected_minutes == 300
    assert found.projected_hours == 5.0
    assert found.average_daily_minutes == 10.0
    assert (found.days_elapsed, found.days_remaining) == (16, 14)
    assert found.limit_reached_at is None
    assert "linear" in found.assumes


def test_the_first_hour_does_not_stand_for_all_others() -> None:
    found = project(month("UTC", 2026, 11, 1, 0, 30), 30, UNLIMITED)
    assert found.projected_minutes == 30 * 30
    assert found.average_daily_minutes == 30.0


def test_no_less_is_projected_than_was_used() -> None:
    found = project(month("UTC", 2026, 11, 30, 23, 59, 59), 1, UNLIMITED)
    assert found.projected_minutes == 1


def test_a_limit_is_reached_where_the_line_crosses_it() -> None:
    at = month("UTC", 2026, 11, 16)
    found = project(at, 150, limited(150, 200))
    assert found.limit_reached_at == month("UTC", 2026, 11, 21).now_ms
    assert project(at, 150, limited(150, 300)).limit_reached_at is None
    assert project(at, 150, limited(150, 301)).limit_reached_at is None
    assert project(at, 0, limited(0, 1)).limit_reached_at is None
    assert project(at, 200, limited(200, 200)).limit_reached_at == at.now_ms


# --- The limit that decides ----------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "org", "used", "binding", "remaining"),
    [
        (None, None, (5, 9), None, None),
        (10, None, (5, 9), "member_minutes", 5),
        (None, 10, (5, 9), "org_minutes", 1),
        (10, 20, (5, 9), "member_minutes", 5),
        (10, 12, (5, 9), "org_minutes", 3),
        (10, 14, (5, 9), "member_minutes", 5),
        (5, 9, (5, 9), "member_minutes", 0),
        (4, 9, (5, 9), "member_minutes", 0),
        (0, None, (0, 0), "member_minutes", 0),
    ],
)
def test_the_limit_with_less_left_decides(
    member: int | None,
    org: int | None,
    used: tuple[int, int],
    binding: str | None,
    remaining: int | None,
) -> None:
    found = deciding_limit(record(member, org), *used)
    assert (found.binding, found.minutes_remaining) == (binding, remaining)
    assert found.can_record is (remaining != 0)


def test_a_limit_that_does_not_stop_decides_last() -> None:
    found = deciding_limit(record(None, 10, allow_overage=True), 5, 12)
    assert (found.can_record, found.binding) == (True, None)
    assert (found.minutes_used, found.minutes_remaining) == (12, 0)
    assert found.percentage_used == 120.0
    found = deciding_limit(record(6, 10, allow_overage=True), 5, 12)
    assert (found.binding, found.minutes_remaining) == ("member_minutes", 1)


# --- Recommendations -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "minutes", "codes"),
    [
        (100, 1000, ["ok"]),
        (100, 199, ["upgrade"]),
        (160, 200, ["approaching_limit", "upgrade"]),
        (5, 15, ["approaching_limit"]),
        (6, 15, ["approaching_limit"]),
        (200, 200, ["over_limit", "upgrade"]),
        (0, 0, ["over_limit", "upgrade"]),
    ],
)
def test_what_is_recommended(used: int, minutes: int, codes: list[str]) -> None:
    limit = limited(used, minutes)
    found = recommend(limit, project(month("UTC", 2026, 11, 16), used, limit))
    assert [recommendation.code for recommendation in found] == codes
    assert all(recommendation.message.endswith(".") for recommendation in found)


def test_overage_is_said_to_be_one() -> None:
    limit = deciding_limit(record(None, 10, allow_overage=True), 5, 12)
    found = recommend(limit, project(month("UTC", 2026, 11, 16), 5, limit))
    assert found[0].code == "over_limit"
    assert "overage" in found[0].message


def test_without_a_limit_all_is_well() -> None:
    found = recommend(UNLIMITED, project(month("UTC", 2026, 11, 16), 5, UNLIMITED))
    assert [recommendation.code for recommendation in found] == ["ok"]
