"""The calendars of organisations: when months and days begin in a time zone."""

import datetime
import zoneinfo
from functools import lru_cache

import msgspec


class Calendar(msgspec.Struct, frozen=True):
    """The calendar of an organisation: months and days begin in its time zone."""

    zone: zoneinfo.ZoneInfo

    def day(self, at_ms: int) -> datetime.date:
        """The day of an instant."""
        return datetime.datetime.fromtimestamp(at_ms / 1000, self.zone).date()

    def month(self, at_ms: int) -> str:
        """The month of an instant, named by its first day: ``2026-11-01``."""
        return self.day(at_ms).replace(day=1).isoformat()

    def day_around(self, at_ms: int) -> tuple[int, int]:
        """The instants at which the day of an instant begins and ends, in epoch milliseconds."""
        day = self.day(at_ms)
        return self._start_at(day), self._start_at(day + datetime.timedelta(days=1))

    def start_at(self, month: str) -> int:
        """The instant at which a month begins; ``month`` is named by its first day."""
        return self._start_at(datetime.date.fromisoformat(month))

    def _start_at(self, day: datetime.date) -> int:
        start = datetime.datetime.combine(day, datetime.time(), self.zone)
        return int(start.timestamp() * 1000)


@lru_cache(maxsize=1024)
def calendar(name: str) -> Calendar:
    """The calendar of a time zone; UTC for a name that this machine does not know."""
    try:
        return Calendar(zoneinfo.ZoneInfo(name))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return Calendar(zoneinfo.ZoneInfo("UTC"))
