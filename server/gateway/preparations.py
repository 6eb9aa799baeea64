"""Preparations: a backend fixes a session's terms before its user starts it.

Once a preparation is confirmed, the session can only run as prepared. Postgres stores the
preparation first, then Redis notes it. A start names the data from which it was decided, and Redis
refuses the start if that data has changed (``protocol.metering.steps.StartBasis``). If the session
started before the confirmation, Redis already has it, and the preparation is refused instead.
"""

import msgspec

from protocol.metering.steps import StartBasis
from protocol.wire.errors import ErrorCode, PeerError, ServiceError
from server.process import Process
from storage.redis.recovery import Restoring
from storage.rows.sessions import SessionPrepared, SessionRow


class SessionExistsError(Exception):
    """The session has started, has ended, or was prepared differently."""


async def prepare(
    process: Process, wanted: SessionPrepared, any_end: bool
) -> tuple[SessionPrepared, bool]:
    """Prepares a session; returns the binding preparation, and whether it is new.

    ``any_end``: a preparation that differs only in its end is the same. Raises
    :class:`SessionExistsError`, and ``unavailable`` while Redis recovers from a loss.
    """
    live, now_ms = process.live, process.clock.now()
    if await live.attach(wanted.tenant, wanted.session_id, read_only=True) is not None:
        raise SessionExistsError
    is_new = await process.records.prepare_session(wanted, now_ms)
    found: SessionPrepared | None = wanted
    if not is_new:
        row = await process.records.session(wanted.tenant, wanted.session_id)
        found = row.prepared if row is not None else None
    if found is None or found != (
        msgspec.structs.replace(wanted, expires_at=found.expires_at) if any_end else wanted
    ):
        raise SessionExistsError
    await _confirm(process, found)
    return found, is_new


async def _confirm(process: Process, prepared: SessionPrepared) -> None:
    live, name = process.live, (prepared.tenant, prepared.session_id)
    confirmed = await live.confirm_preparation(
        *name, preparation=prepared.preparation, expires_at=prepared.expires_at
    )
    if confirmed == "unsettled":
        await Restoring(live).is_settled(prepared.tenant)  # this call also notes the loss
        raise ServiceError("the session store recovers from a loss; prepare the session again")
    if confirmed == "exists":
        await process.records.retract_session(prepared)
        raise SessionExistsError


async def basis_of_start(
    process: Process, tenant: str, session_id: str, user_id: str
) -> tuple[StartBasis, SessionRow | None]:
    """The basis of a start, and the session's row.

    The basis is Redis's epoch and the preparation, if any. The row is the session's record: mostly
    a preparation, or None. Raises ``forbidden`` for another user's preparation and one that has
    expired, ``unavailable``, and ``UnavailableError`` if Postgres does not answer.
    """
    # Redis remembers the end of a session until Postgres has it, but no longer than a day. If the
    # session started again after that, its new minutes would count as the recorded ones.
    epoch = await process.loader.refuse_behind(tenant)
    row = await process.records.session(tenant, session_id)
    if row is None or row.prepared is None:
        return StartBasis(epoch), row
    prepared = row.prepared
    if prepared.user_id != user_id:
        raise PeerError(ErrorCode.FORBIDDEN, "the session belongs to another user")
    if prepared.expires_at <= process.clock.now():
        raise PeerError(ErrorCode.FORBIDDEN, "the session's preparation has expired")
    return StartBasis(epoch, prepared.preparation), row
