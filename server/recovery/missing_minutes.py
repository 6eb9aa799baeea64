"""Makes again minutes that Postgres lacks and that a session's standing implies.

A process keeps what its own steps appended (``server.sessions.unflushed``). Entries of another
process are lost if that process has died and Redis loses its outbox. A process that joined the
session before the loss knows how many minutes the session has completed and what they cost, and
goes on from there. Without the lost minutes, the session's receipt would name minutes that no
record shows. So they are made again. A minute is written once, by its number: if its own record
arrives after all, that record changes nothing.
"""

from collections.abc import Iterable

import structlog

from protocol.metering.assertion import minute_again
from protocol.metering.records import Record
from protocol.metering.session import SessionState
from protocol.metering.steps import started_record
from server.counters.tenants import Tenants
from storage import limits as storage_limits
from storage.postgres.records import Records, RejectedError, UnavailableError

log = structlog.get_logger()


class MissingMinutes:
    """Writes the missing minutes of sessions that this process knows."""

    def __init__(self, records: Records, tenants: Tenants) -> None:
        self.records = records
        self.tenants = tenants

    async def complete(self, sessions: Iterable[SessionState]) -> bool:
        """Completes all sessions.

        False: Postgres does not answer. The call may be repeated.
        """
        known = [session for session in sessions if session.standing.minutes_kept]
        try:
            for first in range(0, len(known), storage_limits.ASSERTIONS_PER_BATCH):
                await self._complete(known[first : first + storage_limits.ASSERTIONS_PER_BATCH])
        except UnavailableError:
            return False
        return True

    async def _complete(self, batch: list[SessionState]) -> None:
        by_name = {(one.identity.tenant, one.identity.session_id): one for one in batch}
        missing = await self.records.minutes_missing(
            [(*name, session.standing.minutes_kept) for name, session in by_name.items()]
        )
        again: dict[tuple[str, str], list[Record]] = {}
        for one in missing:
            name = one.tenant, one.session_id
            session = by_name[name]
            calendar = await self.tenants.calendar_of(session.identity)
            made = again.setdefault(name, [started_record(session.identity)])
            made.append(minute_again(session, one.minute, calendar.month))
        for records in again.values():
            try:
                await self.records.write(records)
            except RejectedError as error:
                log.error("minutes_refused", error=str(error))
