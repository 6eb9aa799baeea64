"""The outbox for a flusher: waiting entries, and single acknowledgement."""

from typing import TypeAlias

import asyncpg
from redis.asyncio import Redis

from storage.redis.keys import outbox_key, rejected_key
from tests.storage.examples import minute
from tests.storage.outboxes import (
    MakeFlusher,
    append,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def minutes(connection: Connection) -> int:
    return int(await connection.fetchval("SELECT count(*) FROM usage_tracking"))


async def test_an_acknowledgement_that_is_repeated_counts_once(
    redis: Redis, make_flusher: MakeFlusher
) -> None:
    await append(redis, minute(0), minute(1))
    flusher = make_flusher()
    await flusher.prepare()
    entries = await flusher.read()
    await flusher.write(entries)
    await append(redis, minute(2))
    await flusher.acknowledge(entries)
    await flusher.acknowledge(entries)
    assert await redis.xlen(outbox_key(1)) == 1
    assert flusher.flushed_records == 2


async def test_the_backlog_is_counted_with_its_age(redis: Redis, make_flusher: MakeFlusher) -> None:
    flusher = make_flusher()
    nothing = await flusher.backlog()
    assert (nothing.entries, nothing.oldest_ms, nothing.rejected) == (0, 0, 0)
    seconds, micros = await redis.time()
    now_ms = seconds * 1000 + micros // 1000
    await append(redis, minute(0), entry_id=f"{now_ms - 90_000}-0")
    await append(redis, minute(1), partition=2)
    await redis.xadd(rejected_key(0), {"r": b"[]"})
    backlog = await flusher.backlog()
    assert (backlog.entries, backlog.rejected) == (2, 1)
    assert backlog.oldest_ms >= 90_000
