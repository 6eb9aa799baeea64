"""Estimates: how long a user may talk, before the session starts.

An estimate is a start that is not made. The same code decides the session's terms, its free time
and the step with which it would begin, and the same script of Redis answers that step, without
making it (``Step.rehearsed``). So an estimate is what a start at the same instant would show.
"""

import asyncio
import secrets
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.metering.effects import Ask
from protocol.metering.meter import Meter
from protocol.metering.session import Identity
from protocol.metering.shared_months import SessionCounters
from protocol.metering.snapshots import snapshot
from protocol.metering.states import Phase
from protocol.metering.steps import StartBasis, Step
from protocol.wire import messages
from protocol.wire.errors import (
    BadMessageError,
    ErrorCode,
    PeerError,
    ProtocolError,
    RefusedError,
    ServiceError,
)
from protocol.wire.fields import (
    AccountCredits,
    BindingLimit,
    CounterpartId,
    Credits,
    FreeRemainingMs,
    InstantAt,
    RemainingMs,
    describe,
)
from server import limits as server_limits
from server.access.principals import Principal
from server.api.accounts import view_as_due
from server.api.billing import AccountId
from server.gateway.session_start import identity_of
from server.http.openapi import ORG, Operation, described, query_parameter
from server.http.problems import Problem
from server.http.requests import path_id, principal_of, process_of, query_id, tenant_of_call
from server.http.responses import answer
from server.process import Process
from server.sessions.local_session import free_day_of
from server.sessions.session_table import check_room, new_session
from storage.redis.encoding import burn_line_at
from storage.redis.live import StepOutcome
from storage.redis.spending import AccountName


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a session would show if it started at this instant."""

    account_id: AccountId
    kind: Annotated[str, describe("The kind of the rate card.")]
    counterpart_id: CounterpartId | None
    can_start: Annotated[bool, describe("Whether a start would begin; else `limit` forbids it.")]
    credits: AccountCredits
    credits_per_minute: Annotated[Credits, describe("The price of a billed minute.")]
    free_remaining_ms: FreeRemainingMs
    remaining_ms: RemainingMs
    limit: BindingLimit
    limits: Annotated[list[messages.LimitRemaining], describe("Every limit of the session.")]
    speed: Annotated[int, describe("Counted milliseconds per real one.")]
    server_time_at: InstantAt


USER = query_parameter(
    "user",
    "The user who would start it. A user's token says its own; a backend names one, or leaves it "
    "out where the account has the user's name.",
)
KIND = query_parameter(
    "kind", "The kind. It may be left out with the `session_id` of a prepared session."
)
COUNTERPART = query_parameter(
    "counterpart",
    "The other side. Free time of a pair is counted where the token lists it (`counterparts`), the "
    "session is prepared, or a backend asks.",
)
SESSION = query_parameter("session_id", "A prepared session, which has terms of its own.")


@described(
    Operation(
        tag="accounts",
        roles=("user", "key"),
        path={"id": "The credit account that the session would burn."},
        parameters=(KIND, COUNTERPART, SESSION, ORG, USER),
        answers={200: (Estimate,)},
        errors={409: ("session_ended", "session_exists"), 422: ("unknown_kind",)},
    )
)
async def read_estimate(request: Request) -> Response:
    """How long a session could run if it started now.

    The figures are those of the `session` message that a start at this instant would be answered
    with: at this price, with this free time, beside all that the account burns already. Nothing is
    reserved. A start that would be refused for another reason than a limit is refused here too.
    """
    principal = principal_of(request)
    process, account_id = process_of(request), path_id(request)
    start = _start(request)
    if not principal.may_see_account(account_id):
        raise PeerError(ErrorCode.FORBIDDEN, "the account is not this token's")
    if query_id(request, "session_id") is not None:
        await _check_not_started(process, request, principal, start.session_id)
    user = _as_user(request, principal, account_id, start.counterpart_id)
    identity, basis = await identity_of(process, user, start, may_prepare=principal.is_key)
    if identity.account_id != account_id:
        raise PeerError(ErrorCode.FORBIDDEN, "the session is prepared for another account")
    for _ in range(server_limits.LOADS_PER_STEP_MAX):
        estimate = await _estimate(process, identity, basis)
        if estimate is not None:
            return answer(estimate)
    raise ServiceError("the account changes too fast")


def _start(request: Request) -> messages.Start:
    """The start that the request asks about."""
    kind, session_id = query_id(request, "kind"), query_id(request, "session_id")
    if kind is None and session_id is None:
        raise BadMessageError("kind: missing")
    return messages.Start(
        session_id=session_id or f"estimate:{secrets.token_hex(16)}",
        kind=kind or "",
        counterpart_id=query_id(request, "counterpart"),
    )


async def _check_not_started(
    process: Process, request: Request, principal: Principal, session_id: str
) -> None:
    """Raises for a session that has started or is not the token's."""
    if not principal.is_key and not principal.may_start(session_id):
        raise PeerError(ErrorCode.FORBIDDEN, "the token may not start this session")
    tenant = tenant_of_call(request, principal, path_id(request))
    found = await process.live.attach(tenant, session_id, read_only=True)
    if found is None:
        return
    if not principal.may_see_session(found.session.identity.user_id):
        raise PeerError(ErrorCode.FORBIDDEN, "the session belongs to another user")
    if found.session.standing.phase is Phase.ENDED:
        raise RefusedError(ErrorCode.SESSION_ENDED, "the session has ended")
    raise Problem(409, "session_exists", "the session has started: read its snapshot")


def _as_user(
    request: Request, principal: Principal, account_id: str, counterpart_id: str | None
) -> Principal:
    """The user who would start the session.

    That is the token's, or the one that a backend names.
    A backend knows the counterpart that it names.
    """
    tenant = tenant_of_call(request, principal, account_id)
    if not principal.is_key:
        return principal
    return Principal(
        "user",
        query_id(request, "user") or account_id,
        query_id(request, "org"),
        account_id,
        tenant,
        counterparts=frozenset({counterpart_id}) if counterpart_id is not None else None,
    )


class Rehearsal:
    """A step that Redis answers and does not make; see ``StepSource``."""

    failures = 0

    def __init__(self, process: Process, free_day: tuple[int, int] | None) -> None:
        self.node = process.node
        self.outcome: asyncio.Future[StepOutcome] = asyncio.get_running_loop().create_future()
        self._free_day = free_day

    def free_day(self) -> tuple[int, int] | None:
        """The day of the start, as (begin, end), for daily free time."""
        return self._free_day

    def answered(self, step: Step, outcome: StepOutcome) -> None:
        """Takes the reply."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def unanswered(self, error: ProtocolError, *, made: bool | None) -> None:
        """Takes an error."""
        if not self.outcome.done():
            self.outcome.set_exception(error)


async def _estimate(process: Process, identity: Identity, basis: StartBasis) -> Estimate | None:
    """The figures of a start now; None: the account changed meanwhile."""
    registry = process.registry
    account = AccountName(identity.tenant, identity.account_id)
    view = await view_as_due(process, account, starts=True)
    check_room(view.projection)
    days = await registry.tenants.calendar_of(identity)
    now_ms = process.clock.now()
    session = new_session(identity, now_ms)
    # Nothing of this session is shared: the sessions of this process do not count with it.
    meter = await registry.meter_of(session, view.projection, days, SessionCounters())
    free_day = free_day_of(identity, days)
    if identity.free_key:
        meter.free_left_ms = await registry.free_left(identity, free_day)
    meter.start(now_ms, None, basis)
    step = next(effect.step for effect in meter.effects() if isinstance(effect, Ask))
    rehearsal = Rehearsal(process, free_day)
    registry.pipeline.ask(
        rehearsal, msgspec.structs.replace(step, rehearsed=True, due_micros=view.due_micros)
    )
    outcome = await rehearsal.outcome
    reply, change = outcome.reply, outcome.change
    assert reply is not None
    if reply.refused_by is not None:
        meter.know_months(reply.member, reply.org)
        meter.changed(now_ms)
        return _shown(meter, now_ms, step, reply.refused_by)
    if not reply.accepted or change is None or change.version != view.projection.version + 1:
        return None
    assert reply.session is not None
    line = burn_line_at(identity, reply.session.standing)
    view.projection.apply(
        change.version, change.gross_micros, change.reserved_micros, identity.session_id, line
    )
    meter.granted(reply, now_ms)
    return _shown(meter, now_ms, step, None)


def _shown(meter: Meter, now_ms: int, step: Step, refused_by: str | None) -> Estimate:
    shown, identity = snapshot(meter, now_ms), meter.session.identity
    limits = shown.limits
    if refused_by is not None:
        others = [one for one in limits if one.limit != refused_by]
        limits = [messages.LimitRemaining(limit=refused_by, remaining_ms=0), *others]  # type: ignore[arg-type]
    return Estimate(
        account_id=identity.account_id,
        kind=shown.kind,
        counterpart_id=identity.counterpart_id,
        can_start=refused_by is None,
        credits=shown.credits,
        credits_per_minute=shown.credits_per_minute,
        free_remaining_ms=max(0, step.standing.free_ms),
        remaining_ms=shown.remaining_ms if refused_by is None else 0,
        limit=shown.limit if refused_by is None else refused_by,  # type: ignore[arg-type]
        limits=limits,
        speed=shown.speed,
        server_time_at=now_ms,
    )


ROUTES = [Route("/v1/accounts/{id}/estimate", read_estimate)]
