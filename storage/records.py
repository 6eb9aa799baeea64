"""The record: what Postgres knows, and the one way to write it and to ask it.

All SQL lies in ``storage/sql``, one statement a file, read once. Every answer is a
frozen value of ``storage.rows`` or a plain one; instants are epoch milliseconds.

Two exceptions leave this module. ``UnavailableError``: not now, the same call may be made
again. ``RefusedError``: never, whatever the number of attempts. What Postgres rolled back for
certain (a deadlock, a demoted primary) is tried again here; what may or may not have
been done (a killed backend) only where doing it twice is doing it once.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy
from msgspec import UNSET, UnsetType

from protocol.events import EntryPosted, MinuteUsed, Record, SessionEnded, SessionStarted
from storage import columns, rows

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"
Value = TypeVar("Value")

SQL = {path.stem: path.read_text("utf-8") for path in (Path(__file__).parent / "sql").glob("*.sql")}

MONEY_IN_KINDS = frozenset({"grant", "adjust", "expire"})
"""The kinds of entries that are written to Postgres first; the index knows them too."""

TAKEOVER_MS = 60_000
"""Work under an idempotency key that has no answer by then has lost its process."""

ATTEMPTS_MAX = 3

# SQLSTATE classes of what is wrong with the data: value, constraint, size.
_REFUSED_CLASSES = ("22", "23", "54")
_READ_ONLY = "25006"
# Serialization failure, deadlock, read-only transaction: rolled back, nothing was done.
_ROLLED_BACK = frozenset({"40001", "40P01", _READ_ONLY})
# The connection broke, or the backend was told to go: nobody knows what was done.
_LOST = ("08", "57P01")


class UnavailableError(Exception):
    """Postgres cannot be reached or cannot do it now; the call may be made again."""


class RefusedError(Exception):
    """Postgres will never take this: the value or a constraint forbids it."""


class Records:
    """The record, over a pool of connections. Make one with ``connect``, then ``close``."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self.retries = 0
        """How often a statement was tried again; for the metrics."""

    @classmethod
    async def connect(
        cls,
        dsn: str,
        *,
        pool_size_max: int = 10,
        timeout_ms: int = 10_000,
        statement_cache_size: int = 100,
    ) -> "Records":
        """Makes the pool; connections are made when they are needed, so Postgres may be away.

        Behind PgBouncer in transaction mode ``statement_cache_size`` is 0, unless it is
        1.21 or newer with ``max_prepared_statements``. With several hosts the DSN says
        ``target_session_attrs=read-write``.
        """
        pool = await asyncpg.create_pool(
            dsn,
            min_size=0,
            max_size=pool_size_max,
            timeout=timeout_ms / 1000,
            command_timeout=timeout_ms / 1000,
            statement_cache_size=statement_cache_size,
            server_settings={"application_name": "taximeter"},
        )
        return cls(pool, timeout_ms / 1000)

    async def close(self) -> None:
        """Waits for what is under way, then closes every connection."""
        await self._pool.close()

    async def healthy(self) -> bool:
        """Whether Postgres answers."""
        try:
            await self._run(lambda connection: connection.fetchval("SELECT 1"))
        except UnavailableError:
            return False
        return True

    # Records of the outbox

    async def write(self, records: Sequence[Record]) -> None:
        """Writes down all of ``records``, in one transaction.

        They may come in any order, and any number of times: what is there already is left
        as it is. A minute that is new and cost something makes the ledger's entry
        ``burn:<session_id>:<minute>``. Raises ``RefusedError`` when one of them can never be
        written; then none is.
        """
        started = columns.unique(records, SessionStarted, "tenant", "session_id")
        ended = columns.unique(records, SessionEnded, "tenant", "session_id")
        minutes = columns.unique(records, MinuteUsed, "tenant", "session_id", "minute")
        entries = list(
            columns.unique(records, EntryPosted, "tenant", "account_id", "entry_id").values()
        )

        async def write(connection: Connection) -> None:
            # Always these tables in this order, and the triggers' after theirs, each
            # sorted by its key: two flushers wait in a line, never in a circle.
            async with connection.transaction():
                if started:
                    await connection.execute(
                        SQL["write_started"],
                        *columns.arrays(list(started.values()), columns.STARTED),
                    )
                if ended:
                    await connection.execute(
                        SQL["write_ended"], *columns.arrays(list(ended.values()), columns.ENDED)
                    )
                ledger = [columns.entry_row(entry) for entry in entries]
                if minutes:
                    new = await connection.fetch(
                        SQL["write_minutes"],
                        *columns.arrays(list(minutes.values()), columns.MINUTE),
                    )
                    burnt = (minutes[tuple(key)] for key in new)
                    ledger += [
                        columns.burn_row(minute) for minute in burnt if minute.credits_micros
                    ]
                if ledger:
                    await connection.execute(SQL["write_entries"], *zip(*ledger, strict=True))

        await self._run(write)

    # Sessions

    async def prepare_session(self, session: rows.SessionPrepared) -> bool:
        """Keeps a prepared session; False when its id is taken, whatever its state."""
        arguments = columns.prepared_row(session)
        return await self._value("prepare_session", *arguments, again=False) is not None

    async def session(self, tenant: str, session_id: str) -> rows.SessionRow | None:
        """The session of that id, or None."""
        return (await self.sessions_by_id(tenant, [session_id])).get(session_id)

    async def sessions_by_id(
        self, tenant: str, session_ids: Sequence[str]
    ) -> dict[str, rows.SessionRow]:
        """Those of ``session_ids`` that the tenant has."""
        found = await self._rows("sessions", rows.SessionRow, tenant, list(session_ids))
        return {row.session_id: row for row in found}

    async def free_used(
        self,
        tenant: str,
        user_id: str,
        counterpart_id: str | None,
        kind: str,
        day_start_at: int | None = None,
        *,
        except_session_id: str | None = None,
    ) -> int:
        """The free milliseconds that a user has had of a kind.

        With a counterpart, that pair's (scope ``pair``); with ``day_start_at``, those of
        minutes that began at or after it (scope ``day``); without a session's own if asked.
        """
        used: int = await self._value(
            "free_used", tenant, user_id, kind, counterpart_id, day_start_at, except_session_id
        )
        return used

    # Accounts

    async def load_account(
        self, tenant: str, account_id: str, session_ids: Sequence[str] = ()
    ) -> rows.AccountRecord:
        """The account from one snapshot; one that nobody has written to has a balance of 0.

        For ``session_ids`` it says which minutes are in that balance. Who asserts sessions
        again after Redis came back empty takes these as settled, and only the others as new.
        """
        return await self._one(
            "load_account", rows.AccountRecord, tenant, account_id, list(session_ids)
        )

    async def post_entry(
        self, entry: EntryPosted, priority: int = 0, expires_at: int | None = None
    ) -> bool:
        """Writes money in: the ledger's entry, and the inbox's, in one transaction.

        Returns whether it was new. Apply it to Redis in either case, for the process that
        wrote it may have died before it did, then tell ``inbox_done``.
        """
        if entry.entry_kind not in MONEY_IN_KINDS:
            raise ValueError(f"{entry.entry_kind} is decided in Redis and comes by the outbox")
        arguments = columns.money_in_row(entry, priority, expires_at)
        return await self._value("post_entry", *arguments, again=False) is not None

    async def inbox(self, limit: int) -> tuple[rows.InboxEntry, ...]:
        """Money in that Redis has not confirmed, of all tenants, oldest first."""
        return await self._rows("inbox", rows.InboxEntry, limit)

    async def inbox_done(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Redis has applied these: ``(tenant, account_id, entry_id)`` each."""
        keys = [[entry[part] for entry in entries] for part in range(3)]
        await self._run(lambda connection: connection.execute(SQL["inbox_done"], *keys))

    async def ledger(
        self, tenant: str, account_id: str, before_position: int | None, limit: int
    ) -> tuple[rows.LedgerEntry, ...]:
        """A page of the ledger, newest first, below a position; None: from the newest."""
        return await self._rows(
            "ledger", rows.LedgerEntry, tenant, account_id, before_position, limit
        )

    async def accounts(
        self, tenant: str, after_account_id: str | None, limit: int
    ) -> tuple[rows.AccountFigures, ...]:
        """A page of the tenant's accounts, by id, after one; None: from the first."""
        return await self._rows("accounts", rows.AccountFigures, tenant, after_account_id, limit)

    # Organisations, members and their months

    async def load_member(
        self, tenant: str, user_id: str, months: Sequence[date]
    ) -> rows.MemberRecord:
        """Limits, and what was used of them in ``months`` (first days), from one snapshot.

        Without rows: no limits, UTC, tier ``free``, nothing used.
        """
        return await self._one("load_member", rows.MemberRecord, tenant, user_id, list(months))

    async def put_organization(
        self,
        tenant: str,
        org_id: str,
        *,
        tier: str | UnsetType = UNSET,
        timezone: str | UnsetType = UNSET,
        monthly_hours_limit: float | UnsetType | None = UNSET,
        allow_overage: bool | UnsetType = UNSET,
    ) -> rows.OrganizationRow:
        """Makes or changes an organisation; what is not given stays, or takes its default.

        Raises ``RefusedError`` for a time zone that is none, and for a limit below 0 or above
        1,000,000 hours.
        """
        given = (tier, timezone, _number(monthly_hours_limit), allow_overage)
        arguments = [part for value in given for part in _given(value)]
        return await self._one("put_organization", rows.OrganizationRow, tenant, org_id, *arguments)

    async def put_member(
        self,
        tenant: str,
        user_id: str,
        *,
        monthly_hours_limit: float | UnsetType | None = UNSET,
    ) -> rows.MemberRow:
        """Makes or changes a member; a limit that is not given stays."""
        arguments = _given(_number(monthly_hours_limit))
        return await self._one("put_member", rows.MemberRow, tenant, user_id, *arguments)

    async def check_usage_limit(
        self, user_id: str, org_id: str | None, instant_at: int
    ) -> rows.UsageLimit:
        """Whether a user may record at an instant, and the limit that decides it."""
        return await self._one("check_usage_limit", rows.UsageLimit, user_id, org_id, instant_at)

    async def usage_details(
        self, user_id: str | None, org_id: str | None, from_day: date, to_day: date
    ) -> tuple[rows.UsageDay, ...]:
        """Usage by day, ``to_day`` not included; a user of None: the whole organisation."""
        return await self._rows("usage_details", rows.UsageDay, user_id, org_id, from_day, to_day)

    # Idempotency

    async def begin_idempotent(
        self,
        tenant: str,
        scope: str,
        key: str,
        fingerprint: str,
        *,
        takeover_ms: int = TAKEOVER_MS,
    ) -> rows.Fresh | rows.UnderWay | rows.Mismatch | rows.Answer:
        """Asks for the right to do the work of a key.

        Work that has been under way for ``takeover_ms`` is given to the one who asks: its
        process died. Should it be alive after all, both do the same, because the ids of
        what they write are made from the key.
        """
        for _ in range(ATTEMPTS_MAX):
            row = await self._run(
                lambda connection: connection.fetchrow(
                    SQL["begin_idempotent"], tenant, scope, key, fingerprint, takeover_ms
                ),
                again=False,
            )
            if row is None:  # somebody began at the same instant: now they can be seen
                continue
            if row["fresh"]:
                return rows.Fresh()
            if row["fingerprint"] != fingerprint:
                return rows.Mismatch()
            if row["status"] is None:
                return rows.UnderWay()
            return rows.Answer(row["status"], row["response"])
        return rows.UnderWay()

    async def finish_idempotent(
        self, tenant: str, scope: str, key: str, status: int, body: bytes
    ) -> None:
        """Keeps the answer of a key; a second one changes nothing."""
        arguments = (tenant, scope, key, status, body)
        await self._run(lambda connection: connection.execute(SQL["finish_idempotent"], *arguments))

    async def release_idempotent(self, tenant: str, scope: str, key: str) -> None:
        """Gives up work that came to no answer (a retryable error): the key is free again."""
        arguments = (tenant, scope, key)
        await self._run(
            lambda connection: connection.execute(SQL["release_idempotent"], *arguments)
        )

    async def prune_idempotent(self, before_at: int, limit: int = 1_000) -> int:
        """Forgets at most ``limit`` keys from before an instant; returns how many."""
        status = await self._run(
            lambda connection: connection.execute(SQL["prune_idempotent"], before_at, limit)
        )
        return int(status.rpartition(" ")[2])

    # How all of them are asked

    async def _value(self, name: str, *arguments: Any, again: bool = True) -> Any:
        return await self._run(
            lambda connection: connection.fetchval(SQL[name], *arguments), again=again
        )

    async def _one(self, name: str, of_type: type[Value], *arguments: Any) -> Value:
        return msgspec.json.decode(await self._value(name, *arguments), type=of_type)

    async def _rows(self, name: str, of_type: type[Value], *arguments: Any) -> tuple[Value, ...]:
        found = await self._run(lambda connection: connection.fetch(SQL[name], *arguments))
        decoder = msgspec.json.Decoder(of_type)
        return tuple(decoder.decode(row[0]) for row in found)

    async def _run(
        self, work: Callable[[Connection], Awaitable[Value]], *, again: bool = True
    ) -> Value:
        """Does ``work`` on a connection of the pool, and once more where that is right.

        ``again`` says that the work is idempotent: it may be repeated even if nobody
        knows whether it was done.
        """
        for attempt in range(ATTEMPTS_MAX):
            last = attempt == ATTEMPTS_MAX - 1
            try:
                async with self._pool.acquire(timeout=self._timeout_s) as connection:
                    return await work(connection)
            except asyncpg.PostgresError as error:
                state = error.sqlstate or ""
                if state.startswith(_REFUSED_CLASSES):
                    raise RefusedError(str(error)) from error
                if state == _READ_ONLY:
                    # A failover: this connection and its like are at a demoted primary.
                    await self._pool.expire_connections()
                lost = state.startswith(_LOST)
                if last or not (state in _ROLLED_BACK or (lost and again)):
                    raise UnavailableError(str(error)) from error
            except (asyncpg.InternalClientError, asyncpg.InterfaceError, ConnectionError) as error:
                # How a killed backend shows, each in its moment; the pool recovers.
                if last or not again:
                    raise UnavailableError(str(error)) from error
            except (OSError, TimeoutError) as error:
                raise UnavailableError(str(error) or type(error).__name__) from error
            self.retries += 1
        raise AssertionError("the last attempt returns or raises")


def _given(value: Any) -> tuple[bool, Any]:
    return (False, None) if value is UNSET else (True, value)


def _number(value: float | UnsetType | None) -> str | UnsetType | None:
    """As text, for a numeric column takes a decimal and a limit is written in decimals."""
    return str(value) if isinstance(value, int | float) else value
