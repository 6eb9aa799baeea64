"""Lost sessions: Redis lost them together with the process that ran them.

That takes two failures at once. Such a session is live in Postgres alone. It is ended there with
what Postgres has of it; time that Postgres lacks is not billed. The end is asserted in Redis first,
because counters that were loaded before the session's last minutes reached Postgres lack those
minutes.

Sessions are checked once every process that still knew a session has put it back, or has had to
stop it, because no process runs a session uncovered for longer than that. A session whose end waits
in the outbox is not lost, although Redis may have forgotten it by its own clock.
"""

from collections.abc import Awaitable, Callable

import msgspec
import structlog

from protocol.metering.records import SessionEnded
from protocol.metering.session import (
    Grant,
    Identity,
    SessionState,
    free_key,
    unstarted,
)
from protocol.metering.states import Phase
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.counters.loading import Loader
from server.recovery.session_pages import session_pages
from server.runtime.isolation import for_each
from storage import limits as storage_limits
from storage.postgres.columns import LOST
from storage.postgres.records import Records
from storage.postgres.session_records import ended_of
from storage.postgres.usage import Usage
from storage.redis.live import LiveError
from storage.redis.recovery import Restoring
from storage.rows.sessions import LiveSession

log = structlog.get_logger()

PutBack = Callable[[SessionState, tuple[bytes, ...]], Awaitable[bool]]
"""Asserts a session that has ended; see ``server.recovery.reassertion``.

True: Redis has a different version of it.
"""


class LostSessions:
    """Ends the sessions that only the record knows."""

    def __init__(
        self, restoring: Restoring, records: Records, loader: Loader, put_back: PutBack
    ) -> None:
        self.restoring = restoring
        self.live = restoring.live
        self.records = records
        self.usage = Usage.over(records)
        self.loader = loader
        self.clock = loader.clock
        self._put_back = put_back

    async def end(self) -> int:
        """Ends all lost sessions as ``node_lost``; returns their number.

        Raises ``LiveError``, ``UnavailableError`` and, if the record is too far behind to tell,
        ``ServiceError``. Sessions that are left are found the next time.
        """
        count = 0
        # Before Postgres is read: records that are flushed meanwhile are then in what is read.
        behind = await self.loader.behind(storage_limits.ACCOUNT_IDLE_MS)
        is_complete = True

        async def end(session: LiveSession) -> None:
            nonlocal count, is_complete
            if self.live.keys.partition(session.tenant) in behind:
                is_complete = False
                return
            count += await self._end(session)

        async for page in session_pages(self.records.live_sessions):
            await for_each("lost session", page, end)
        if count:
            log.warning("lost_sessions_ended", sessions=count)
        if not is_complete:
            raise ServiceError("the record is too far behind to tell whether a session is lost")
        return count

    async def _end(self, session: LiveSession) -> bool:
        tenant, session_id = session.tenant, session.session_id
        if await self._is_known(session):
            return False
        if not await self.restoring.is_settled(tenant):
            raise LiveError("a loss is still being recovered")
        row = await self.records.session(tenant, session_id)
        if row is None or row.state != "live":
            return False
        minutes = await self.usage.session(tenant, session_id)
        ended = ended_of(row, minutes)
        silent_ms = self.clock.now() - ended.ended_at
        if session.is_reported and silent_ms < server_limits.REPORTED_SILENCE_MS_MAX:
            return False  # its client goes on, and its next minute restores it
        if not session.is_reported and await self._put_back(session_of(row.identity, ended), ()):
            return False  # the process that runs it has put it back meanwhile
        await self.records.write([ended])
        return True

    async def _is_known(self, session: LiveSession) -> bool:
        """Whether Redis has the session.

        False also if an earlier attempt asserted this end in Redis and did not write it to
        Postgres.
        """
        tenant, session_id = session.tenant, session.session_id
        if not await self.live.is_warm(self.live.keys.session(tenant, session_id)):
            return False
        if session.is_reported:
            return True
        found = await self.live.attach(tenant, session_id, read_only=True)
        return found is None or found.session.standing.reason != LOST


def session_of(identity: Identity, ended: SessionEnded) -> SessionState:
    """The session with that end, older than any process's version."""
    if ended.terms.free_scope == "pair":
        key = free_key(ended.terms, ended.user_id, ended.counterpart_id, "")
        identity = msgspec.structs.replace(identity, free_key=key)
    standing = msgspec.structs.replace(
        unstarted(Phase.ENDED, ended.ended_at, ended.free_ms),
        elapsed_ms=ended.elapsed_ms,
        settled_ms=ended.elapsed_ms,
        charged_micros=ended.credits_micros,
        minute_charged_micros=ended.credits_micros,
        minutes_kept=ended.minutes,
        free_over=True,
        ended_at=ended.ended_at,
        reason=ended.reason,
        segments=tuple(ended.segments),
    )
    return SessionState(identity, standing, Grant())
