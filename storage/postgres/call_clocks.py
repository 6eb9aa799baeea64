"""The record of two clocks: a call's facts, and what they corrected.

The statements are ``storage/postgres/sql/*.sql``. Instants are epoch milliseconds.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import date

import msgspec

from storage import limits as storage_limits
from storage.postgres.columns import json_value, text_value
from storage.postgres.database import Database
from storage.postgres.reports import StreamedQueries
from storage.rows.call_clocks import CallOfSession, ProviderDuration

_DOCUMENTS = frozenset({"stretches", "corrections"})
_TEXTS = frozenset({"call_id", "call_session", "reason"})


class CallReportRow(msgspec.Struct, frozen=True):
    """One line of the report of calls; see ``call_report.sql``."""

    org_id: str | None
    user_id: str
    account_id: str
    session_id: str
    provider: str
    call_id: str
    call_session: str
    started_at: str
    """In UTC (RFC 3339)."""
    day: str
    """The day of that instant in the organisation's calendar."""
    elapsed_ms: int
    facts_ms: int
    provider_ms: int | None
    reason: str
    corrected_micros: int
    corrected_minutes: int
    uncollected_ms: int
    uncollected_micros: int


class CallClocks(StreamedQueries):
    """The queries about both clocks.

    Make one with ``over``: the pool remains the record's.
    """

    @classmethod
    def over(cls, database: Database) -> "CallClocks":
        """Returns the queries over ``database``'s pool, which it also closes."""
        return cls(database._pool, database._timeout_s)

    async def call_of(self, tenant: str, session_id: str) -> CallOfSession | None:
        """Returns the run that a session meters, with its facts; None: none."""
        most = storage_limits.CALL_FACTS_READ_MAX
        return await self._maybe("call_of_session", CallOfSession, tenant, session_id, most)

    async def duration(self, tenant: str, session_id: str) -> ProviderDuration | None:
        """Returns both clocks of a session; None: it was not settled."""
        return (await self.durations(tenant, [session_id])).get(session_id)

    async def durations(
        self, tenant: str, session_ids: Sequence[str]
    ) -> dict[str, ProviderDuration]:
        """Returns both clocks of sessions, by their ids, where they were settled."""
        asked = (tenant, list(session_ids))
        found = await self._rows("provider_duration", ProviderDuration, *asked)
        return {one.session_id: one for one in found}

    @contextlib.asynccontextmanager
    async def report(
        self, tenant: str | None, from_day: date, to_day: date
    ) -> AsyncIterator[AsyncIterator[list[CallReportRow]]]:
        """Returns the calls that began between two days, inclusive, in batches.

        ``tenant`` of None: all tenants. See ``storage.postgres.reports``.
        """
        asked = (tenant, from_day, to_day)
        async with self.rows("call_report", CallReportRow, *asked) as found:
            yield found

    async def durations_of_run(
        self, provider: str, call_session: str
    ) -> tuple[ProviderDuration, ...]:
        """Returns both clocks of a run's sessions, at most a page."""
        most = storage_limits.CALL_PARTICIPANTS_READ_MAX
        return await self._rows(
            "provider_durations_of_run", ProviderDuration, provider, call_session, most
        )

    async def put_duration(self, known: ProviderDuration) -> ProviderDuration | None:
        """Writes both clocks in place of ``known.version``; None: another process was faster.

        Returns what is written, with its version.
        """
        made = msgspec.structs.replace(known, version=known.version + 1)
        values = [
            json_value(value)
            if name in _DOCUMENTS
            else text_value(value)
            if name in _TEXTS
            else value
            for name, value in msgspec.structs.asdict(made).items()
        ]
        is_written = await self._value("put_provider_duration", *values, again=False)
        return made if is_written else None
