"""Money in, organisations, idempotency; and what happens when Postgres fails or waits."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
import pytest

from protocol.metering.records import MinuteUsed, Record
from storage.postgres import columns
from storage.postgres.records import SQL, Records, RefusedError, UnavailableError
from storage.rows.idempotency import Answer, Fresh, Mismatch, UnderWay
from storage.rows.months import MemberRecord, MonthUsed
from tests.storage.examples import START, TENANT, at, entry, minute, month, started

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


# Money in


async def test_money_in_is_in_the_ledger_and_in_the_inbox(records: Records) -> None:
    granted = entry("g1", 5_000_000, reason="bought")
    assert await records.post_entry(granted, priority=7, expires_at=START + 1)
    (waiting,) = await records.inbox(10)
    assert (waiting.tenant, waiting.account_id, waiting.entry_id) == (TENANT, "ann", "g1")
    assert (waiting.amount_micros, waiting.entry_kind, waiting.reason) == (
        5_000_000, "grant", "bought",
    )  # fmt: skip
    (written,) = await records.ledger(TENANT, "ann", None, 10)
    assert (written.priority, written.expires_at, written.created_at) == (7, START + 1, START)
    assert (await records.load_account(TENANT, "ann")).balance_micros == 5_000_000


async def test_money_in_comes_once(records: Records) -> None:
    assert await records.post_entry(entry())
    assert not await records.post_entry(entry())
    assert len(await records.inbox(10)) == 1
    await records.inbox_done([(TENANT, "ann", "g1")])
    await records.inbox_done([(TENANT, "ann", "g1")])
    assert not await records.post_entry(entry())
    assert await records.inbox(10) == ()
    assert (await records.load_account(TENANT, "ann")).balance_micros == 10_000_000


async def test_the_inbox_is_read_oldest_first_and_emptied_one_by_one(records: Records) -> None:
    for number in (3, 1, 2):
        await records.post_entry(entry(f"g{number}"))
    assert [one.entry_id for one in await records.inbox(2)] == ["g3", "g1"]
    await records.inbox_done([(TENANT, "ann", "g3"), (TENANT, "ann", "g2"), ("x", "y", "z")])
    assert [one.entry_id for one in await records.inbox(9)] == ["g1"]


async def test_what_is_decided_in_redis_is_no_money_in(records: Records) -> None:
    with pytest.raises(ValueError, match="spend is decided in Redis"):
        await records.post_entry(entry("s", -1, entry_kind="spend"))
    assert await records.inbox(10) == ()


# Organisations and members


async def test_an_organisation_keeps_what_is_not_given(records: Records) -> None:
    row = await records.put_organization(TENANT, "acme")
    assert (row.tier, row.timezone, row.monthly_hours_limit, row.allow_overage) == (
        "free", "UTC", None, False,
    )  # fmt: skip
    await records.put_organization(TENANT, "acme", timezone="Europe/Berlin", monthly_hours_limit=9)
    row = await records.put_organization(TENANT, "acme", tier="pro", allow_overage=True)
    assert (row.tier, row.timezone, row.monthly_hours_limit, row.allow_overage) == (
        "pro", "Europe/Berlin", 9, True,
    )  # fmt: skip
    row = await records.put_organization(TENANT, "acme", monthly_hours_limit=None)
    assert (row.tier, row.monthly_hours_limit) == ("pro", None)


async def test_a_member_keeps_the_minutes_used(records: Records) -> None:
    await records.write([minute(0)])
    row = await records.put_member(TENANT, "ann", monthly_hours_limit=0.5)
    assert (row.monthly_hours_limit, row.current_month_minutes_used) == (0.5, 1)
    assert row.current_month_start == month(2026, 11)
    assert (await records.put_member(TENANT, "ann")).monthly_hours_limit == 0.5
    assert (await records.put_member(TENANT, "ann", monthly_hours_limit=None)) == (
        await records.put_member(TENANT, "ann")
    )


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "UTC\0"])
async def test_a_time_zone_that_is_none_is_refused(records: Records, zone: str) -> None:
    with pytest.raises(RefusedError):
        await records.put_organization(TENANT, "acme", timezone=zone)


@pytest.mark.parametrize("hours", [-1, 1_000_001, float("nan"), float("inf")])
async def test_a_limit_that_is_none_is_refused(records: Records, hours: float) -> None:
    with pytest.raises(RefusedError):
        await records.put_organization(TENANT, "acme", monthly_hours_limit=hours)
    with pytest.raises(RefusedError):
        await records.put_member(TENANT, "ann", monthly_hours_limit=hours)


async def test_a_member_is_loaded_with_the_months_of_both(records: Records) -> None:
    november, december = month(2026, 11), month(2026, 12)
    assert await records.load_member(TENANT, "ann", [november]) == MemberRecord(
        "UTC", "free", False, None, None, (MonthUsed(november, 0, 0),)
    )
    await records.put_organization(
        TENANT, "acme", timezone="Asia/Tokyo", tier="pro", monthly_hours_limit=2, allow_overage=True
    )
    await records.put_member(TENANT, "ann", monthly_hours_limit=0.99)
    await records.write(
        [
            minute(0),
            minute(1, started_at=at("Asia/Tokyo", 2026, 12, 1), zone="Asia/Tokyo"),
            minute(0, session_id="s2", user_id="ben"),
            minute(0, session_id="s3", tenant="user:ann"),
        ]
    )
    assert await records.load_member(TENANT, "ann", [november, december]) == MemberRecord(
        "Asia/Tokyo", "pro", True, 59, 120, (MonthUsed(november, 1, 2), MonthUsed(december, 1, 1))
    )
    own = await records.load_member("user:ann", "ann", [november])
    assert own.months == (MonthUsed(november, 1, 1),)


# Idempotency


async def begun(records: Records, *asked: str) -> Fresh:
    """The right to work under a key."""
    mine = await records.begin_idempotent(*asked)
    assert isinstance(mine, Fresh)
    return mine


async def test_a_key_is_answered_as_it_was_the_first_time(records: Records) -> None:
    key = (TENANT, "POST /v1/accounts/ann/grants", "k1")
    mine = await begun(records, *key, "body")
    assert await records.begin_idempotent(*key, "body") == UnderWay()
    assert await records.begin_idempotent(*key, "another") == Mismatch()
    assert await records.finish_idempotent(*key, mine, 201, b'{"credits":"1"}')
    assert not await records.finish_idempotent(*key, mine, 500, b"later")
    assert await records.begin_idempotent(*key, "body") == Answer(201, b'{"credits":"1"}')
    assert await records.begin_idempotent(*key, "another") == Mismatch()
    await begun(records, "org:other", *key[1:], "another")


async def test_work_whose_process_died_is_taken_over(
    records: Records, connection: Connection
) -> None:
    key = (TENANT, "grants", "k1")
    first = await begun(records, *key, "body")
    await connection.execute(
        "UPDATE idempotency_keys SET created_at = created_at - interval '59 seconds'"
    )
    assert await records.begin_idempotent(*key, "body") == UnderWay()
    await connection.execute(
        "UPDATE idempotency_keys SET created_at = created_at - interval '1 second'"
    )
    assert await records.begin_idempotent(*key, "another") == Mismatch()
    second = await begun(records, *key, "body")
    assert await records.begin_idempotent(*key, "body") == UnderWay()
    # Who was overtaken neither answers for the other nor frees the key.
    await records.release_idempotent(*key, first)
    assert not await records.finish_idempotent(*key, first, 402, b"no")
    assert await records.finish_idempotent(*key, second, 200, b"{}")
    assert await records.begin_idempotent(*key, "body", takeover_ms=0) == Answer(200, b"{}")


async def test_work_without_an_answer_may_be_tried_again(records: Records) -> None:
    key = (TENANT, "grants", "k1")
    await records.release_idempotent(*key, await begun(records, *key, "body"))
    mine = await begun(records, *key, "another")
    await records.finish_idempotent(*key, mine, 402, b"no")
    await records.release_idempotent(*key, mine)
    assert await records.begin_idempotent(*key, "another") == Answer(402, b"no")


async def test_one_of_many_gets_the_key(records: Records) -> None:
    answers = await asyncio.gather(
        *(records.begin_idempotent(TENANT, "grants", "k1", "body") for _ in range(10))
    )
    assert sum(isinstance(answer, Fresh) for answer in answers) == 1
    assert answers.count(UnderWay()) == 9


async def test_old_keys_are_forgotten_a_bounded_number_at_a_time(
    records: Records, connection: Connection
) -> None:
    for number in range(3):
        await records.begin_idempotent(TENANT, "grants", f"k{number}", "body")
    now_at = await connection.fetchval("SELECT epoch_ms(now()) + 1")
    assert await records.prune_idempotent(now_at - 60_000) == 0
    assert await records.prune_idempotent(now_at, limit=2) == 2
    assert await records.prune_idempotent(now_at, limit=2) == 1


# Postgres fails


async def blocked(connection: Connection, number: int) -> list[int]:
    """Returns when so many others wait for a lock, with their process ids."""
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


async def test_a_schema_that_is_not_there_yet_is_no_fault_of_the_record(
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


async def test_a_killed_backend_is_an_error_where_the_answer_would_lie(
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
        # Whoever was connected stays read-only; only new connections see the change.
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


# Two flushers at once


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
    # Both are held up in the middle: whoever took the first row and whoever took the last
    # would wait for each other as soon as they are let go.
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


async def test_the_same_records_by_two_flushers_at_once_are_written_once(
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
