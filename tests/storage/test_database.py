"""Postgres fails, waits, or gets many requests at once."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
import pytest

from protocol.metering.records import MinuteUsed, Record
from storage.postgres import columns
from storage.postgres.records import SQL, Records, UnavailableError
from storage.rows.idempotency import Fresh, KeyClaim
from tests.storage.examples import START, TENANT, entry, minute, started

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def blocked(connection: Connection, number: int) -> list[int]:
    """Waits until ``number`` others wait for a lock; answers their process ids."""
    async with asyncio.timeout(20):
        while True:
            rows = await connection.fetch("SELECT DISTINCT pid FROM pg_locks WHERE NOT granted")
            if len(rows) == number:
                return [row["pid"] for row in rows]


async def test_without_postgres_everything_is_unavailable() -> None:
    nowhere = await Records.connect("postgresql://nobody@/none?host=/nonexistent")
    try:
        assert not await nowhere.healthy()
        with pytest.raises(UnavailableError):
            await nowhere.load_account(TENANT, "ann")
        with pytest.raises(UnavailableError):
            await nowhere.write([minute(0)])
    finally:
        await nowhere.close()


async def test_a_missing_schema_is_no_fault_of_the_record(
    empty_database: str,
) -> None:
    early = await Records.connect(empty_database)
    try:
        assert await early.healthy()
        with pytest.raises(UnavailableError):
            await early.write([minute(0)])
    finally:
        await early.close()


async def test_a_killed_backend_is_not_noticed(records: Records, connection: Connection) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("LOCK TABLE usage_tracking IN EXCLUSIVE MODE")
    writing = asyncio.create_task(records.write([minute(0), minute(1)]))
    (pid,) = await blocked(connection, 1)
    await connection.execute("SELECT pg_terminate_backend($1)", pid)
    await transaction.rollback()
    await writing
    assert records.retries == 1
    assert (await records.check_usage_limit("ann", "acme", START)).minutes_used == 2


async def test_a_killed_backend_is_an_error_instead_of_an_answer(
    records: Records, connection: Connection
) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("LOCK TABLE credit_ledger IN EXCLUSIVE MODE")
    posting = asyncio.create_task(records.post_entry(entry()))
    (pid,) = await blocked(connection, 1)
    await connection.execute("SELECT pg_terminate_backend($1)", pid)
    await transaction.rollback()
    with pytest.raises(UnavailableError):
        await posting
    assert await records.post_entry(entry())


async def test_answer_of_key_waits_for_money_in_under_way(
    records: Records, connection: Connection
) -> None:
    """No refusal can be stored before the entry is."""
    fresh = await records.begin_idempotent(TENANT, "grants/key", "k", "print")
    assert isinstance(fresh, Fresh)
    claim = KeyClaim("grants/key", "k", fresh.began_at)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT lock_accounts(ARRAY[$1], ARRAY['ann'])", TENANT)
    posting = asyncio.create_task(records.post_entry(entry(), claim=claim))
    await blocked(connection, 1)
    asked = (TENANT, "grants/key", "k")
    releasing = asyncio.create_task(records.release_idempotent(*asked, fresh))
    await blocked(connection, 2)
    await transaction.rollback()
    assert await posting
    await releasing
    assert await records.entry(TENANT, "ann", "g1") is not None


async def test_connections_to_a_demoted_primary_are_given_up(fresh_database: str) -> None:
    admin = await asyncpg.connect(fresh_database)
    await admin.execute("SELECT set_config('search_path', 'public', false)")
    name = await admin.fetchval("SELECT current_database()")
    await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    records = await Records.connect(fresh_database)
    try:
        assert await records.healthy()
        with pytest.raises(UnavailableError, match="read-only"):
            await records.write([started()])
        # Open connections stay read-only; only new connections see the change.
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        await records.write([started()])
        assert await records.session(TENANT, "s1") is not None
    finally:
        await records.close()
        await admin.close()


async def test_behind_a_pooler_no_statement_is_kept(database: str) -> None:
    records = await Records.connect(database, statement_cache_size=0, pool_size_max=1)
    try:
        await records.write([started(), minute(0)])
        await records.write([started(), minute(0)])
        async with records._pool.acquire() as connection:
            assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements") <= 1
    finally:
        await records.close()


@pytest.fixture
async def two(records: Records, database: str) -> AsyncIterator[tuple[Records, Records]]:
    other = await Records.connect(database)
    yield records, other
    await other.close()


def minutes_of(users: list[str], session_id: str) -> list[MinuteUsed]:
    return [minute(0, session_id=f"{session_id}{user}", user_id=user) for user in users]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("organization_members", "user_id"),
        ("monthly_usage_cache", "user_id"),
        ("credit_accounts", "account_id"),
    ],
)
async def test_two_batches_in_opposite_orders_do_not_deadlock(
    two: tuple[Records, Records], connection: Connection, table: str, key: str
) -> None:
    users = ["ann", "ben", "cid"]
    await two[0].write(minutes_of(users, "before"))
    # Both wait in the middle. If one batch had locked the first row and the other the last row,
    # they would wait for each other once this lock is released.
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"SELECT FROM {table} WHERE {key} = 'ben' FOR UPDATE")
    tasks = [
        asyncio.create_task(two[0].write(minutes_of(users, "x"))),
        asyncio.create_task(two[1].write(minutes_of(users[::-1], "y"))),
    ]
    await blocked(connection, 2)
    await transaction.rollback()
    await asyncio.gather(*tasks)
    assert two[0].retries + two[1].retries == 0
    assert (await two[0].check_usage_limit("cid", "acme", START)).minutes_used == 3


async def test_the_same_minutes_in_opposite_orders_do_not_deadlock(
    two: tuple[Records, Records], connection: Connection
) -> None:
    batch = minutes_of(["ann", "ben", "cid"], "x")
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(SQL["write_minutes"], *columns.arrays(batch[1:2], columns.MINUTE))
    tasks = [
        asyncio.create_task(two[0].write(batch)),
        asyncio.create_task(two[1].write(batch[::-1])),
    ]
    await blocked(connection, 2)
    await transaction.rollback()
    await asyncio.gather(*tasks)
    assert two[0].retries + two[1].retries == 0
    assert (await two[0].check_usage_limit("cid", "acme", START)).minutes_used == 1


async def test_two_flushers_write_the_same_records_once(
    two: tuple[Records, Records],
) -> None:
    users = [f"user{number}" for number in range(20)]
    batches: list[list[Record]] = [
        [
            *minutes_of(users, f"round{number}"),
            *(entry(f"g{number}", account_id=user) for user in users),
        ]
        for number in range(10)
    ]
    await asyncio.gather(
        *(two[0].write(batch) for batch in batches),
        *(two[1].write(batch[::-1]) for batch in batches[::-1]),
    )
    assert two[0].retries + two[1].retries == 0
    accounts = await two[0].accounts(TENANT, None, 100)
    assert {one.balance_micros for one in accounts} == {10 * 9_000_000}
    assert len(accounts) == 20
    answer = await two[0].check_usage_limit("user0", "acme", START)
    assert answer.minutes_used == 10
