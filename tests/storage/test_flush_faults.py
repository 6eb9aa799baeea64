"""Flushes while Postgres or Redis is away, or Postgres refuses records.

Redis may also be empty or full.
"""

import asyncio
from typing import Any, TypeAlias

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from protocol.metering.records import Record
from storage import limits as storage_limits
from storage.postgres.records import Records
from storage.redis.keys import outbox_key, rejected_key
from tests.storage.examples import START, TENANT, entry, minute
from tests.storage.outboxes import (
    MakeFlusher,
    Postgres,
    append,
    minutes_written,
    pending,
    rejected,
    until,
    watermark,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


# Postgres


async def test_without_postgres_entries_wait_and_are_written_in_large_batches_after(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    postgres = Postgres(records)
    postgres.is_away = True
    delays: list[float] = []

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)
        await append(redis, minute(len(delays)))
        postgres.is_away = len(delays) < 12
        if not postgres.is_away:
            stop.set()

    stop = asyncio.Event()
    flusher = make_flusher(records=postgres, sleep=sleep)
    await append(redis, minute(0))
    await flusher.run(stop)
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(delays) == delays[-1] == storage_limits.FLUSH_RETRY_S_MAX
    assert await minutes_written(connection) == list(range(13))
    # One entry was pending, the others came together.
    assert postgres.batches == [1, 12]
    assert await redis.xlen(outbox_key(1)) == 0
    assert flusher.failures == 0


async def test_a_lost_answer_of_postgres_counts_nothing_twice(
    redis: Redis, records: Records, make_flusher: MakeFlusher
) -> None:
    postgres = Postgres(records)
    postgres.loses_answers = 2
    stop = asyncio.Event()

    async def sleep(_: float) -> None:
        if not postgres.loses_answers:
            stop.set()

    await append(redis, entry(), minute(0))
    flusher = make_flusher(records=postgres, sleep=sleep)
    await flusher.run(stop)
    assert (await records.load_account(TENANT, "ann")).balance_micros == 9_000_000
    assert (flusher.flushed_records, await redis.xlen(outbox_key(1))) == (2, 0)


async def test_a_stop_does_not_wait_for_postgres(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    postgres = Postgres(records)
    postgres.is_away = True
    stop = asyncio.Event()

    async def sleep(_: float) -> None:
        stop.set()
        await asyncio.Event().wait()

    await append(redis, minute(0))
    await make_flusher(records=postgres, sleep=sleep).run(stop)
    assert await pending(redis) == 1
    # The flusher's next start writes the entry.
    await make_flusher().run(stop)
    assert await minutes_written(connection) == [0]


async def test_repeatedly_killed_backends_lose_nothing(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(make_flusher(sleep=lambda _: asyncio.sleep(0)).run(stop))
    for number in range(20):
        await append(redis, minute(number), partition=number % 3)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    async def is_empty() -> bool:
        return not any([await redis.xlen(outbox_key(partition)) for partition in range(3)])

    await until(is_empty)
    stop.set()
    await task
    assert await minutes_written(connection) == list(range(20))


# Redis


async def test_an_emptied_redis_gets_its_groups_again(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(make_flusher(block_ms=100).run(stop))
    for number in range(3):
        await append(redis, minute(number))

        async def is_flushed(number: int = number) -> bool:
            return await minutes_written(connection) == list(range(number + 1))

        await until(is_flushed)
        await redis.flushall()
        await redis.script_flush()
    stop.set()
    await task
    assert await minutes_written(connection) == [0, 1, 2]


async def test_a_stop_right_after_the_groups_were_lost_leaves_nothing(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    flusher, stop = make_flusher(), asyncio.Event()
    await flusher.prepare()
    await redis.flushall()
    await append(redis, minute(0))
    stop.set()
    await flusher.run(stop)
    assert await minutes_written(connection) == [0]


async def test_what_was_read_before_redis_was_emptied_is_written(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    await append(redis, minute(0))
    flusher = make_flusher()
    await flusher.prepare()
    entries = await flusher.read()
    await redis.flushall()
    await flusher.flush(entries)
    assert await minutes_written(connection) == [0]
    assert await redis.keys() == []
    assert flusher.flushed_records == 0


async def test_a_connection_that_redis_closes_is_made_again(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(make_flusher(sleep=lambda _: asyncio.sleep(0)).run(stop))
    for number in range(10):
        await append(redis, minute(number))
        await redis.client_kill_filter(_type="normal", skipme=True)

    async def is_flushed() -> bool:
        return await redis.xlen(outbox_key(1)) == 0

    await until(is_flushed)
    stop.set()
    await task
    assert await minutes_written(connection) == list(range(10))
    assert await pending(redis) == 0


async def test_a_read_given_up_at_the_stop_loses_nothing(
    redis: Redis, redis_url: str, connection: Connection, make_flusher: MakeFlusher
) -> None:
    lost = asyncio.Event()

    class LosingRedis(Redis):
        """Redis behind a connection that loses the answer to a blocking read."""

        async def xreadgroup(self, *arguments: Any, **options: Any) -> Any:
            answer = await super().xreadgroup(*arguments, **options)
            if answer and options["block"]:
                lost.set()
                await asyncio.Event().wait()
            return answer

    stop = asyncio.Event()
    flusher = make_flusher(
        make_redis=lambda: LosingRedis.from_url(redis_url, legacy_responses=False)
    )
    task = asyncio.create_task(flusher.run(stop))
    await append(redis, minute(0))
    async with asyncio.timeout(20):
        await lost.wait()
    assert await pending(redis) == 1
    stop.set()
    await task
    assert await minutes_written(connection) == [0]
    assert await pending(redis) == 0


async def test_without_redis_it_waits(make_flusher: MakeFlusher) -> None:
    stop = asyncio.Event()
    delays: list[float] = []

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)
        if len(delays) == 3:
            stop.set()

    flusher = make_flusher(
        make_redis=lambda: Redis.from_url("unix:///nonexistent/redis.sock", legacy_responses=False),
        sleep=sleep,
    )
    await flusher.run(stop)
    assert delays == [0.1, 0.2, 0.4]
    with pytest.raises(RedisConnectionError):
        await flusher.backlog()


async def test_a_full_redis_is_emptied(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    flusher = make_flusher()
    await flusher.prepare()
    await append(redis, minute(0))
    await redis.xadd(outbox_key(1), {"r": b"no json"})
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used // 2)
    try:
        with pytest.raises(Exception, match="maxmemory"):
            await redis.set("more", "data")
        await flusher.flush(await flusher.read())
        assert await redis.xlen(outbox_key(1)) == 0
        assert await redis.xlen(rejected_key(1)) == 1
    finally:
        await redis.config_set("maxmemory", 0)
    assert await minutes_written(connection) == [0]


# Poison


async def test_a_record_that_postgres_refuses_stops_nothing_and_is_kept(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    for number in range(4):
        await append(redis, minute(number))
    poison = minute(4, month="2026-11-02", user_id="ben", session_id="s2")
    entry_id = await append(redis, minute(5), poison, minute(6))
    last = await append(redis, minute(7))
    flusher = make_flusher()
    await flusher.prepare()
    await flusher.flush(await flusher.read())

    assert await minutes_written(connection) == [0, 1, 2, 3, 5, 6, 7]
    (kept,) = await rejected(redis)
    assert kept["entry"] == entry_id.encode()
    assert b"usage_tracking_month_check" in kept["error"]
    assert msgspec.json.decode(kept["r"], type=list[Record])[1] == poison
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0
    assert await watermark(redis) == last
    assert (flusher.flushed_records, flusher.rejected_entries) == (5, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"r": b"no json"},
        {"r": b"[]]"},
        {"r": b'[{"t":"minute"}]'},
        {"r": b'[{"t":"unheard of"}]'},
        {"r": b"\xff\xfe"},
        {"r": b"[" * 100_000},
        {"other": b"field"},
    ],
)
async def test_an_undecodable_entry_is_kept_and_stops_nothing(
    redis: Redis,
    connection: Connection,
    make_flusher: MakeFlusher,
    fields: dict[Any, Any],
) -> None:
    await redis.xadd(outbox_key(1), fields)
    await append(redis, minute(0))
    flusher = make_flusher()
    await flusher.prepare()
    await flusher.flush(await flusher.read())
    assert await minutes_written(connection) == [0]
    (kept,) = await rejected(redis)
    assert fields.items() <= kept.items()
    assert kept["error"].startswith(b"cannot be decoded")
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0


async def test_nothing_but_poison_is_rejected_whole(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    for number in range(5):
        await append(redis, minute(number, seconds=0))
    flusher = make_flusher()
    await flusher.prepare()
    await flusher.flush(await flusher.read())
    assert await minutes_written(connection) == []
    assert flusher.rejected_entries == len(await rejected(redis)) == 5


async def test_a_rejected_entry_can_be_appended_again(
    redis: Redis, records: Records, make_flusher: MakeFlusher
) -> None:
    await append(redis, entry(), minute(0, seconds=61))
    flusher = make_flusher()
    await flusher.prepare()
    await flusher.flush(await flusher.read())
    (kept,) = await rejected(redis)
    await redis.xadd(outbox_key(1), {"r": kept["r"].replace(b'"seconds":61', b'"seconds":60')})
    await flusher.flush(await flusher.read())
    assert await redis.xlen(outbox_key(1)) == 0
    assert (await records.load_account(TENANT, "ann")).balance_micros == 9_000_000
    assert (await records.check_usage_limit("ann", "acme", START)).minutes_used == 1
