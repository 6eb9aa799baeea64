"""A real Postgres asked from virtual time, and the processes' connections.

asyncpg runs on an event loop of its own, which runs only while a question is asked. The virtual
loop stands still until the answer is there, so the order of answers is always the order of
questions.
"""

import asyncio
import functools
import inspect
from asyncio import events
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg

from storage import limits as storage_limits
from storage.postgres.call_clocks import CallClocks
from storage.postgres.calls import CallRecords
from storage.postgres.database import Database
from storage.postgres.records import Records, UnavailableError
from storage.postgres.usage import Usage
from tests.simulation.redis_links import Mishap

Value = TypeVar("Value")

_EMPTY = """
DO $$
DECLARE
    name text;
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR name IN SELECT tablename FROM pg_tables
        WHERE schemaname = 'public' AND tablename <> 'schema_migrations'
    LOOP
        EXECUTE format('DELETE FROM %I', name);
    END LOOP;
    PERFORM setval(format('%I', sequencename)::regclass, 1, false)
    FROM pg_sequences WHERE schemaname = 'public';
END
$$
"""


class PostgresServer:
    """A database, with a blocking interface."""

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.new_event_loop()
        self.records: Records = self.ask(lambda: Records.connect(dsn, pool_size_max=2))
        self._connection: Any = self.ask(lambda: asyncpg.connect(dsn))
        self.questions = 0

    def ask(self, question: Callable[[], Awaitable[Value]]) -> Value:
        """The answer, however long it takes."""

        async def asked() -> Value:
            return await question()

        # A loop must not run within another one: the virtual loop steps aside meanwhile.
        running = events._get_running_loop()
        events._set_running_loop(None)
        try:
            return self._loop.run_until_complete(asked())
        finally:
            events._set_running_loop(running)

    def fetch(self, query: str, *arguments: Any) -> list[Any]:
        """The rows of a query, for an observer of the world."""
        return self.ask(lambda: self._connection.fetch(query, *arguments))

    def empty(self) -> None:
        """Deletes all rows but keeps the schema."""
        self.ask(lambda: self._connection.execute(_EMPTY))

    def close(self) -> None:
        """Closes the connections."""
        self.ask(self._connection.close)
        self.ask(self.records.close)
        self._loop.close()


class PostgresLink:
    """The record over a process's connection.

    Every call may fail as Postgres fails.
    """

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.is_away = False
        self.mishaps: deque[Mishap] = deque()
        self.die: Callable[[], None] = lambda: None
        self.slow_calls = 0
        """Calls that wait for a slow Postgres."""

    def __getattr__(self, name: str) -> Any:
        return self.of(self._server.records, name)

    def of(self, asked: Any, name: str) -> Any:
        """An attribute of the record or of an object on its pool.

        The result of a coroutine function goes over this connection.
        """
        found = getattr(asked, name)
        if not inspect.iscoroutinefunction(found):
            return found
        return functools.partial(self._call, found)

    def usage(self) -> "QueriesLink":
        """The usage queries, over this connection."""
        return QueriesLink(self, Usage.over(self._server.records))

    def calls(self) -> "QueriesLink":
        """The queries about calls, over this connection."""
        return QueriesLink(self, CallRecords.over(self._server.records))

    def call_clocks(self) -> "QueriesLink":
        """The queries about both clocks of calls, over this connection."""
        return QueriesLink(self, CallClocks.over(self._server.records))

    async def _call(self, function: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
        await asyncio.sleep(0)
        if self.is_away:
            raise UnavailableError("Postgres is away")
        mishap = self.mishaps.popleft() if self.mishaps else Mishap("none")
        if mishap.kind == "slow":
            self.slow_calls += 1
            try:
                await asyncio.sleep(mishap.ms / 1000)
            finally:
                self.slow_calls -= 1
        if mishap.kind not in ("lost", "died"):
            self._server.questions += 1
            answer = self._server.ask(lambda: function(*args, **named))
        match mishap.kind:
            case "none" | "slow":
                return answer
            case "died" | "died_after":
                self.die()
            case "lost":
                await asyncio.sleep(storage_limits.DATABASE_TIMEOUT_MS / 1000)
        raise UnavailableError("the line to Postgres is broken")


class QueriesLink:
    """Further queries as one process reaches the record.

    They share the record's pool, whose connections belong to a loop of their own. A query from
    any other loop breaks them.
    """

    def __init__(self, line: PostgresLink, queries: Database) -> None:
        self._line = line
        self._queries = queries

    def __getattr__(self, name: str) -> Any:
        return self._line.of(self._queries, name)
