"""The record: the only way to write and query Postgres.

``storage.postgres.database`` describes how queries are made and how they fail;
``storage.postgres.ledgers`` has the part about credits.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import date

import msgspec
from msgspec import UNSET, UnsetType

from protocol.metering.records import (
    EntryPosted,
    HoldChanged,
    MinuteUsed,
    Record,
    SessionStarted,
)
from storage import limits as storage_limits
from storage.postgres import columns
from storage.postgres.database import SQL, Connection, RejectedError, UnavailableError
from storage.postgres.ledgers import Ledgers
from storage.postgres.session_records import write_sessions
from storage.rows.idempotency import Fresh, Mismatch, StoredAnswer, UnderWay
from storage.rows.months import (
    FreeRecord,
    LimitChange,
    MemberRecord,
    MemberRow,
    OrganizationRow,
    UsageDay,
    UsageLimit,
)
from storage.rows.sessions import (
    LiveSession,
    MissingMinute,
    ReportedSession,
    SessionFilter,
    SessionPrepared,
    SessionRow,
)

__all__ = ["SQL", "Records", "RejectedError", "UnavailableError"]


class Records(Ledgers):
    """The record. Make one with ``connect``, then ``close``."""

    # Records of the outbox

    async def write(self, records: Sequence[Record]) -> None:
        """Writes all of ``records`` to Postgres, in one transaction.

        They may come in any order, and any number of times: existing rows stay as they are. A
        minute that is new and cost something makes the ledger's entry
        ``burn:<session_id>:<minute>``. Where a session's end contradicts its minutes, the end
        counts (``session_records``). The first end of a hold counts: a post after another end is
        left out. Raises ``RejectedError`` when one of the records can never be written; then none
        is written.
        """
        started = columns.unique(records, SessionStarted, "tenant", "session_id")
        ended = columns.counting_ends(records)
        minutes = columns.unique(records, MinuteUsed, "tenant", "session_id", "minute")
        entries = list(
            columns.unique(records, EntryPosted, "tenant", "account_id", "entry_id").values()
        )
        operations = [row for entry in entries for row in columns.operation_rows(entry)]
        holds = columns.furthest_holds(
            record for record in records if isinstance(record, HoldChanged)
        )

        async def write(connection: Connection) -> None:
            # Always these tables in this order, and the triggers' tables after them, each sorted by
            # its key. So two flushers may wait for each other, but never in a circle. The records
            # of a spend are one statement, which needs no transaction around it.
            several = started or ended or minutes or holds
            async with connection.transaction() if several else nullcontext():
                ledger = [columns.entry_row(entry) for entry in entries if columns.has_moved(entry)]
                if started or ended or minutes:
                    ledger += await write_sessions(connection, started, ended, minutes)
                # Before the ledger, which takes the posted part of a hold and no more.
                if holds:
                    await connection.execute(
                        SQL["write_holds"], *columns.arrays(holds, columns.HOLD)
                    )
                if ledger or operations:
                    await connection.execute(
                        SQL["write_entries"],
                        *columns.turned(ledger, columns.ENTRY_WIDTH),
                        *columns.turned(operations, columns.OPERATION_WIDTH),
                    )

        await self._run(write)

    # Sessions

    async def prepare_session(self, session: SessionPrepared, now_ms: int) -> bool:
        """Keeps a prepared session. False: its id is taken, in whatever state.

        The id of an expired preparation is not taken.
        """
        arguments = columns.prepared_row(session)
        return await self._value("prepare_session", *arguments, now_ms, again=False) is not None

    async def retract_session(self, session: SessionPrepared) -> None:
        """Removes a preparation whose session was started without it."""
        asked = (session.tenant, session.session_id, session.expires_at)
        await self._execute("retract_session", *asked)

    async def session(self, tenant: str, session_id: str) -> SessionRow | None:
        """Returns the session of that id, or None."""
        return (await self.sessions_by_id(tenant, [session_id])).get(session_id)

    async def sessions_by_id(
        self, tenant: str, session_ids: Sequence[str]
    ) -> dict[str, SessionRow]:
        """Returns those of ``session_ids`` that the tenant has."""
        found = await self._rows("sessions", SessionRow, tenant, list(session_ids))
        return {row.session_id: row for row in found}

    async def sessions_page(
        self, tenant: str, wanted: SessionFilter, before: tuple[int, str] | None, limit: int
    ) -> tuple[SessionRow, ...]:
        """Returns a page of a tenant's sessions that have started, newest first.

        ``before`` is the beginning (epoch ms) and the id of the last session of the page before;
        None: the first page.
        """
        filters = msgspec.structs.astuple(wanted)
        asked = (tenant, *filters, *(before or (None, None)), limit)
        return await self._rows("sessions_page", SessionRow, *asked)

    async def has_live_sessions(self) -> bool:
        """Whether any session is running, as far as Postgres knows."""
        return bool(await self._value("has_live_sessions"))

    async def live_sessions(
        self, after_tenant: str, after_session_id: str, limit: int
    ) -> tuple[LiveSession, ...]:
        """Returns a page of the sessions that run in Postgres.

        ``after_tenant`` and ``after_session_id`` name the last session of the page before.
        """
        asked = (after_tenant, after_session_id, limit)
        return await self._rows("live_sessions", LiveSession, *asked)

    async def reported_sessions(
        self, after_tenant: str, after_session_id: str, limit: int
    ) -> tuple[ReportedSession, ...]:
        """Returns a page of running sessions with minutes from their clients.

        They run as far as Postgres knows. ``after_tenant`` and ``after_session_id`` name the last
        session of the page before.
        """
        asked = (after_tenant, after_session_id, limit)
        return await self._rows("reported_sessions", ReportedSession, *asked)

    async def minutes_missing(
        self, completed: Sequence[tuple[str, str, int]]
    ) -> tuple[MissingMinute, ...]:
        """Returns the minutes that Postgres lacks of sessions.

        ``completed`` has the tenant, id and number of completed minutes of each session.
        """
        arguments = columns.turned(completed, 3)
        return await self._rows("minutes_missing", MissingMinute, *arguments)

    async def free_used(
        self,
        tenant: str,
        user_id: str,
        counterpart_id: str | None,
        kind: str,
        day: tuple[int, int] | None = None,
        *,
        ended_after: int | None = None,
    ) -> FreeRecord:
        """Returns the free milliseconds that a user has had of a kind.

        With a counterpart, the free time of that pair (scope ``pair``); with the beginning and the
        end of a ``day``, the free time of sessions that began on it (scope ``day``).
        ``ended_after`` as in ``load_account``.
        """
        asked = (tenant, user_id, kind, counterpart_id, *(day or (None, None)), ended_after)
        return await self._one("free_used", FreeRecord, *asked)

    # Organisations, members and their months

    async def load_member(
        self,
        tenant: str,
        user_id: str,
        months: Sequence[date],
        *,
        ended_after: int | None = None,
        everybody: bool = False,
        adjusted_after: int | None = None,
    ) -> MemberRecord:
        """Returns limits, and their use in ``months`` (first days), from one snapshot.

        Without rows: no limits, UTC, tier ``free``, nothing used. ``ended_after`` as in
        ``load_account``: for the sessions of the member, or with ``everybody`` for those of all
        members.
        """
        asked = (tenant, user_id, list(months), ended_after, everybody, adjusted_after)
        return await self._one("load_member", MemberRecord, *asked)

    async def organization(self, tenant: str) -> OrganizationRow | None:
        """Returns the organisation's plan; None: no plan was put yet."""
        return await self._maybe("organization", OrganizationRow, tenant)

    async def member(self, tenant: str, user_id: str) -> MemberRow | None:
        """Returns the member's own limit; None for a member without a row."""
        return await self._maybe("member", MemberRow, tenant, user_id)

    async def put_organization(
        self,
        tenant: str,
        org_id: str,
        *,
        tier: str | UnsetType = UNSET,
        timezone: str | UnsetType = UNSET,
        monthly_hours_limit: float | UnsetType | None = UNSET,
        allow_overage: bool | UnsetType = UNSET,
    ) -> OrganizationRow:
        """Makes or changes an organisation.

        A missing value stays, or gets its default. A value that was changed since this call began
        stays as well, whenever the statement reaches Postgres, and however often.

        Raises ``RejectedError`` for an unknown time zone, and for a limit below 0 or above
        1,000,000 hours.
        """
        given = (tier, timezone, columns.number(monthly_hours_limit), allow_overage)
        values = [part for value in given for part in columns.given(value)]
        asked = (tenant, org_id, *values, await self._next_change())
        return await self._one("put_organization", OrganizationRow, *asked)

    async def put_member(
        self,
        tenant: str,
        user_id: str,
        *,
        monthly_hours_limit: float | UnsetType | None = UNSET,
    ) -> MemberRow:
        """Makes or changes a member; a limit that is not given stays.

        A limit that was changed since this call began stays as well, as in ``put_organization``.
        """
        limit = columns.given(columns.number(monthly_hours_limit))
        asked = (tenant, user_id, *limit, await self._next_change())
        return await self._one("put_member", MemberRow, *asked)

    async def _next_change(self) -> int:
        """Takes the number of a change: its place among all changes."""
        return int(await self._value("next_change"))

    async def limits_since(self, within_ms: int, limit: int) -> tuple[LimitChange, ...]:
        """Returns all tenants' newest limit changes within ``within_ms``."""
        return await self._rows("limits_since", LimitChange, within_ms, limit)

    async def check_usage_limit(
        self, user_id: str, org_id: str | None, instant_at: int
    ) -> UsageLimit:
        """Returns whether a user may record, and the deciding limit."""
        return await self._one("check_usage_limit", UsageLimit, user_id, org_id, instant_at)

    async def usage_details(
        self, user_id: str | None, org_id: str | None, from_day: date, to_day: date
    ) -> tuple[UsageDay, ...]:
        """Returns usage by day, before ``to_day``; user None: the organisation."""
        return await self._rows("usage_details", UsageDay, user_id, org_id, from_day, to_day)

    # Idempotency

    async def begin_idempotent(
        self,
        tenant: str,
        scope: str,
        key: str,
        fingerprint: str,
        *,
        takeover_ms: int = storage_limits.IDEMPOTENT_TAKEOVER_MS,
    ) -> Fresh | UnderWay | Mismatch | StoredAnswer:
        """Requests the right to do the work of a key.

        Work that has been under way for ``takeover_ms`` passes to the caller: its process has died.
        If that process is alive after all, both do the same, because the ids of what they write
        follow from the key.
        """
        for _ in range(storage_limits.DATABASE_ATTEMPTS_MAX):
            row = await self._run(
                lambda connection: connection.fetchrow(
                    SQL["begin_idempotent"], tenant, scope, key, fingerprint, takeover_ms
                ),
                again=False,
            )
            if row is None:  # another call began at the same instant: its row is visible now
                continue
            if row["fresh"]:
                return Fresh(row["created_at"])
            if row["fingerprint"] != fingerprint:
                return Mismatch()
            if row["status"] is None:
                return UnderWay()
            return StoredAnswer(row["status"], row["response"])
        return UnderWay()

    async def finish_idempotent(
        self, tenant: str, scope: str, key: str, mine: Fresh, status: int, body: bytes
    ) -> bool:
        """Keeps the answer of a key. False: the key was taken over."""
        asked = (tenant, scope, key, status, body, mine.began_at)
        return (await self._execute("finish_idempotent", *asked)).endswith(" 1")

    async def release_idempotent(self, tenant: str, scope: str, key: str, mine: Fresh) -> None:
        """Gives up work without an answer: the key is free again.

        A key that was taken over stays as it is.
        """
        await self._execute("release_idempotent", tenant, scope, key, mine.began_at)

    async def prune_idempotent(self, before_at: int, limit: int = 1_000) -> int:
        """Deletes at most ``limit`` keys from before an instant; returns how many."""
        return int((await self._execute("prune_idempotent", before_at, limit)).split()[-1])
