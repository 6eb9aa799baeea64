"""Days and months of an organisation's time zone."""

import datetime
import zoneinfo

import pytest

from server.counters.calendars import calendar

HOUR_MS = 3_600_000


def instant(*parts: int, zone: str = "UTC") -> int:
    at = datetime.datetime(*parts, tzinfo=zoneinfo.ZoneInfo(zone))  # type: ignore[arg-type, misc]
    return int(at.timestamp() * 1000)


@pytest.mark.parametrize(
    ("zone", "day", "month"),
    [
        ("UTC", datetime.date(2026, 11, 30), "2026-11-01"),
        ("Pacific/Kiritimati", datetime.date(2026, 12, 1), "2026-12-01"),
        ("America/New_York", datetime.date(2026, 11, 30), "2026-11-01"),
    ],
)
def test_an_instant_is_in_the_month_of_its_zone(zone: str, day: datetime.date, month: str) -> None:
    at = instant(2026, 11, 30, 23, 59)
    assert (calendar(zone).day(at), calendar(zone).month(at)) == (day, month)


@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25)])
def test_a_day_is_as_long_as_the_clock_makes_it(day: tuple[int, int, int], hours: int) -> None:
    berlin = calendar("Europe/Berlin")
    begins, ends = berlin.day_around(instant(*day, 12))
    assert begins == instant(*day, zone="Europe/Berlin")
    assert ends - begins == hours * HOUR_MS


def test_a_month_begins_at_midnight_of_its_zone() -> None:
    at = calendar("Asia/Kolkata").start_at("2026-12-01")
    assert at == instant(2026, 11, 30, 18, 30)


@pytest.mark.parametrize("name", ["Atlantis/Harbour", "../etc/passwd", ""])
def test_a_zone_that_is_not_known_is_utc(name: str) -> None:
    assert calendar(name).zone.key == "UTC"
