"""Reports are read in one snapshot, in batches, over one connection."""

import asyncpg
import pytest

from storage.postgres.records import Records, UnavailableError
from storage.postgres.reports import StreamedQueries, _translated
from storage.postgres.usage import Usage


async def test_statement_that_fails_is_an_unavailable_record(records: Records) -> None:
    queries: StreamedQueries = Usage.over(records)
    with pytest.raises(UnavailableError):
        async with queries.rows("usage_report", tuple, "too", "few"):
            pass
    assert await records.healthy()


def test_errors_of_postgres_are_one_error() -> None:
    for error in (asyncpg.PostgresError("x"), ConnectionError("y"), TimeoutError()):
        with pytest.raises(UnavailableError), _translated():
            raise error
