"""Reports: tables that may be larger than memory, read from a cursor."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import asyncpg
from asyncpg.cursor import Cursor

from storage import limits as storage_limits
from storage.postgres.database import SQL, Database, UnavailableError

Row = TypeVar("Row")


class StreamedQueries(Database):
    """Queries whose answers are streamed."""

    @contextlib.asynccontextmanager
    async def rows(
        self, name: str, of_type: Callable[..., Row], *arguments: Any
    ) -> AsyncIterator[AsyncIterator[list[Row]]]:
        """Returns the rows of a statement (``sql/{name}.sql``) in one snapshot's batches.

        A row's columns are the arguments of ``of_type``. The report takes one connection until the
        context ends, and has no more than a batch in memory. Raises ``UnavailableError``, also in
        the middle: do not take the rows before that for the whole report.
        """
        async with contextlib.AsyncExitStack() as stack:
            with _translated():
                connection = await stack.enter_async_context(
                    self._pool.acquire(timeout=self._timeout_s)
                )
            transaction = connection.transaction(isolation="repeatable_read", readonly=True)
            is_cancelled = False
            try:
                with _translated():
                    await transaction.start()
                    await connection.execute(SQL["report_begin"])
                    cursor = await connection.cursor(SQL[name], *arguments)
                async with contextlib.aclosing(_batches(cursor, of_type)) as found:
                    yield found
            except asyncio.CancelledError:
                # The cancelling scope, whose client has gone, cancels the rollback as well.
                is_cancelled = True
                connection.terminate()
                raise
            finally:
                # A closed connection has ended its transaction.
                if not is_cancelled:
                    with contextlib.suppress(UnavailableError), _translated():
                        await transaction.rollback()


async def _batches(
    cursor: "Cursor[asyncpg.Record]", of_type: Callable[..., Row]
) -> AsyncGenerator[list[Row], None]:
    while True:
        with _translated():
            rows = await cursor.fetch(storage_limits.REPORT_BATCH_ROWS)
        if not rows:
            return
        yield [of_type(*row) for row in rows]


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raises errors of Postgres and its connection as ``UnavailableError``.

    Nothing is tried again, because earlier rows were passed on already.
    """
    try:
        yield
    except (
        asyncpg.PostgresError,
        asyncpg.InternalClientError,
        asyncpg.InterfaceError,
        OSError,
        TimeoutError,
    ) as error:
        raise UnavailableError(str(error) or type(error).__name__) from error
