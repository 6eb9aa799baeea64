"""Sessions over HTTP: the live snapshot, then the receipt."""

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.metering.assertion import minute_again
from protocol.metering.meter import Meter
from protocol.metering.projection import AccountProjection
from protocol.metering.session import Identity, SessionState, session_key
from protocol.metering.snapshots import snapshot
from protocol.metering.states import Event, Phase
from protocol.metering.steps import ended_record
from protocol.wire import messages
from protocol.wire.errors import (
    ErrorCode,
    PeerError,
    ProtocolError,
    RefusedError,
    ServiceError,
)
from protocol.wire.fields import Credits, SessionId, describe
from protocol.wire.money import format_credits
from server import limits as server_limits
from server.access.principals import ACTORS, READERS, Principal
from server.api.accounts import view_account
from server.api.usage import usage_of
from server.calls.receipts import receipt_of
from server.counters.calendars import Calendar, calendar
from server.http.acts import Act
from server.http.openapi import ORG, USER, Operation, described
from server.http.requests import path_id, principal_of, process_of, tenant_of_call
from server.http.responses import answer
from server.http.subjects import NOT_KEPT
from server.process import Process
from server.sessions.local_session import LocalSession
from server.sessions.pending_requests import PendingRequest
from storage import limits as storage_limits
from storage.redis.live import FoundSession

OF_SESSION = Operation(
    tag="sessions",
    roles=("user", "key", "org:read", *READERS),
    path={"id": "The session."},
    parameters=(ORG, USER),
    answers={200: (messages.Session, messages.Receipt)},
    errors={404: ("unknown_session",)},
)


def _asked(request: Request) -> tuple[Process, Principal, str, str]:
    """The process, the sender, and the tenant and session of the request."""
    principal = principal_of(request)
    session_id = path_id(request)
    tenant = tenant_of_call(request, principal)
    return process_of(request), principal, tenant, session_id


@described(OF_SESSION)
async def read_session(request: Request) -> Response:
    """A session: its live snapshot, or its receipt after the end."""
    process, principal, tenant, session_id = _asked(request)
    local = process.registry.local_sessions.get(session_key(tenant, session_id))
    # A local session without sockets gets no steps of other processes, so it may be out of date.
    if local is not None and local.meter.sockets and local.meter.session.standing.version:
        _check_visible(principal, local.meter.session.identity.user_id)
        return answer(local.snapshot())
    found = await process.live.attach(tenant, session_id, read_only=True)
    if found is None:
        return answer(await _recorded(process, principal, tenant, session_id))
    _check_visible(principal, found.session.identity.user_id)
    if found.session.standing.phase is Phase.ENDED:
        return answer(await _receipt(process, found.session))
    return answer(await _snapshot(process, found.session))


class RecordedMinute(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded minute of a session, or one on its way there."""

    minute: Annotated[int, Meta(ge=0, description="The minute's number in its session, from 0.")]
    seconds: Annotated[int, Meta(ge=1, le=60, description="60, except in a last minute.")]
    credits: Annotated[Credits, describe("What the minute cost.")]


class RecordedMinutes(msgspec.Struct, frozen=True, kw_only=True):
    """A session's recorded minutes."""

    session_id: SessionId
    minutes: Annotated[
        list[RecordedMinute],
        describe(f"In their order; the newest {storage_limits.PAGE_ROWS_MAX} of a longer session."),
    ]


@described(msgspec.structs.replace(OF_SESSION, answers={200: (RecordedMinutes,)}))
async def read_minutes(request: Request) -> Response:
    """The completed minutes of a session, for a page that joins late.

    They include those that Postgres has, and those on their way there.
    """
    process, principal, tenant, session_id = _asked(request)
    found = await process.live.attach(tenant, session_id, read_only=True)
    if found is not None:
        _check_visible(principal, found.session.identity.user_id)
    else:
        row = await process.records.session(tenant, session_id)
        if row is None or row.state == "prepared":
            raise _unknown()
        _check_visible(principal, row.user_id)
    most = storage_limits.PAGE_ROWS_MAX
    recorded = await usage_of(request).session(tenant, session_id, most)
    figures = {one.minute: (one.seconds, one.charged_micros) for one in recorded}
    if found is not None:
        kept = found.session.standing.minutes_kept
        if found.session.standing.phase is Phase.ENDED:
            # Postgres may have other minutes until it has the end (postgres/session_records.py).
            reported = found.session.identity.is_reported
            figures = {one: had for one, had in figures.items() if reported and one < kept}
        for minute in range(max(0, kept - most), kept):
            if minute not in figures:
                again = minute_again(found.session, minute, lambda _: "")
                figures[minute] = (again.seconds, again.credits_micros)
    rows = [
        RecordedMinute(minute=minute, seconds=seconds, credits=format_credits(micros))
        for minute, (seconds, micros) in sorted(figures.items())[-most:]
    ]
    return answer(RecordedMinutes(session_id=session_id, minutes=rows), headers=NOT_KEPT)


async def _session_before(request: Request) -> object:
    _, _, tenant, session_id = _asked(request)
    found = await process_of(request).live.attach(tenant, session_id, read_only=True)
    if found is None:
        return None
    identity = found.session.identity
    return {
        "state": found.session.standing.phase.value,
        "kind": identity.kind,
        "user_id": identity.user_id,
        "account_id": identity.account_id,
    }


@described(
    msgspec.structs.replace(
        OF_SESSION,
        roles=("user", "key", *ACTORS),
        act=Act(name="end", target="session:{id}", before=_session_before),
        answers={200: (messages.Receipt,)},
    )
)
async def stop_session(request: Request) -> Response:
    """Ends a session, and answers its receipt.

    For a session that has ended, the answer is its receipt too. The reason is `operator` for a
    token with the scope `ops`, else `client`.
    """
    process, principal, tenant, session_id = _asked(request)
    found = await process.live.attach(tenant, session_id, read_only=True)
    if found is None:
        return answer(await _recorded(process, principal, tenant, session_id))
    _check_visible(principal, found.session.identity.user_id)
    if found.session.standing.phase is not Phase.ENDED:
        await _stop(process, found, "operator" if principal.acts else "client")
        found = await process.live.attach(tenant, session_id, read_only=True)
    if found is None or found.session.standing.phase is not Phase.ENDED:
        raise ServiceError("the session has not ended yet; it will when its store answers")
    return answer(await _receipt(process, found.session))


def _check_visible(principal: Principal, user_id: str) -> None:
    """Raises ``unknown_session`` for another user's session, so that ids stay private."""
    if not principal.may_see_session(user_id):
        raise _unknown()


def _unknown() -> ProtocolError:
    return PeerError(ErrorCode.UNKNOWN_SESSION, "there is no such session")


# --- Stopping ------------------------------------------------------------------------


class EndWaiter:
    """A request that waits for a session's end.

    It is a subscriber without a socket.
    """

    def __init__(self) -> None:
        self.has_left = asyncio.Event()

    def send(self, frame: bytes) -> None:
        """Ignores the frame: the request reads the session itself."""

    def send_tick(self, frame: bytes) -> bool:
        """Ignores the tick."""
        return True

    def probe(self) -> None:
        """Does nothing: a request is no proof of the client's life."""

    def farewell(self, at_ms: int) -> None:
        """Does nothing: a request proves nothing in advance."""

    def left(self, local: LocalSession) -> None:
        """Wakes the request: the session has ended."""
        self.has_left.set()


async def _stop(process: Process, found: FoundSession, reason: str) -> None:
    """Asks for the session's end, and waits a bounded time.

    It waits as long as a request may. A process with the client's sockets ends the session, so that
    its last seconds are proven; without such a process this one does. The caller checks whether the
    session has ended.
    """
    identity, registry, live = found.session.identity, process.registry, process.live
    waiter = EndWaiter()
    try:
        local = await registry.open(waiter, identity.tenant, identity.session_id)
    except RefusedError:
        return  # the session ended meanwhile
    if local is None:
        return
    try:
        async with asyncio.timeout(server_limits.REQUEST_TIMEOUT_MS / 1000):
            if local.meter.sockets or not found.nodes - {live.node}:
                registry.request(
                    local, Event.STOP, PendingRequest(subscriber=None, request_id=None), reason
                )
            else:
                message = {"stop": identity.session_id, "reason": reason}
                await live.tell(identity.tenant, identity.account_id, message)
            await waiter.has_left.wait()
    except TimeoutError:
        return  # the caller reports it
    finally:
        registry.unsubscribe(local, waiter, process.clock.now())


# --- Reading --------------------------------------------------------------------------


async def _snapshot(process: Process, session: SessionState) -> messages.Session:
    """The snapshot of a session of other processes: a projection from Redis."""
    identity, now_ms = session.identity, process.clock.now()
    view = await view_account(process, identity.tenant, identity.account_id)
    days = await _calendar(process, identity)
    meter = _meter(process, session, view.projection, days)
    if identity.terms.counts_minutes:
        meter.member, meter.org = await process.live.month(
            identity.tenant, identity.user_id, days.month(now_ms)
        )
    meter.changed(now_ms)
    # This meter sends nothing: the processes with the sockets send its notices.
    return msgspec.structs.replace(snapshot(meter, now_ms), seq=session.standing.seq)


def _meter(
    process: Process, session: SessionState, account: AccountProjection, days: Calendar
) -> Meter:
    return Meter(session, account, days.month, process.settings.uncovered_ms)


async def _calendar(process: Process, identity: Identity) -> Calendar:
    """The calendar of the session's months; UTC if it needs none."""
    if identity.org_id is None or not identity.terms.counts_minutes:
        return calendar("UTC")
    return calendar((await process.loader.member(identity.tenant, identity.user_id)).timezone)


async def _recorded(
    process: Process, principal: Principal, tenant: str, session_id: str
) -> messages.Receipt:
    """The receipt of a session that Redis has forgotten, from its record."""
    row = await process.records.session(tenant, session_id)
    if row is None or row.state == "prepared":
        raise _unknown()
    _check_visible(principal, row.user_id)
    if row.state == "live":
        raise ServiceError("the session is being restored")
    return await receipt_of(process.records, row.end)


async def _receipt(process: Process, session: SessionState) -> messages.Receipt:
    return await receipt_of(process.records, ended_record(session.identity, session.standing))


ROUTES = [
    Route("/v1/sessions/{id}", read_session),
    Route("/v1/sessions/{id}/minutes", read_minutes),
    Route("/v1/sessions/{id}/stop", stop_session, methods=["POST"]),
]
