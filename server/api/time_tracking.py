"""The time of a chat, at the paths of existing applications.

Every chat has its own record, or none yet; having none is a state, never an error. Times are whole
seconds here, as in the applications' old actions.
"""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.metering.counted_time import CountedTime
from protocol.metering.session import SessionState, session_key
from protocol.metering.states import Phase
from protocol.metering.terms import Terms
from protocol.wire import messages
from protocol.wire.errors import ErrorCode, ProtocolError
from protocol.wire.fields import AccountCredits, CounterpartId, KindName, StateName, describe
from server.access.principals import Principal
from server.api.accounts import view_as_due
from server.api.heartbeats import heartbeats_of
from server.api.usage import usage_of
from server.http.openapi import ORG, USER, Operation, described
from server.http.requests import (
    path_id,
    principal_of,
    process_of,
    raw_body,
    read_body,
    tenant_of_call,
)
from server.http.responses import answer
from server.http.subjects import NOT_KEPT
from server.process import Process
from storage.postgres.usage import Usage
from storage.redis.spending import AccountName
from storage.rows.sessions import SessionRow


class TimeAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The time of a chat at this instant."""

    duration: Annotated[int, Meta(ge=0, description="Seconds that were counted.")]
    free_time_remaining: Annotated[
        int, Meta(ge=0, description="Seconds of free time that are left, one begun included.")
    ]
    credits: AccountCredits
    is_paid_time: Annotated[bool, describe("Whether free time is over and the time costs.")]
    state: Annotated[
        StateName | Literal["prepared", "none"],
        describe("The session's; `prepared` before it starts, `none` for an unknown chat."),
    ]


class _Time(msgspec.Struct, frozen=True):
    """A chat's time in milliseconds, before its account is read."""

    user_id: str
    account_id: str
    state: StateName | Literal["prepared", "none"]
    elapsed_ms: int
    free_ms: int
    """All free time of the chat, used or not."""
    price_micros: int


@described(
    Operation(
        tag="time tracking",
        roles=("user", "key"),
        excludes_operators=True,
        path={"chat_id": "The chat: the session's id."},
        parameters=(ORG, USER),
        answers={200: (TimeAnswer,)},
    )
)
async def read_time(request: Request) -> Response:
    """The time of a chat, live or as recorded at its end.

    A chat without a record has a time of zero and the state `none`; so has another user's chat.
    """
    principal = principal_of(request)
    chat_id = path_id(request, "chat_id")
    tenant = tenant_of_call(request, principal)
    return await _answer(request, principal, tenant, chat_id)


async def _answer(request: Request, principal: Principal, tenant: str, chat_id: str) -> Response:
    """The time of a chat, if the sender may see it."""
    process = process_of(request)
    time = await _time(process, usage_of(request), tenant, chat_id)
    if time is None or not principal.may_see_session(time.user_id):
        time = _nothing(request, principal)
    return answer(await _shown(process, tenant, time), headers=NOT_KEPT)


async def _time(process: Process, usage: Usage, tenant: str, chat_id: str) -> _Time | None:
    local = process.registry.local_sessions.get(session_key(tenant, chat_id))
    # A local session without sockets gets no steps of other processes, so it may be out of date.
    if local is not None and local.meter.sockets and local.meter.session.standing.version:
        now_ms = process.clock.now()
        return _live(local.meter.session, local.meter.phase, local.meter.shown_at(now_ms))
    found = await process.live.attach(tenant, chat_id, read_only=True)
    if found is not None:
        session = found.session
        counted_time = CountedTime(
            session, uncovered_ms=0
        )  # only the process with its sockets knows whether it continues
        return _live(session, session.standing.phase, counted_time.elapsed_at(process.clock.now()))
    row = await process.records.session(tenant, chat_id)
    if row is None or (row.prepared and row.prepared.expires_at <= process.clock.now()):
        return None
    return await _recorded(usage, row)


def _live(session: SessionState, phase: Phase, elapsed_ms: int) -> _Time:
    identity, free_ms = session.identity, session.standing.free_ms
    if phase is Phase.ENDED:
        free_ms = _free_of_ended(identity.terms, free_ms)
    return _Time(
        user_id=identity.user_id,
        account_id=identity.account_id,
        state=phase.value,
        elapsed_ms=elapsed_ms,
        free_ms=free_ms,
        price_micros=identity.terms.price_micros,
    )


def _free_of_ended(terms: Terms, used_ms: int) -> int:
    """Free time of an ended chat.

    An unused part of a shared allowance does not count as its own.
    """
    return terms.free_ms if terms.free_scope == "session" else used_ms


async def _recorded(usage: Usage, row: SessionRow) -> _Time:
    """A chat that Redis lacks: prepared, ended, or soon restored."""
    elapsed_ms, free_ms = row.elapsed_ms, _free_of_ended(row.terms, row.free_ms)
    state: StateName | Literal["prepared"] = "ended"
    if row.state == "prepared":
        state, free_ms = "prepared", row.terms.free_ms
    elif row.state == "live":
        # Redis has lost the session; its recorded minutes are a lower bound of the counted time.
        minutes = await usage.session(row.tenant, row.session_id)
        elapsed_ms = sum(minute.seconds for minute in minutes) * 1000
        state, free_ms = "suspended", row.terms.free_ms
    return _Time(row.user_id, row.account_id, state, elapsed_ms, free_ms, row.terms.price_micros)


def _nothing(request: Request, principal: Principal) -> _Time:
    user_id = principal.user_id or request.query_params.get("user", "")
    account_id = principal.account_id or user_id
    return _Time(user_id, account_id, "none", 0, 0, 0)


async def _shown(process: Process, tenant: str, time: _Time) -> TimeAnswer:
    balance = "0"
    if time.account_id:
        view = await view_as_due(process, AccountName(tenant, time.account_id))
        balance = view.credits(process.clock.now())
    free_left_ms = max(0, time.free_ms - time.elapsed_ms)
    # At the end of free time a live session begins to cost; an ended one never did.
    is_over = free_left_ms == 0 and (time.state != "ended" or time.elapsed_ms > time.free_ms)
    return TimeAnswer(
        duration=time.elapsed_ms // 1000,
        free_time_remaining=-(-free_left_ms // 1000),
        credits=balance,
        is_paid_time=time.price_micros > 0 and is_over,
        state=time.state,
    )


# --- Proof of life -------------------------------------------------------------------


class ChatHeartbeat(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A proof of life; with a kind, it may start the chat.

    A chat is started when it does not exist yet.
    """

    EMPTY_BODY: ClassVar[bool] = True

    kind: (
        Annotated[KindName, describe("A kind of the rate card: starts the chat, or joins it.")]
        | None
    ) = None
    advisor_id: (
        Annotated[CounterpartId, describe("The other side of a chat that starts.")] | None
    ) = None


@described(
    Operation(
        tag="time tracking",
        roles=("user",),
        excludes_operators=True,
        path={"chat_id": "The chat: the session's id."},
        body=ChatHeartbeat,
        answers={200: (TimeAnswer,)},
        errors={402: ("limit_reached",), 422: ("unknown_kind",)},
    )
)
async def send_heartbeat(request: Request) -> Response:
    """Proves life for 75 s, and answers the chat's time.

    This is `POST /v1/sessions/{id}/heartbeat` under its old name. A chat that does not exist, or
    has ended, is no error here either: the call does nothing, and the state says so.
    """
    principal = principal_of(request)
    chat_id = path_id(request, "chat_id")
    wanted = read_body(await raw_body(request), ChatHeartbeat)
    start = None
    if wanted.kind is not None:
        start = messages.Start(
            session_id=chat_id, kind=wanted.kind, counterpart_id=wanted.advisor_id
        )
    try:
        await heartbeats_of(request).beat(principal, chat_id, start)
    except ProtocolError as error:
        if error.code not in (ErrorCode.UNKNOWN_SESSION, ErrorCode.SESSION_ENDED):
            raise
    assert principal.tenant is not None
    return await _answer(request, principal, principal.tenant, chat_id)


ROUTES = [
    Route("/api/time-tracking/{chat_id}", read_time),
    Route("/api/time-tracking/{chat_id}/heartbeat", send_heartbeat, methods=["POST"]),
]
