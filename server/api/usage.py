"""Usage at the paths of existing applications: limits, minutes, and the month.

The names are those of the applications' own documents. Live usage is shown as it is at this
instant, recorded or not.
"""

import asyncio
import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol import limits
from protocol.metering.terms import MINUTE_MS
from protocol.wire.errors import BadMessageError, ErrorCode, PeerError
from protocol.wire.fields import SessionId, describe, describe_id
from server.counters.projections import Month, Projection, hours, project
from server.http.openapi import ORG, Operation, described, query_parameter
from server.http.requests import principal_of, process_of, raw_body, read_body
from server.http.responses import answer
from server.http.subjects import (
    ACCOUNT,
    NOT_KEPT,
    USER,
    Subject,
    asked_for,
    subject_of,
)
from server.process import Process
from server.usage.months import months_of
from server.usage.reported_minutes import MinuteReport, ReportedMinutes
from storage.postgres.usage import Usage
from storage.rows.months import UsageLimit

DAILY = query_parameter(
    "daily", "Whether the month's days are wanted too.", {"type": "boolean", "default": False}
)
READING = Operation(
    tag="usage", roles=("user", "key"), excludes_operators=True, parameters=(ORG, USER)
)
KIND_DEFAULT = "recording"
"""The kind of what existing applications record, because their requests name none."""


def usage_of(request: Request) -> Usage:
    """The usage queries, over the record of the process."""
    usage: Usage = request.app.state.usage
    return usage


# --- The limit ---------------------------------------------------------------------

CanRecord = Annotated[bool, describe("Whether a minute more may begin.")]
MinutesUsed = Annotated[
    int,
    Meta(
        ge=0,
        description="Minutes of the month that count against the limit that decides: those of "
        "the organisation where `binding` is `org_minutes`, else the user's own. A minute "
        "counts when the meter has settled the beginning of it.",
    ),
]
MinutesLimit = Annotated[int | None, describe("That limit; null: there is none.")]
MinutesRemaining = Annotated[int | None, describe("What is left of it; null: there is none.")]
PercentageUsed = Annotated[float, describe("What is used of it, in per cent; 0 without a limit.")]
Binding = Annotated[
    str | None,
    describe(
        "Which limit decides, the more restrictive of the two: `member_minutes` or "
        "`org_minutes`. null: none that stops."
    ),
]


class LimitAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a user may record, and the rest of the month."""

    can_record: CanRecord
    minutes_used: MinutesUsed
    minutes_limit: MinutesLimit
    minutes_remaining: MinutesRemaining
    percentage_used: PercentageUsed
    binding: Binding


def _limit(limit: UsageLimit) -> dict[str, Any]:
    return msgspec.structs.asdict(limit)


@described(msgspec.structs.replace(READING, answers={200: (LimitAnswer,)}))
async def check_limit(request: Request) -> Response:
    """Whether a user may record now.

    The more restrictive of the member's and the organisation's month decides. Minutes of live
    sessions are included, recorded or not.
    """
    subject = asked_for(request)
    use = await months_of(request).use(subject.tenant, subject.user_id)
    return answer(LimitAnswer(**_limit(use.limit)), headers=NOT_KEPT)


MonthName = Annotated[str, describe("The month, by its first day: `2026-11-01`.")]
TimezoneName = Annotated[str, describe("The time zone in which its days begin.")]


class DayUsed(msgspec.Struct, frozen=True, kw_only=True):
    """One day of a month."""

    date: Annotated[str, describe("The day: `2026-11-30`.")]
    minutes: Annotated[int, Meta(ge=0, description="Minutes of kinds that count.")]
    seconds: Annotated[int, Meta(ge=0, description="The seconds of these.")]
    sessions: Annotated[int, Meta(ge=0, description="Sessions of any kind.")]


OverageMinutes = Annotated[
    int,
    Meta(
        ge=0,
        description="Of the user's own minutes of this month, those beyond the organisation's "
        "limit, counted apart where overage is allowed; what is written down.",
    ),
]


class MonthAnswer(LimitAnswer, frozen=True, kw_only=True, omit_defaults=True):
    """A user's month so far."""

    month: MonthName
    timezone: TimezoneName
    total_minutes: Annotated[
        int, Meta(ge=0, description="The user's own minutes, including those not recorded yet.")
    ]
    total_hours: Annotated[float, Meta(ge=0, description="The same in hours.")]
    total_seconds: Annotated[int, Meta(ge=0, description="Recorded seconds.")]
    total_sessions: Annotated[int, Meta(ge=0, description="Recorded sessions of any kind.")]
    overage_minutes: OverageMinutes
    projection: Annotated[Projection, describe("Where the month leads.")]
    daily: (
        Annotated[
            list[DayUsed], describe("Every day so far, with `?daily=true`; what is written down.")
        ]
        | None
    ) = None


@described(
    msgspec.structs.replace(READING, parameters=(ORG, USER, DAILY), answers={200: (MonthAnswer,)})
)
async def current_month(request: Request) -> Response:
    """A user's month: totals, rest, forecast, and days on request."""
    subject = asked_for(request)
    daily = _flag(request, "daily")
    use = await months_of(request).use(subject.tenant, subject.user_id)
    first = use.month.first
    usage, user = usage_of(request), (subject.tenant, subject.user_id)
    totals, counted = await asyncio.gather(usage.month(*user, first), usage.of_month(*user, first))
    return answer(
        MonthAnswer(
            **_limit(use.limit),
            month=first.isoformat(),
            timezone=use.found.timezone,
            total_minutes=use.own_minutes,
            total_hours=hours(use.own_minutes),
            total_seconds=totals.seconds,
            total_sessions=totals.sessions,
            overage_minutes=counted.overage_minutes,
            projection=project(use.month, use.own_minutes, use.limit),
            daily=await _days(process_of(request), subject, use.month) if daily else None,
        ),
        headers=NOT_KEPT,
    )


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise BadMessageError(f"{name}: expected true or false")
    return value in ("true", "1")


async def _days(process: Process, subject: Subject, month: Month) -> list[DayUsed]:
    """Every day of the month so far, including days without usage."""
    tomorrow = month.today + datetime.timedelta(days=1)
    found = await process.records.usage_details(
        subject.user_id, subject.org_id, month.first, tomorrow
    )
    used = {day.day: day for day in found}
    days = [month.first + datetime.timedelta(days=n) for n in range(month.today.day)]
    return [
        DayUsed(
            date=day.isoformat(),
            minutes=used[day].minutes if day in used else 0,
            seconds=used[day].seconds if day in used else 0,
            sessions=used[day].sessions if day in used else 0,
        )
        for day in days
    ]


# --- A minute ----------------------------------------------------------------------


class MinuteReported(msgspec.Struct, frozen=True, kw_only=True):
    """A minute that a client has recorded and counted itself."""

    session_id: SessionId
    seconds_recorded: Annotated[
        int, Meta(ge=1, le=60, description="Recorded seconds of the minute.")
    ]
    minute_timestamp: Annotated[
        Annotated[str, Meta(max_length=64)]
        | Annotated[int, Meta(ge=0, le=limits.SAFE_INTEGER_MAX)],
        describe(
            "An instant in the minute: ISO 8601 with its offset, or epoch milliseconds. Not "
            "older than a day."
        ),
    ]
    kind: Annotated[
        str, describe_id("What the session is; taken from its first minute, or its preparation.")
    ] = KIND_DEFAULT


class MinuteTaken(LimitAnswer, frozen=True, kw_only=True):
    """The result of a reported minute, and the rest of the month."""

    success: Annotated[bool, describe("Always true: the minute is counted.")]
    duplicate: Annotated[bool, describe("Whether it had been counted before, and was not again.")]
    metered: Annotated[
        bool, describe("Whether the server meters the session, and so has counted it itself.")
    ]
    session_id: SessionId
    minute: Annotated[
        int | None, describe("The minute's number in the session; null: the server's own counts.")
    ]
    total_minutes_used: Annotated[int, Meta(ge=0, description="The same as `minutes_used`.")]


@described(
    Operation(
        tag="usage",
        roles=("user", "key"),
        excludes_operators=True,
        parameters=(ORG, USER, ACCOUNT),
        body=MinuteReported,
        answers={200: (MinuteTaken,)},
        errors={
            402: ("limit_reached",),
            409: ("session_ended",),
            422: ("unknown_kind", "metered_kind"),
        },
    )
)
async def track_minute(request: Request) -> Response:
    """Counts one minute of a client that counts its own time, once.

    The same minute of the same session again is answered as a duplicate. So is a minute of a
    session that the server meters over a socket, because the server has counted it already. A
    minute for which the month has no room is refused with `limit_reached`.
    """
    process = process_of(request)
    principal = principal_of(request)
    subject = subject_of(request, principal)
    wanted = read_body(await raw_body(request), MinuteReported)
    if not principal.is_key and not principal.may_start(wanted.session_id):
        raise PeerError(ErrorCode.FORBIDDEN, "the token may not start this session")
    reported_minutes: ReportedMinutes = request.app.state.reported_minutes
    taken = await reported_minutes.take(
        MinuteReport(
            user_id=subject.user_id,
            org_id=subject.org_id,
            account_id=subject.account_id,
            session_id=wanted.session_id,
            kind=wanted.kind,
            minute_at=_instant(wanted.minute_timestamp) // MINUTE_MS * MINUTE_MS,
            seconds=wanted.seconds_recorded,
            needs_preparation=not principal.is_key and process.settings.start == "prepared",
            kinds=principal.kinds,
            is_trusted=principal.is_key,
        )
    )
    use = await months_of(request).use(subject.tenant, subject.user_id)
    return answer(
        MinuteTaken(
            **_limit(use.limit),
            success=True,
            duplicate=taken.duplicate,
            metered=taken.metered,
            session_id=wanted.session_id,
            minute=taken.minute,
            total_minutes_used=use.limit.minutes_used,
        ),
        headers=NOT_KEPT,
    )


def _instant(timestamp: str | int) -> int:
    """Epoch milliseconds of an instant as clients write it."""
    if isinstance(timestamp, int):
        return timestamp
    try:
        moment = datetime.datetime.fromisoformat(timestamp)
        if moment.tzinfo is not None:
            return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        pass
    raise BadMessageError(
        "minute_timestamp: expected an instant such as 2026-11-30T12:00:00Z, or epoch milliseconds"
    )


ROUTES = [
    Route("/api/usage/check-limit", check_limit),
    Route("/api/usage/track-minute", track_minute, methods=["POST"]),
    Route("/api/usage/current-month", current_month),
]
