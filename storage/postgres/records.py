"""The record: what Postgres knows, and the one way to write it and to ask it.

What is asked of Postgres, and how it fails, is said in ``storage.postgres.database``; what concerns
credits is in ``storage.postgres.ledgers``.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import date

from msgspec import UNSET, UnsetType

from protocol.metering.records import (
    EntryPosted,
    HoldChanged,
    MinuteUsed,
    Record,
    SessionEnded,
    SessionStarted,
)
from storage import limits as storage_limits
from storage.postgres import columns
from storage.postgres.database import SQL, Connection, RejectedError, UnavailableError
from storage.postgres.ledgers import Ledgers
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
    SessionPrepared,
    SessionRow,
)

__all__ = ["SQL", "Records", "RejectedError", "UnavailableError"]


class Records(Ledgers):
    """The record. Make one with ``connect``, then ``close``."""

    # Records of the outbox

    async def write(self, records: Sequence[Record]) -> None:
        """Writes down all of ``records``, in one transaction.

        They may come in any order, and any number of times: what is there already is left
        as it is. A minute that is new and cost something makes the ledger's entry
        ``burn:<session_id>:<minute>``. A hold ends as it did first: what is posted of it after
        another end is left out. Raises ``RejectedError`` when one of them can never be
        written; then none is.
        """
        started = columns.unique(records, SessionStarted, "tenant", "session_id")
        ended = columns.unique(records, SessionEnded, "tenant", "session_id")
        minutes = columns.unique(records, MinuteUsed, "tenant", "session_id", "minute")
        entries = list(
            columns.unique(records, EntryPosted, "tenant", "account_id", "entry_id").values()
        )
        operations = [row for entry in entries for row in columns.operation_rows(entry)]
        holds = columns.furthest_holds(
            record for record in records if isinstance(record, HoldChanged)
        )

        async def write(connection: Connection) -> None:
            # Always these tables in this order, and the triggers' after theirs, each
            # sorted by its key: two flushers wait in a line, never in a circle. What a
            # spend leaves is one statement, and needs no transaction around it.
            several = started or ended or minutes or holds
            async with connection.transaction() if several else nullcontext():
                if started:
                    await connection.execute(
                        SQL["write_started"],
                        *columns.arrays(list(started.values()), columns.STARTED),
                    )
                if ended:
                    await connection.execute(
                        SQL["write_ended"], *columns.arrays(list(ended.values()), columns.ENDED)
                    )
                ledger = [columns.entry_row(entry) for entry in entries if columns.has_moved(entry)]
                if minutes:
                    new = await connection.fetch(
                        SQL["write_minutes"],
                        *columns.arrays(list(minutes.values()), columns.MINUTE),
                    )
                    burnt = (minutes[tuple(key)] for key in new)
                    ledger += [
                        columns.burn_row(minute) for minute in burnt if minute.credits_micros
                    ]
                # Before the ledger, which takes of a hold what it was posted with, and no more.
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
        """Keeps a prepared session; False when its id is taken, whatever its state, unless by
        a preparation that has expired."""
        arguments = columns.prepared_row(session)
        return await self._value("prepare_session", *arguments, now_ms, again=False) is not None

    async def retract_session(self, session: SessionPrepared) -> None:
        """Takes back a preparation whose session was started without it."""
        asked = (session.tenant, session.session_id, session.expires_at)
        await self._execute("retract_session", *asked)

    async def session(self, tenant: str, session_id: str) -> SessionRow | None:
        """The session of that id, or None."""
        return (await self.sessions_by_id(tenant, [session_id])).get(session_id)

    async def sessions_by_id(
        self, tenant: str, session_ids: Sequence[str]
    ) -> dict[str, SessionRow]:
        """Those of ``session_ids`` that the tenant has."""
        found = await self._rows("sessions", SessionRow, tenant, list(session_ids))
        return {row.session_id: row for row in found}

    async def has_live_sessions(self) -> bool:
        """Whether any session is running, as far as Postgres knows."""
        return bool(await self._value("has_live_sessions"))

    async def live_sessions(
        self, after_tenant: str, after_session_id: str, limit: int
    ) -> tuple[LiveSession, ...]:
        """A page of the sessions that run as far as Postgres knows, after one of them."""
        asked = (after_tenant, after_session_id, limit)
        return await self._rows("live_sessions", LiveSession, *asked)

    async def reported_sessions(self, limit: int) -> tuple[ReportedSession, ...]:
        """Sessions of all tenants that run as far as Postgres knows, and whose clients count for
        themselves: those with the newest minutes."""
        return await self._rows("reported_sessions", ReportedSession, limit)

    async def minutes_missing(
        self, completed: Sequence[tuple[str, str, int]]
    ) -> tuple[MissingMinute, ...]:
        """The minutes that are not written down, of sessions (tenant, id) that have completed
        so many."""
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
        """The free milliseconds that a user has had of a kind.

        With a counterpart, that pair's (scope ``pair``); with the beginning and the end of
        a ``day``, those of sessions that began on it (scope ``day``). ``ended_after`` as in
        ``load_account``.
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
        """Limits, and what was used of them in ``months`` (first days), from one snapshot.

        Without rows: no limits, UTC, tier ``free``, nothing used. ``ended_after`` as in
        ``load_account``: of the member's sessions, or of ``everybody``'s.
        """
        asked = (tenant, user_id, list(months), ended_after, everybody, adjusted_after)
        return await self._one("load_member", MemberRecord, *asked)

    async def organization(self, tenant: str) -> OrganizationRow | None:
        """The organisation's plan; None while nobody has put one."""
        return await self._maybe("organization", OrganizationRow, tenant)

    async def member(self, tenant: str, user_id: str) -> MemberRow | None:
        """The member's own limit; None for a member without a row."""
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
        """Makes or changes an organisation; what is not given stays, or takes its default.

        Raises ``RejectedError`` for a time zone that is none, and for a limit below 0 or above
        1,000,000 hours.
        """
        given = (tier, timezone, columns.number(monthly_hours_limit), allow_overage)
        arguments = [part for value in given for part in columns.given(value)]
        return await self._one("put_organization", OrganizationRow, tenant, org_id, *arguments)

    async def put_member(
        self,
        tenant: str,
        user_id: str,
        *,
        monthly_hours_limit: float | UnsetType | None = UNSET,
    ) -> MemberRow:
        """Makes or changes a member; a limit that is not given stays."""
        arguments = columns.given(columns.number(monthly_hours_limit))
        return await self._one("put_member", MemberRow, tenant, user_id, *arguments)

    async def limits_since(self, within_ms: int, limit: int) -> tuple[LimitChange, ...]:
        """The newest changes of limits, of all tenants, no longer ago than that."""
        return await self._rows("limits_since", LimitChange, within_ms, limit)

    async def check_usage_limit(
        self, user_id: str, org_id: str | None, instant_at: int
    ) -> UsageLimit:
        """Whether a user may record at an instant, and the limit that decides it."""
        return await self._one("check_usage_limit", UsageLimit, user_id, org_id, instant_at)

    async def usage_details(
        self, user_id: str | None, org_id: str | None, from_day: date, to_day: date
    ) -> tuple[UsageDay, ...]:
        """Usage by day, ``to_day`` not included; a user of None: the whole organisation."""
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
        """Asks for the right to do the work of a key.

        Work that has been under way for ``takeover_ms`` is given to the one who asks: its
        process died. Should it be alive after all, both do the same, because the ids of
        what they write are made from the key.
        """
        for _ in range(storage_limits.DATABASE_ATTEMPTS_MAX):
            row = await self._run(
                lambda connection: connection.fetchrow(
                    SQL["begin_idempotent"], tenant, scope, key, fingerprint, takeover_ms
                ),
                again=False,
            )
            if row is None:  # somebody began at the same instant: now they can be seen
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
        """Keeps the answer of a key. False: it is not ``mine`` any more, somebody took over."""
        asked = (tenant, scope, key, status, body, mine.began_at)
        return (await self._execute("finish_idempotent", *asked)).endswith(" 1")

    async def release_idempotent(self, tenant: str, scope: str, key: str, mine: Fresh) -> None:
        """Gives up work that came to no answer (a retryable error): the key is free again,
        unless somebody took over."""
        await self._execute("release_idempotent", tenant, scope, key, mine.began_at)

    async def prune_idempotent(self, before_at: int, limit: int = 1_000) -> int:
        """Forgets at most ``limit`` keys from before an instant; returns how many."""
        return int((await self._execute("prune_idempotent", before_at, limit)).split()[-1])
