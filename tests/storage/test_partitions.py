"""A flusher of all partitions, or of some."""

import asyncio
from typing import TypeAlias

import asyncpg
from redis.asyncio import Redis

from storage.flush.partitions import run_flusher
from storage.postgres.records import Records
from storage.redis.keys import outbox_key
from tests.storage.examples import START, minute
from tests.storage.outboxes import (
    PARTITIONS,
    MakeFlusher,
    append,
    until,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def minutes(connection: Connection) -> int:
    return int(await connection.fetchval("SELECT count(*) FROM usage_tracking"))


async def test_a_flusher_of_one_partition_leaves_the_others(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    for partition in PARTITIONS:
        await append(redis, minute(partition), partition=partition)
    stop = asyncio.Event()
    stop.set()
    await make_flusher(partitions=[2]).run(stop)
    assert await minutes(connection) == 1
    assert [await redis.xlen(outbox_key(partition)) for partition in PARTITIONS] == [1, 1, 0]


async def test_run_flusher_flushes_all_partitions(
    redis: Redis, redis_url: str, records: Records
) -> None:
    await append(redis, minute(0), partition=63)
    stop = asyncio.Event()
    task = asyncio.create_task(run_flusher(redis_url, records, 64, stop))

    async def is_written() -> bool:
        return not await redis.xlen(outbox_key(63))

    await until(is_written)
    stop.set()
    await task
    answer = await records.check_usage_limit("ann", "acme", START)
    assert answer.minutes_used == 1
