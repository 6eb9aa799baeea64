"""The flusher writes every record to Postgres once, also across its death."""

import asyncio
from typing import TypeAlias

import asyncpg
import pytest
from redis.asyncio import Redis

from storage import limits as storage_limits
from storage.postgres.records import Records
from storage.redis.keys import outbox_key, rejected_key
from storage.redis.outbox import GROUP
from tests.storage.examples import TENANT, entry, minute
from tests.storage.outboxes import (
    PARTITIONS,
    MakeFlusher,
    append,
    pending,
    until,
    watermark,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def minutes(connection: Connection) -> int:
    return int(await connection.fetchval("SELECT count(*) FROM usage_tracking"))


# One batch


async def test_a_batch_is_written_and_taken_out_of_the_outbox(
    redis: Redis, records: Records, make_flusher: MakeFlusher
) -> None:
    await append(redis, entry(), minute(0))
    last = await append(redis, minute(1), minute(0, session_id="s2", user_id="ben"))
    other = await append(redis, minute(2), partition=2)
    flusher = make_flusher()
    await flusher.prepare()
    await flusher.flush(await flusher.read())

    assert (await records.load_account(TENANT, "ann")).balance_micros == 7_000_000
    assert [await redis.xlen(outbox_key(partition)) for partition in PARTITIONS] == [0, 0, 0]
    assert [await pending(redis, partition) for partition in PARTITIONS] == [0, 0, 0]
    assert [await watermark(redis, partition) for partition in PARTITIONS] == ["", last, other]
    assert (flusher.flushed_records, flusher.rejected_entries) == (5, 0)


async def test_accounts_are_left_alone(redis: Redis, make_flusher: MakeFlusher) -> None:
    ann, ben = (f"{{p1}}:account:{TENANT}/{user_id}" for user_id in ("ann", "ben"))
    await append(redis, minute(0), minute(0, session_id="s2", user_id="ben"))
    await redis.hset(ben, "balance", 5)
    flusher = make_flusher()
    await flusher.prepare()
    await flusher.flush(await flusher.read())
    assert await redis.exists(ann) == 0
    assert await redis.hgetall(ben) == {b"balance": b"5"}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"legacy_responses": False}])
async def test_any_client_will_do(
    redis: Redis,
    redis_url: str,
    connection: Connection,
    make_flusher: MakeFlusher,
    protocol: int,
    options: dict[str, bool],
) -> None:
    await append(redis, minute(0))
    flusher = make_flusher(
        make_redis=lambda: Redis.from_url(redis_url, protocol=protocol, **options)
    )
    await flusher.prepare()
    await flusher.flush(await flusher.read())
    assert await minutes(connection) == 1
    assert (await flusher.backlog()).entries == 0


# A flusher dies


async def test_a_flusher_killed_between_commit_and_acknowledgement_is_taken_over(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    await append(redis, entry(), minute(0))
    first, second = make_flusher("one"), make_flusher("two", take_over_idle_ms=0)
    await first.prepare()
    entries = await first.read()
    await first.write(entries)
    assert await second.read() == []
    await second.flush(await second.take_over())

    assert await minutes(connection) == 1
    assert (await records.load_account(TENANT, "ann")).balance_micros == 9_000_000
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0
    # The first flusher was only slow: its acknowledgement changes nothing.
    await first.acknowledge(entries)
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0
    assert (first.flushed_records, second.flushed_records) == (0, 2)


async def test_what_a_living_flusher_works_on_is_not_taken(
    redis: Redis, make_flusher: MakeFlusher
) -> None:
    await append(redis, minute(0))
    first, second = make_flusher("one"), make_flusher("two")
    await first.prepare()
    assert len(await first.read()) == 1
    assert await second.take_over() == []


async def test_dead_flushers_are_taken_over_after_a_clock_step(
    redis: Redis, make_flusher: MakeFlusher
) -> None:
    uptime_s = 0.0
    entry_id = await append(redis, minute(0))
    dead = make_flusher("dead")
    living = make_flusher("living", monotonic=lambda: uptime_s)
    await dead.prepare()
    assert len(await dead.read()) == 1
    # Delivered in an hour, as its clock says since it was stepped.
    seconds, _ = await redis.time()
    key, in_an_hour_ms = outbox_key(1), (seconds + 3_600) * 1000
    await redis.xclaim(key, GROUP, "dead", 0, [entry_id], time=in_an_hour_ms)
    assert await living.take_over() == []
    uptime_s += storage_limits.FLUSH_CLAIM_IDLE_MS / 1000 - 1
    assert await living.take_over() == []
    uptime_s += 1
    (entry,) = await living.take_over()
    await living.flush([entry])
    assert await redis.xlen(key) == await pending(redis) == 0
    assert await living.take_over() == []


async def test_a_flusher_of_the_same_name_continues_after_death(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    await append(redis, minute(0))
    first = make_flusher()
    await first.prepare()
    await first.read()
    await first.close()
    await append(redis, minute(1))
    stop = asyncio.Event()
    stop.set()
    await make_flusher().run(stop)
    assert await minutes(connection) == 2
    assert await pending(redis) == 0


async def test_the_watermark_stays_below_what_is_pending(
    redis: Redis, make_flusher: MakeFlusher
) -> None:
    first, second = make_flusher("one"), make_flusher("two")
    await first.prepare()
    await append(redis, minute(0), entry_id="5-0")
    await append(redis, minute(1), entry_id="5-1")
    slow = await first.read()
    await append(redis, minute(2), entry_id="7-3")
    await second.flush(await second.read())
    assert await watermark(redis) == "4-18446744073709551615"
    await first.flush(slow)
    assert await watermark(redis) == "7-3"


async def test_the_watermark_is_the_id_before_the_lowest_pending_one(
    redis: Redis, make_flusher: MakeFlusher
) -> None:
    first, second = make_flusher("one"), make_flusher("two")
    await first.prepare()
    await append(redis, minute(0), entry_id="5-7")
    slow = await first.read()
    await append(redis, minute(1), entry_id="6-0")
    await second.flush(await second.read())
    assert await watermark(redis) == "5-6"
    await first.flush(slow)
    assert await watermark(redis) == "6-0"


async def test_a_pending_entry_that_was_deleted_is_let_go(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    deleted = await append(redis, minute(0))
    first = make_flusher()
    await first.prepare()
    await first.read()
    await redis.xdel(outbox_key(1), deleted)
    stop = asyncio.Event()
    stop.set()
    await make_flusher().run(stop)
    assert await pending(redis) == 0
    assert await minutes(connection) == 0
    assert await redis.xlen(rejected_key(1)) == 0


async def test_two_flushers_at_once_write_everything_once(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    stop = asyncio.Event()
    flushers = [
        make_flusher(name, batch_entries=10, take_over_idle_ms=0) for name in ("one", "two")
    ]
    tasks = [asyncio.create_task(flusher.run(stop)) for flusher in flushers]
    for number in range(200):
        partition = number % 3
        user_id = f"user{partition}"
        await append(
            redis,
            minute(number, session_id=user_id, user_id=user_id),
            entry(f"g{number}", 1_500_000, account_id=user_id),
            partition=partition,
        )
    stop.set()
    await asyncio.gather(*tasks)

    assert await minutes(connection) == 200
    assert sum(flusher.flushed_records for flusher in flushers) == 400
    accounts = await records.accounts(TENANT, None, 10)
    assert sum(one.balance_micros for one in accounts) == 200 * 500_000
    assert records.retries == 0
    for partition in PARTITIONS:
        assert await redis.xlen(outbox_key(partition)) == 0
        # Both flushers have ended cleanly.
        assert await redis.xinfo_consumers(outbox_key(partition), GROUP) == []


# Running


async def test_a_running_flusher_writes_what_comes(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(make_flusher().run(stop))
    for number in range(3):
        await append(redis, minute(number))

        async def is_flushed() -> bool:
            return await redis.xlen(outbox_key(1)) == 0

        await until(is_flushed)
        assert await minutes(connection) == number + 1
    stop.set()
    await task
    assert await pending(redis) == 0


async def test_a_stop_ends_a_blocking_read_at_once_and_loses_nothing(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(make_flusher(block_ms=14_000).run(stop))

    async def is_blocked() -> bool:
        clients = await redis.client_list()
        return any(client["cmd"] == "xreadgroup" and "b" in client["flags"] for client in clients)

    await until(is_blocked)
    await append(redis, minute(0))
    stop.set()
    async with asyncio.timeout(10):
        await task
    assert await minutes(connection) == 1
    assert await pending(redis) == 0


async def test_a_stop_drains_what_can_be_read(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    for number in range(60):
        await append(redis, minute(number), partition=number % 3)
    stop = asyncio.Event()
    stop.set()
    flusher = make_flusher(batch_entries=6)
    await flusher.run(stop)
    assert await minutes(connection) == flusher.flushed_records == 60


async def test_full_partitions_are_read_deeper_and_the_others_are_not_forgotten(
    redis: Redis, make_flusher: MakeFlusher
) -> None:
    for number in range(20):
        await append(redis, minute(number), partition=0)
    flusher = make_flusher(batch_entries=6)
    await flusher.prepare()
    first = await flusher.read()
    await flusher.flush(first)
    assert len(first) == 2
    for number in range(3):
        await append(redis, minute(number, session_id="s2"), partition=2)
    deep = await flusher.read()
    await flusher.flush(deep)
    assert [one.partition for one in deep] == [0] * 18
    again = await flusher.read()
    await flusher.flush(again)
    assert [one.partition for one in again] == [2] * 2
