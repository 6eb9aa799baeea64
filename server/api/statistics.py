"""Statistics at the paths of existing applications: use by users and accounts.

Names and forms are those of the applications' documents: statistics of users are in ``snake_case``.
Statistics of credits are in ``camelCase`` and have numbers, because their clients subtract them.
"""

import asyncio
import datetime
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire.fields import UserId, describe, describe_id
from protocol.wire.money import MICROS_PER_CREDIT
from server.api.accounts import view_as_due
from server.api.usage import (
    READING,
    LimitAnswer,
    MonthName,
    OverageMinutes,
    TimezoneName,
    usage_of,
)
from server.counters.calendars import calendar
from server.counters.projections import (
    Month,
    Projection,
    Recommendation,
    hours,
    instant_of,
    project,
    recommend,
)
from server.http.openapi import ORG, described
from server.http.requests import process_of
from server.http.responses import answer
from server.http.subjects import ACCOUNT, NOT_KEPT, USER, asked_for
from server.usage.months import months_of
from storage.postgres.usage import SpendingTotals
from storage.redis.spending import AccountName

# --- Of a user -----------------------------------------------------------------------


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What a user used in a period."""

    minutes: Annotated[int, Meta(ge=0, description="Minutes of kinds that count.")]
    hours: Annotated[float, Meta(ge=0, description="The same in hours.")]
    seconds: Annotated[int, Meta(ge=0, description="Recorded seconds of these.")]
    sessions: Annotated[int, Meta(ge=0, description="Sessions of any kind.")]


class StatisticsAnswer(LimitAnswer, frozen=True, kw_only=True):
    """A user's usage in minutes and hours, its forecast, and advice."""

    user_id: UserId
    month: MonthName
    timezone: TimezoneName
    current_month: Annotated[UsageTotals, describe("This month.")]
    total: Annotated[UsageTotals, describe("Of all time.")]
    overage_minutes: OverageMinutes
    hours_used: Annotated[float, Meta(ge=0, description="`minutes_used` in hours.")]
    hours_limit: Annotated[float | None, describe("`minutes_limit` in hours.")]
    hours_remaining: Annotated[float | None, describe("`minutes_remaining` in hours.")]
    projections: Annotated[Projection, describe("Where the month leads.")]
    recommendations: Annotated[
        list[Recommendation], Meta(min_length=1, description="The most pressing first.")
    ]


@described(msgspec.structs.replace(READING, answers={200: (StatisticsAnswer,)}))
async def user_statistics(request: Request) -> Response:
    """A user's minutes and hours, a forecast, and advice.

    They are of this month and of all time.
    """
    subject = asked_for(request)
    use = await months_of(request).use(subject.tenant, subject.user_id)
    usage, first = usage_of(request), use.month.first
    user = (subject.tenant, subject.user_id)
    written, before, counted = await asyncio.gather(
        usage.month(*user, first), usage.before(*user, first), usage.of_month(*user, first)
    )
    limit, minutes = use.limit, before.minutes + use.own_minutes
    projection = project(use.month, use.own_minutes, limit)
    return answer(
        StatisticsAnswer(
            **msgspec.structs.asdict(limit),
            user_id=subject.user_id,
            month=first.isoformat(),
            timezone=use.found.timezone,
            current_month=UsageTotals(
                minutes=use.own_minutes,
                hours=hours(use.own_minutes),
                seconds=written.seconds,
                sessions=written.sessions,
            ),
            total=UsageTotals(
                minutes=minutes,
                hours=hours(minutes),
                seconds=before.seconds + written.seconds,
                sessions=before.sessions,
            ),
            overage_minutes=counted.overage_minutes,
            hours_used=hours(limit.minutes_used),
            hours_limit=_hours(limit.minutes_limit),
            hours_remaining=_hours(limit.minutes_remaining),
            projections=projection,
            recommendations=recommend(limit, projection),
        ),
        headers=NOT_KEPT,
    )


def _hours(minutes: int | None) -> float | None:
    return None if minutes is None else hours(minutes)


# --- Of credits ----------------------------------------------------------------------

Amount = Annotated[float, Meta(ge=0, description="Credits, as a number with at most 6 decimals.")]
Actions = Annotated[int, Meta(ge=0, description="How many operations.")]


class CreditsOfPeriod(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Credits that were used in a period."""

    from_at: Annotated[
        int | None, describe("Its first instant in epoch milliseconds; null: of all time.")
    ]
    credits_used: Annotated[Amount, describe("Together.")]
    credits_on_operations: Annotated[Amount, describe("By operations that were charged.")]
    credits_on_time: Annotated[Amount, describe("By the time of sessions.")]
    actions: Actions
    average_credits_per_action: Annotated[Amount, describe("What an operation cost on average.")]


class CreditsOfOperation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The uses of one operation, and their cost."""

    feature: Annotated[
        str | None, describe("The operation of the rate card; null: charged without a name.")
    ]
    daily_usage: Annotated[int, Meta(ge=0, description="How often today.")]
    weekly_usage: Annotated[int, Meta(ge=0, description="How often since Monday.")]
    monthly_usage: Annotated[int, Meta(ge=0, description="How often this month.")]
    total_usage: Annotated[int, Meta(ge=0, description="How often altogether.")]
    credits_used: Annotated[Amount, describe("What all of them cost.")]
    average_credits_per_action: Annotated[Amount, describe("What one cost on average.")]


class CreditsAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Credits used and left of an account, as existing applications read them."""

    account_id: Annotated[str, describe_id("The credit account.")]
    timezone: TimezoneName
    credits_used: Annotated[
        Amount, describe("Of all time, by operations and time, with what is not written down yet.")
    ]
    credits_remaining: Annotated[
        float, describe("The balance at this instant; below 0 only for a real debt.")
    ]
    day: Annotated[CreditsOfPeriod, describe("Today.")]
    week: Annotated[CreditsOfPeriod, describe("Since Monday.")]
    month: Annotated[CreditsOfPeriod, describe("This calendar month.")]
    total: Annotated[CreditsOfPeriod, describe("Of all time.")]
    by_operation: Annotated[
        list[CreditsOfOperation], describe("Every operation of the rate card, and others done.")
    ]


@described(
    msgspec.structs.replace(
        READING, parameters=(ORG, USER, ACCOUNT), answers={200: (CreditsAnswer,)}
    )
)
async def credit_statistics(request: Request) -> Response:
    """Credits used and left, by operation, time and period.

    Periods are the day, the week and the month. Days begin in the organisation's time zone, weeks
    on Monday. Every period includes what live sessions have burnt and the ledger does not have yet.
    """
    process, subject = process_of(request), asked_for(request)
    now_ms = process.clock.now()
    zone = calendar("UTC")
    if subject.org_id is not None:
        plan = await months_of(request).plan(subject.tenant, subject.user_id)
        zone = calendar(plan.timezone)
    month = Month(zone, now_ms)
    monday = month.today - datetime.timedelta(days=month.today.weekday())
    begins_at = {
        "day": instant_of(month.today, zone),
        "week": instant_of(monday, zone),
        "month": month.begins_at,
    }
    usage, account = usage_of(request), (subject.tenant, subject.account_id)
    # The ledger is read first: a grant reaches Redis later, so a new grant is not taken for a burn.
    spending, in_micros = await asyncio.gather(
        usage.spending(*account, *begins_at.values()), usage.money_in(*account)
    )
    view = await view_as_due(process, AccountName(*account))
    left_micros = view.projection.credits_micros(process.clock.now())
    in_micros += view.due_micros
    written_micros = sum(part.total_micros for part in spending)
    unwritten_micros = max(0, in_micros - left_micros - written_micros)
    periods = {
        name: _period(name, from_at, spending, unwritten_micros)
        for name, from_at in {**begins_at, "total": None}.items()
    }
    return answer(
        CreditsAnswer(
            account_id=subject.account_id,
            timezone=str(zone.zone),
            credits_used=periods["total"].credits_used,
            credits_remaining=_credits(left_micros),
            by_operation=_by_operation(spending, process.rates.operations),
            **periods,
        ),
        headers=NOT_KEPT,
    )


def _period(
    name: str, from_at: int | None, spending: Iterable[SpendingTotals], unwritten_micros: int
) -> CreditsOfPeriod:
    operations = [part for part in spending if not part.by_time]
    time_micros = unwritten_micros + sum(
        getattr(part, f"{name}_micros") for part in spending if part.by_time
    )
    micros = sum(getattr(part, f"{name}_micros") for part in operations)
    actions = sum(getattr(part, f"{name}_actions") for part in operations)
    return CreditsOfPeriod(
        from_at=from_at,
        credits_used=_credits(micros + time_micros),
        credits_on_operations=_credits(micros),
        credits_on_time=_credits(time_micros),
        actions=actions,
        average_credits_per_action=_average(micros, actions),
    )


def _by_operation(
    spending: Iterable[SpendingTotals], operations: Iterable[str]
) -> list[CreditsOfOperation]:
    found = {part.operation: part for part in spending if not part.by_time}
    nothing = SpendingTotals(False, None, *[0] * 8)
    names = [*operations, *(name for name in found if name not in set(operations))]
    return [
        CreditsOfOperation(
            feature=name,
            daily_usage=part.day_actions,
            weekly_usage=part.week_actions,
            monthly_usage=part.month_actions,
            total_usage=part.total_actions,
            credits_used=_credits(part.total_micros),
            average_credits_per_action=_average(part.total_micros, part.total_actions),
        )
        for name in names
        for part in (found.get(name, nothing),)
    ]


def _average(micros: int, actions: int) -> float:
    return _credits(round(micros / actions)) if actions else 0.0


def _credits(micros: int) -> float:
    """Credits as a number.

    A decimal of a balance has at most 16 digits, so the number is exact.
    """
    return micros / MICROS_PER_CREDIT


ROUTES = [
    Route("/api/users/stats-v2", user_statistics),
    Route("/api/usage/stats", credit_statistics),
]
