"""Minutes that the record lacks, and that follow from where their session stands.

A process keeps what its own steps appended (``server.sessions.unflushed``). What another one
appended is lost where that one has died and Redis loses its outbox. Whoever joined the session
between the two knows how many minutes it has completed and what they cost, and goes on from
there: its receipt would name minutes that nobody can show. So they are made again. A minute is
written down once, by its number; should its own record come after all, it changes nothing.
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
    """Writes down the minutes that are missing of sessions that this process knows."""

    def __init__(self, records: Records, tenants: Tenants) -> None:
        self.records = records
        self.tenants = tenants

    async def complete(self, sessions: Iterable[SessionState]) -> bool:
        """Completes all of them; False: Postgres is away. It may be begun anew."""
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
