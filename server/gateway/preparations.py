"""Preparations: what a backend says of a session before its user starts it, and binds.

Once a preparation is confirmed, the session can only run as prepared. Postgres has it first,
then Redis notes it; a start says what it was decided from, and Redis refuses it when that is no
longer so (``protocol.metering.steps.Basis``). A session that was faster is found in Redis, and
the preparation is refused instead.
"""

import msgspec

from protocol.metering.steps import StartBasis
from protocol.wire.errors import ErrorCode, PeerError, ServiceError
from server.process import Process
from storage.redis.recovery import Restoring
from storage.rows.sessions import SessionPrepared, SessionRow


class SessionExistsError(Exception):
    """The session has started, has ended, or was prepared otherwise."""


async def prepare(
    process: Process, wanted: SessionPrepared, any_end: bool
) -> tuple[SessionPrepared, bool]:
    """Prepares a session; answers the preparation that binds, and whether it is a new one.

    ``any_end``: a preparation that differs in its end alone is the same. Raises
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
        await Restoring(live).is_settled(prepared.tenant)  # a loss is noticed by now
        raise ServiceError("the session store recovers from a loss; prepare the session again")
    if confirmed == "exists":
        await process.records.retract_session(prepared)
        raise SessionExistsError


async def basis_of_start(
    process: Process, tenant: str, session_id: str, user_id: str
) -> tuple[StartBasis, SessionRow | None]:
    """What a start is decided from: the life of Redis's data, and then what is recorded of the
    session, which is a preparation or nothing.

    Raises ``forbidden`` for another user's preparation and one that has expired,
    ``unavailable``, and ``UnavailableError`` where Postgres is away.
    """
    # Redis remembers the end of a session until the record knows of it, but no more than a day:
    # started again, its minutes would be taken for those that are there already.
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
