"""The access to Postgres: connections, and the repetition of statements.

All SQL is in ``storage/postgres/sql``, one statement per file, read once. Every answer is a frozen
value of ``storage.rows`` or a plain value; instants are epoch milliseconds.

Two exceptions leave this module. ``UnavailableError``: Postgres cannot do the work now, and the
same call may be repeated. ``RejectedError``: no number of attempts can succeed. Work that Postgres
certainly rolled back (a deadlock, a demoted primary) is tried again here. Work whose result is
unknown (a killed backend) is tried again only where a repetition changes nothing.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from storage import limits as storage_limits

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"
Value = TypeVar("Value")

SQL = {path.stem: path.read_text("utf-8") for path in (Path(__file__).parent / "sql").glob("*.sql")}

# SQLSTATE classes of errors in the data: value, constraint, size.
_REFUSED_CLASSES = ("22", "23", "54")
_READ_ONLY = "25006"
# Serialization failure, deadlock, read-only transaction: rolled back, so nothing was done.
_ROLLED_BACK = frozenset({"40001", "40P01", _READ_ONLY})
# The connection broke, or the backend was ended: it is unknown whether the work was done.
_LOST = ("08", "57P01")


class UnavailableError(Exception):
    """Postgres cannot do the work now; the call may be repeated."""


class RejectedError(Exception):
    """Postgres never takes the data: a value or constraint forbids it."""

    def __init__(self, message: str, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint
        """The name of the constraint; None: another cause."""


class _Pooled(asyncpg.Connection):
    """A connection without settings that outlive a transaction.

    There are no session settings, advisory locks, cursors or listeners to reset, so asyncpg's reset
    at every release would be a useless round trip. asyncpg still rolls back a transaction that was
    left open.
    """

    def get_reset_query(self) -> str:
        """Returns an empty query (asyncpg, ``Connection.reset``: overload it by subclassing)."""
        return ""


class Database:
    """Postgres, over a pool of connections.

    Make one with ``connect``; then ``close`` it.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self.retries = 0
        """How often a statement was tried again, for the metrics."""

    @classmethod
    async def connect(
        cls,
        dsn: str,
        *,
        pool_size_max: int = storage_limits.DATABASE_CONNECTIONS_MAX,
        statement_cache_size: int = 100,
    ) -> Self:
        """Makes the pool.

        Connections are made when needed, so Postgres may be away.

        Behind PgBouncer in transaction mode, ``statement_cache_size`` is 0, unless PgBouncer is
        1.21 or newer with ``max_prepared_statements``. With several hosts, the DSN contains
        ``target_session_attrs=read-write``.
        """
        timeout_s = storage_limits.DATABASE_TIMEOUT_MS / 1000
        pool = await asyncpg.create_pool(
            dsn,
            min_size=0,
            max_size=pool_size_max,
            connection_class=_Pooled,
            timeout=timeout_s,
            command_timeout=timeout_s,
            statement_cache_size=statement_cache_size,
            server_settings={"application_name": "taximeter"},
        )
        return cls(pool, timeout_s)

    async def close(self) -> None:
        """Waits for work under way, then closes every connection."""
        await self._pool.close()

    async def healthy(self) -> bool:
        """Whether Postgres answers."""
        try:
            await self._run(lambda connection: connection.fetchval("SELECT 1"))
        except UnavailableError:
            return False
        return True

    # The forms of a query

    async def _execute(self, name: str, *arguments: Any) -> str:
        return await self._run(lambda connection: connection.execute(SQL[name], *arguments))

    async def _value(self, name: str, *arguments: Any, again: bool = True) -> Any:
        return await self._run(
            lambda connection: connection.fetchval(SQL[name], *arguments), again=again
        )

    async def _one(self, name: str, of_type: type[Value], *arguments: Any) -> Value:
        return msgspec.json.decode(await self._value(name, *arguments), type=of_type)

    async def _maybe(self, name: str, of_type: type[Value], *arguments: Any) -> Value | None:
        found = await self._rows(name, of_type, *arguments)
        return found[0] if found else None

    async def _rows(self, name: str, of_type: type[Value], *arguments: Any) -> tuple[Value, ...]:
        found = await self._run(lambda connection: connection.fetch(SQL[name], *arguments))
        decoder = msgspec.json.Decoder(of_type)
        return tuple(decoder.decode(row[0]) for row in found)

    async def _run(
        self, work: Callable[[Connection], Awaitable[Value]], *, again: bool = True
    ) -> Value:
        """Does ``work`` on a connection, and repeats it where safe.

        ``again``: the work is idempotent. It may be repeated even if it is unknown whether it was
        done.
        """
        for attempt in range(storage_limits.DATABASE_ATTEMPTS_MAX):
            last = attempt == storage_limits.DATABASE_ATTEMPTS_MAX - 1
            try:
                async with self._pool.acquire(timeout=self._timeout_s) as connection:
                    return await work(connection)
            except asyncpg.PostgresError as error:
                state = error.sqlstate or ""
                if state.startswith(_REFUSED_CLASSES):
                    raise RejectedError(str(error), error.constraint_name) from error
                if state == _READ_ONLY:
                    # A failover: this connection and others like it lead to a demoted primary.
                    await self._pool.expire_connections()
                lost = state.startswith(_LOST)
                if last or not (state in _ROLLED_BACK or (lost and again)):
                    raise UnavailableError(str(error)) from error
            except (asyncpg.InternalClientError, asyncpg.InterfaceError, ConnectionError) as error:
                # A killed backend shows as one of these, depending on the moment; the pool
                # recovers.
                if last or not again:
                    raise UnavailableError(str(error)) from error
            except (OSError, TimeoutError) as error:
                raise UnavailableError(str(error) or type(error).__name__) from error
            self.retries += 1
        raise AssertionError("the last attempt returns or raises")
