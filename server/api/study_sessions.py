"""Study sessions of existing applications: calls whose time the provider knows.

The page says when it joined and left (legacy: Stream.io duration tracking). Where the call's
provider is set up, its events and its REST decide, and the page's word changes no bill. Where it is
not, the page's word is all there is; see ``server/calls/study.py``.
"""

import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire import messages
from protocol.wire.errors import BadMessageError, ErrorCode, PeerError
from protocol.wire.fields import UserId, describe, describe_id
from server.access.principals import Principal
from server.api.call_list import calls_of, sessions_of
from server.calls.settlement import KEPT_ENDS
from server.calls.study import KIND, PAGE, StudyPart, StudySessions, StudyUser
from server.counters.calendars import calendar
from server.counters.projections import hours, instant_of
from server.http.openapi import ORG, Operation, described, query_parameter
from server.http.problems import Problem
from server.http.requests import (
    path_id,
    principal_of,
    process_of,
    raw_body,
    read_body,
)
from server.http.responses import answer
from server.http.subjects import ACCOUNT, NOT_KEPT, USER, Subject, asked_for, subject_of
from server.usage.months import months_of

TYPE_DEFAULT = "default"
MINUTE_MS = 60_000

CallId = Annotated[str, describe_id("Stream's call id, or its cid.")]
Clock = Annotated[
    Literal["provider", "own", "page"] | None,
    describe(
        "Whose figure the duration is: the provider's; ours, while it has none; the page's, where "
        "no provider is set up; null: nothing is known yet."
    ),
]
Minutes = Annotated[
    int, Meta(ge=0, description="Whole minutes, to the nearest, as they were stored before.")
]
Seconds = Annotated[int, Meta(ge=0, description="The same in seconds.")]
Instant = Annotated[str | None, describe("An instant in UTC (RFC 3339); null: not known.")]


class StudyAction(Struct, frozen=True, kw_only=True, rename="camel"):
    """A page's word that a study session begins or ends."""

    user_id: (
        Annotated[
            UserId, describe("The user; a user's token allows its own alone, and may leave it out.")
        ]
        | None
    ) = None
    call_id: CallId
    action: Literal["start", "end"]
    call_type: Annotated[str, describe_id("Stream's call type.")] = TYPE_DEFAULT


class StudySession(Struct, frozen=True, kw_only=True, rename="camel"):
    """A user's part in a run of a call."""

    success: Annotated[bool, describe("Always true: errors are problem documents.")] = True
    user_id: str
    call_id: Annotated[str, describe("The call's cid.")]
    is_active: Annotated[bool, describe("Whether the user is in the call, and time counts.")]
    session_id: Annotated[
        str | None, describe("The session that counts the time; null: the provider has not said.")
    ]
    duration: Minutes
    duration_seconds: Seconds
    clock: Clock
    joined_at: Instant
    left_at: Instant


class DailyHours(Struct, frozen=True, kw_only=True, rename="camel"):
    """The hours of a user's calls on one day."""

    date: Annotated[str, describe("The day: `2026-11-30`.")]
    timezone: Annotated[str, describe("The time zone in which it begins.")]
    hours: Annotated[float, Meta(ge=0, description="Counted hours.")]
    seconds: Seconds


class ActiveCalls(Struct, frozen=True, kw_only=True, rename="camel"):
    """The calls that a user is in, newest first."""

    calls: list[StudySession]


def studies_of(request: Request) -> StudySessions:
    """The study sessions of the process."""
    studies: StudySessions = request.app.state.studies
    return studies


# --- The page's word --------------------------------------------------------------------


@described(
    Operation(
        tag="study sessions",
        roles=("user", "key"),
        excludes_operators=True,
        parameters=(ORG, ACCOUNT),
        body=StudyAction,
        answers={200: (StudySession,)},
        errors={404: ("unknown_call",), 422: ("unknown_kind",)},
    )
)
async def track_study_session(request: Request) -> Response:
    """Begins or ends a study session, and answers its minutes.

    Where Stream is set up, its events begin and end the session. The page's word changes no bill,
    and the end answers Stream's own figure, or ours while Stream has none; `clock` says which.
    Otherwise the time between the two requests counts, and the account pays as it was when the
    study session began. The same action again changes nothing.
    """
    principal = principal_of(request)
    wanted = read_body(await raw_body(request), StudyAction)
    user = _user(request, principal, wanted.user_id)
    cid = _cid(wanted.call_id, wanted.call_type)
    studies, is_end = studies_of(request), wanted.action == "end"
    found = await studies.newest(user, cid)
    if is_end and found is not None:
        await studies.finish(user, found)
    elif not is_end and not studies.has_provider:
        _check_start(request, principal)
        await studies.begin(user, cid, is_trusted=principal.is_key)
    found = await studies.newest(user, cid)
    if found is None and is_end:
        raise Problem(404, "unknown_call", "nothing is known of the user in this call")
    if found is None or (not is_end and found.run.ended_at is not None):
        return answer(_unheard(user, cid), headers=NOT_KEPT)
    return answer(await _shown(request, user, found, asking=is_end), headers=NOT_KEPT)


def _check_start(request: Request, principal: Principal) -> None:
    """Refuses a start to a user who may start no call."""
    process = process_of(request)
    if not process.rates.terms(KIND).is_provided:
        raise PeerError(
            ErrorCode.UNKNOWN_KIND, f"the rate card has no kind {KIND} with an outside clock"
        )
    if principal.is_key:
        return
    if process.settings.start == "prepared" or principal.sessions is not None:
        raise PeerError(ErrorCode.FORBIDDEN, "only prepared sessions may be started")
    principal.check_start(KIND, None)


def _user(request: Request, principal: Principal, user_id: str | None) -> StudyUser:
    """The user whom a body names, or the token's own."""
    if not principal.is_key and user_id not in (None, principal.user_id):
        raise PeerError(ErrorCode.FORBIDDEN, "a user's token reaches that user's data alone")
    if principal.is_key and user_id is None:
        raise BadMessageError("userId: name the user whose study session it is")
    return _study_user(subject_of(request, principal, named=user_id))


def _asked(request: Request) -> StudyUser:
    """The user whom the query names, or the token's own."""
    return _study_user(asked_for(request))


def _study_user(asked: Subject) -> StudyUser:
    return StudyUser(asked.tenant, asked.user_id, asked.org_id, asked.account_id)


def _cid(call_id: str, call_type: str = TYPE_DEFAULT) -> str:
    return call_id if ":" in call_id else f"{call_type}:{call_id}"


# --- What is known of it ------------------------------------------------------------------


def _unheard(user: StudyUser, cid: str) -> StudySession:
    """The answer before the provider has said anything."""
    return StudySession(
        user_id=user.user_id, call_id=cid, is_active=False, session_id=None, duration=0,
        duration_seconds=0, clock=None, joined_at=None, left_at=None,
    )  # fmt: skip


async def _shown(
    request: Request, user: StudyUser, part: StudyPart, *, asking: bool = False
) -> StudySession:
    """A run as a study session.

    ``asking``: with the provider's figure, if it answers.
    """
    sessions = await sessions_of(calls_of(request), [part.person])
    session = next(iter(sessions.values()), None)
    duration_ms = await studies_of(request).provider_ms(part) if asking else part.line.provider_ms
    clock: Literal["provider", "own", "page"] = "provider"
    if duration_ms is None:
        is_stopped = session is not None and _is_stopped(session.receipt)
        if part.run.provider == PAGE and not is_stopped:
            clock, duration_ms = "page", part.line.total_ms
        else:
            known_ms = session.elapsed_ms if session is not None else None
            clock, duration_ms = "own", part.line.total_ms if known_ms is None else known_ms
    has_ended = session is not None and session.state == "ended"
    return StudySession(
        user_id=user.user_id,
        call_id=part.run.call_id,
        is_active=part.line.is_present and not has_ended,
        session_id=part.person.session_id,
        duration=(duration_ms + MINUTE_MS // 2) // MINUTE_MS,
        duration_seconds=duration_ms // 1000,
        clock=clock,
        joined_at=_text(part.joined_at),
        left_at=_text(part.left_at),
    )


def _is_stopped(receipt: messages.Receipt | None) -> bool:
    """Whether time after the session's end counts no more."""
    return receipt is not None and receipt.reason in KEPT_ENDS


def _text(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    moment = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@described(
    Operation(
        tag="study sessions",
        roles=("user", "key"),
        excludes_operators=True,
        parameters=(ORG, USER),
        answers={200: (ActiveCalls,)},
    )
)
async def active_calls(request: Request) -> Response:
    """The calls that a user is in, newest first."""
    user = _asked(request)
    found = [await _shown(request, user, part) for part in await studies_of(request).present(user)]
    return answer(ActiveCalls(calls=[one for one in found if one.is_active]), headers=NOT_KEPT)


@described(
    Operation(
        tag="study sessions",
        roles=("user", "key"),
        excludes_operators=True,
        path={"call_id": "Stream's call id, or its cid."},
        parameters=(ORG, USER),
        answers={200: (StudySession,)},
        errors={404: ("unknown_call",)},
    )
)
async def call_details(request: Request) -> Response:
    """A user's part in the newest run of a call."""
    user = _asked(request)
    found = await studies_of(request).newest(user, _cid(path_id(request, "call_id")))
    if found is None:
        raise Problem(404, "unknown_call", "nothing is known of the user in this call")
    return answer(await _shown(request, user, found), headers=NOT_KEPT)


@described(
    Operation(
        tag="study sessions",
        roles=("user", "key"),
        excludes_operators=True,
        parameters=(
            ORG,
            USER,
            query_parameter(
                "date",
                "The day; left out, today.",
                {"type": "string", "format": "date", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
            ),
        ),
        answers={200: (DailyHours,)},
    )
)
async def daily_hours(request: Request) -> Response:
    """The hours of a user's calls on a day.

    Those of a call that goes on are included. The day is one of the organisation's calendar.
    """
    user, process = _asked(request), process_of(request)
    found = await months_of(request).plan(user.tenant, user.user_id)
    zone = calendar(found.timezone)
    day = _day(request) or zone.day(process.clock.now())
    span = (instant_of(day, zone), instant_of(day + datetime.timedelta(days=1), zone))
    kinds = [name for name, terms in process.rates.kinds.items() if terms.is_provided]
    # What a call that goes on has counted is not all recorded yet.
    live = [
        part
        for part in await studies_of(request).present(user)
        if (await _shown(request, user, part)).is_active
    ]
    records, without = calls_of(request).records, [part.person.session_id or "" for part in live]
    seconds = sum(part.ms_within(span) for part in live) // 1000
    for kind in kinds:
        seconds += await records.seconds_of_day(user.tenant, user.user_id, kind, span, without)
    return answer(
        DailyHours(
            date=day.isoformat(),
            timezone=found.timezone,
            hours=hours(seconds // 60),
            seconds=seconds,
        ),
        headers=NOT_KEPT,
    )


def _day(request: Request) -> datetime.date | None:
    text = request.query_params.get("date")
    if text is None:
        return None
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        raise BadMessageError("date: expected a day such as 2026-11-30") from None
    if len(text) != 10 or not 1970 <= day.year <= 9000:
        raise BadMessageError("date: expected a day such as 2026-11-30")
    return day


ROUTES = [
    Route("/api/study-sessions/stream-duration", track_study_session, methods=["POST"]),
    Route("/api/study-sessions/active-calls", active_calls),
    Route("/api/study-sessions/daily-hours", daily_hours),
    Route("/api/study-sessions/calls/{call_id}", call_details),
]
