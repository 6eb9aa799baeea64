"""Calendars: when months and days begin in an organisation's time zone."""

import datetime
import zoneinfo
from functools import lru_cache

import msgspec


class Calendar(msgspec.Struct, frozen=True):
    """An organisation's calendar: months and days in its time zone."""

    zone: zoneinfo.ZoneInfo

    def day(self, at_ms: int) -> datetime.date:
        """The day of an instant."""
        return datetime.datetime.fromtimestamp(at_ms / 1000, self.zone).date()

    def month(self, at_ms: int) -> str:
        """The month of an instant, named by its first day: ``2026-11-01``."""
        return self.day(at_ms).replace(day=1).isoformat()

    def day_around(self, at_ms: int) -> tuple[int, int]:
        """Begin and end of an instant's day, in epoch milliseconds."""
        day = self.day(at_ms)
        return self._start_at(day), self._start_at(day + datetime.timedelta(days=1))

    def start_at(self, month: str) -> int:
        """The instant at which a month, named by its first day, begins."""
        return self._start_at(datetime.date.fromisoformat(month))

    def _start_at(self, day: datetime.date) -> int:
        start = datetime.datetime.combine(day, datetime.time(), self.zone)
        return int(start.timestamp() * 1000)


@lru_cache(maxsize=1024)
def calendar(name: str) -> Calendar:
    """The calendar of a time zone; UTC for an unknown name."""
    try:
        return Calendar(zoneinfo.ZoneInfo(name))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return Calendar(zoneinfo.ZoneInfo("UTC"))
