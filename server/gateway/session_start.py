"""Decides a session's identity before it starts: terms, account, free time."""

import base64
import hashlib

from protocol.metering.session import Identity, free_key
from protocol.metering.steps import StartBasis
from protocol.metering.terms import Terms
from protocol.wire import messages
from protocol.wire.errors import ErrorCode, PeerError, RefusedError, ServiceError
from server.access.principals import Principal
from server.counters.calendars import calendar
from server.gateway.preparations import basis_of_start
from server.process import Process
from server.sessions.local_session import LocalSession
from server.sessions.pending_requests import PendingRequest, Subscriber
from storage.postgres.records import UnavailableError
from storage.redis.spending import AccountName
from storage.rows.sessions import SessionRow

CALL_PREFIX = "call:"
"""The beginning of the ids of calls' sessions (PROTOCOL section 5)."""
CALL_COLONS = 3
"""Colons in such an id: before the provider, the run and the user."""
CALL_USER_HASH_CHARACTERS = 22


async def join_or_start(
    process: Process,
    principal: Principal,
    subscriber: Subscriber,
    session_id: str,
    start: messages.Start | None,
    pending: PendingRequest,
) -> LocalSession:
    """Joins a session, or starts it as ``start`` says; answers the request.

    Without ``start`` only an existing session is joined. Raises ``unknown_session``,
    ``session_ended``, ``forbidden``, ``unknown_kind``, ``unavailable``, and ``rate_limited`` for a
    user who starts too many sessions.
    """
    assert principal.tenant is not None
    assert principal.user_id is not None
    registry = process.registry
    for _ in range(2):
        local = await registry.join(
            subscriber,
            principal.tenant,
            session_id,
            principal.user_id,
            pending,
            tick_ms=start.tick_ms if start is not None else None,
            last_seq=start.last_seq if start is not None else None,
        )
        if local is not None:
            return local
        if start is None:
            raise PeerError(
                ErrorCode.UNKNOWN_SESSION, "there is no such session; name its kind to start it"
            )
        process.starts.check(principal)
        identity, basis = await identity_of(process, principal, start)
        await process.ledger.ensure_allotment_at_start(
            AccountName(identity.tenant, identity.account_id)
        )
        local = await registry.start(subscriber, identity, pending, start.tick_ms, basis)
        if local is not None:
            return local
        # Another socket was faster by a moment: join the session that it starts.
    raise ServiceError("the session is being started")


async def identity_of(
    process: Process,
    principal: Principal,
    request: messages.Start,
    *,
    may_prepare: bool = False,
) -> tuple[Identity, StartBasis]:
    """The identity of a new session, and the basis of its start.

    The request and the record decide both. A session that a backend prepared has terms of its own,
    which the browser cannot change. ``may_prepare``: a backend asks, which can prepare the session
    where only prepared ones may start. Raises ``session_ended``, ``forbidden``, ``unknown_kind``,
    ``unavailable``.
    """
    assert principal.tenant is not None
    assert principal.user_id is not None
    assert principal.account_id is not None
    try:
        basis, row = await basis_of_start(
            process, principal.tenant, request.session_id, principal.user_id
        )
    except UnavailableError as error:
        raise ServiceError("the record of sessions does not answer") from error
    if row is not None:
        _check(row, principal)
    elif process.settings.start == "prepared" and not may_prepare:
        raise PeerError(ErrorCode.FORBIDDEN, "only prepared sessions may be started")
    terms = row.terms if row is not None else process.rates.terms(request.kind)
    check_call_id(request.session_id, principal.user_id, terms)
    account_id = row.account_id if row is not None else principal.account_id
    prepared_for = row.counterpart_id if row is not None else None
    counterpart_id = prepared_for or request.counterpart_id
    principal.check_start(terms.kind, counterpart_id)
    if not (prepared_for or principal.knows_counterpart(counterpart_id)):
        terms = terms.with_unknown_counterpart()
    now_ms = process.clock.now()
    day = ""
    if terms.free_scope == "day":
        day = await _day(process, principal, now_ms)
    identity = Identity(
        tenant=principal.tenant,
        session_id=request.session_id,
        user_id=principal.user_id,
        org_id=principal.org_id,
        account_id=account_id,
        counterpart_id=counterpart_id,
        kind=terms.kind,
        started_at=now_ms,
        terms=terms,
        free_key=free_key(terms, principal.user_id, counterpart_id, day),
        metadata=row.metadata if row is not None and row.metadata else request.metadata,
    )
    return identity, basis


def call_user_hash(user_id: str) -> str:
    """What stands for a long user id in a call's id."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(user_id.encode()).digest()).decode()
    return digest[:CALL_USER_HASH_CHARACTERS]


def check_call_id(session_id: str, user_id: str, terms: Terms) -> None:
    """Raises ``forbidden`` for a call's id that the user may not start.

    Such an id has its user at the end, and a kind with an outside clock: no other user takes the
    id, and no cheaper kind.
    """
    if not session_id.startswith(CALL_PREFIX) or session_id.count(":") < CALL_COLONS:
        return
    is_own = session_id.endswith((f":{user_id}", f":~{call_user_hash(user_id)}"))
    if not (is_own and terms.is_provided):
        raise PeerError(ErrorCode.FORBIDDEN, "the id is that of another user's call")


def _check(row: SessionRow, principal: Principal) -> None:
    if row.user_id != principal.user_id:
        raise PeerError(ErrorCode.FORBIDDEN, "the session belongs to another user")
    if row.state == "ended":
        raise RefusedError(ErrorCode.SESSION_ENDED, "the session has ended")
    if row.state == "live":
        raise ServiceError("the session is being restored")


async def _day(process: Process, principal: Principal, now_ms: int) -> str:
    """Today's date, by the organisation's calendar."""
    zone = "UTC"
    if principal.org_id is not None:
        assert principal.tenant is not None
        assert principal.user_id is not None
        zone = (await process.loader.member(principal.tenant, principal.user_id)).timezone
    return calendar(zone).day(now_ms).isoformat()
