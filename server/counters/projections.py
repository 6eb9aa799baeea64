"""Projections: which limit decides, where the month leads, what to do.

Pure arithmetic. A projection is a guess, so it states its assumptions.
"""

import calendar
import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from protocol.wire.fields import describe
from server.counters.calendars import Calendar
from storage.rows.months import MemberRecord, UsageLimit

DAY_MS = 86_400_000
NEAR_MINUTES = 10
"""A limit is near if at most this number of minutes is left (as existing applications warn)."""
NEAR_PERCENT = 80
ASSUMES = (
    "linear: the rest of the month is used at the pace of its time so far, which counts as one "
    "whole day at least; no limit changes"
)


class Month(msgspec.Struct, frozen=True):
    """A calendar month in a time zone, and an instant in it."""

    zone: Calendar
    now_ms: int

    @property
    def today(self) -> datetime.date:
        """The day of the instant."""
        return self.zone.day(self.now_ms)

    @property
    def first(self) -> datetime.date:
        """The first day: the month's name."""
        return self.today.replace(day=1)

    @property
    def days(self) -> int:
        """The number of days of the month."""
        return calendar.monthrange(self.today.year, self.today.month)[1]

    @property
    def begins_at(self) -> int:
        """The first instant of the month, in epoch milliseconds."""
        return instant_of(self.first, self.zone)

    @property
    def ends_at(self) -> int:
        """The first instant of the next month, in epoch milliseconds."""
        return instant_of(self.first + datetime.timedelta(days=self.days), self.zone)


def instant_of(day: datetime.date, zone: Calendar) -> int:
    """Epoch milliseconds at which a day begins in a time zone."""
    return int(datetime.datetime.combine(day, datetime.time(), zone.zone).timestamp() * 1000)


class Projection(msgspec.Struct, frozen=True, kw_only=True):
    """Where a month leads if the assumptions hold."""

    projected_minutes: Annotated[int, Meta(ge=0, description="Minutes by the month's end.")]
    projected_hours: Annotated[float, Meta(ge=0, description="The same in hours.")]
    average_daily_minutes: Annotated[
        float, Meta(ge=0, description="Minutes for each day of the month so far.")
    ]
    days_elapsed: Annotated[int, Meta(ge=1, description="Days so far, today included.")]
    days_remaining: Annotated[int, Meta(ge=0, description="Whole days after today.")]
    limit_reached_at: Annotated[
        int | None,
        describe("When the limit that decides is reached in this month; null: it is not."),
    ]
    assumes: Annotated[str, describe("What the projection assumes.")]


def project(month: Month, used_minutes: int, limit: UsageLimit) -> Projection:
    """Extrapolates a user's month from its course so far.

    The limit that decides may be the organisation's. It is reached at the pace of all usage that
    counts against it: ``limit.minutes_used``.
    """
    elapsed_ms = max(DAY_MS, month.now_ms - month.begins_at)
    length_ms = month.ends_at - month.begins_at
    projected = max(used_minutes, round(used_minutes * length_ms / elapsed_ms))
    return Projection(
        projected_minutes=projected,
        projected_hours=hours(projected),
        average_daily_minutes=round(used_minutes * DAY_MS / elapsed_ms, 2),
        days_elapsed=month.today.day,
        days_remaining=month.days - month.today.day,
        limit_reached_at=_reached_at(month, limit, elapsed_ms),
        assumes=ASSUMES,
    )


def _reached_at(month: Month, limit: UsageLimit, elapsed_ms: int) -> int | None:
    if limit.minutes_remaining is None:
        return None
    if limit.minutes_remaining == 0:
        return month.now_ms
    if limit.minutes_used == 0:
        return None
    reached_at = month.now_ms + limit.minutes_remaining * elapsed_ms // limit.minutes_used
    return reached_at if reached_at < month.ends_at else None


def hours(minutes: int) -> float:
    """Minutes in hours, as people read them."""
    return round(minutes / 60, 2)


def deciding_limit(found: MemberRecord, member_minutes: int, org_minutes: int) -> UsageLimit:
    """The month's deciding limit, and what is left of it.

    Of the member's limit and the organisation's, the one with less left decides. A limit that does
    not stop, because its organisation allows overage, decides only if no other limit does. This is
    the same rule as ``check_usage_limit`` in the schema, for other figures.
    """
    limits: list[tuple[Literal["member_minutes", "org_minutes"], int, int, bool]] = []
    if found.member_limit_minutes is not None:
        limits.append(("member_minutes", member_minutes, found.member_limit_minutes, True))
    if found.org_limit_minutes is not None:
        stops = not found.allow_overage
        limits.append(("org_minutes", org_minutes, found.org_limit_minutes, stops))
    if not limits:
        return UsageLimit(True, member_minutes, None, None, 0.0, None)
    name, used, minutes, stops = min(limits, key=lambda it: (not it[3], it[2] - it[1]))
    return UsageLimit(
        can_record=not stops or used < minutes,
        minutes_used=used,
        minutes_limit=minutes,
        minutes_remaining=max(0, minutes - used),
        percentage_used=100.0 if minutes == 0 else round(used * 100 / minutes, 2),
        binding=name if stops else None,
    )


RecommendationCode = Literal["ok", "approaching_limit", "over_limit", "upgrade"]


class Recommendation(msgspec.Struct, frozen=True):
    """One fact or piece of advice about the month."""

    code: Annotated[RecommendationCode, describe("The code of the recommendation, for programs.")]
    message: Annotated[str, describe("The same in words, for people.")]


def recommend(limit: UsageLimit, projection: Projection) -> list[Recommendation]:
    """Recommendations for a user's month: at least one, the most pressing first."""
    left = limit.minutes_remaining
    if left is None:
        return [Recommendation("ok", "There is no limit this month.")]
    found = []
    if left == 0 and limit.binding is not None:
        found.append(Recommendation("over_limit", "The month's minutes are used up."))
    elif left == 0:
        found.append(
            Recommendation(
                "over_limit",
                "The month's minutes are used up; further minutes count as overage.",
            )
        )
    elif left <= NEAR_MINUTES or limit.percentage_used >= NEAR_PERCENT:
        minutes = "1 minute is" if left == 1 else f"{left} minutes are"
        found.append(Recommendation("approaching_limit", f"Only {minutes} left this month."))
    if projection.limit_reached_at is not None:
        found.append(
            Recommendation("upgrade", "At this pace the month needs more minutes than it has.")
        )
    return found or [Recommendation("ok", "The month's minutes last at this pace.")]
