"""A bug of ours in writing blames one entry and keeps others."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import asyncpg
from redis.asyncio import Redis

from protocol.metering.records import MinuteUsed
from storage import limits as storage_limits
from storage.flush.flusher import Flusher, StuckError
from storage.postgres.records import Records
from storage.redis.keys import outbox_key
from tests.storage.examples import TENANT, entry, minute
from tests.storage.outboxes import (
    Faulty,
    MakeFlusher,
    append,
    minutes_written,
    pending,
    rejected,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


Scene = Callable[[], Awaitable[object]]


async def nothing() -> None:
    """Time passes."""


class Uptime:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def steps(flusher: Flusher, uptime: Uptime, *scenes: Scene) -> None:
    """Steps of the flusher, five seconds apart, with what happens before each."""
    for scene in scenes:
        await scene()
        try:
            await flusher._step(None)
        except StuckError as error:
            flusher.failed(error)
        uptime.now_s += storage_limits.FLUSH_RETRY_S_MAX


async def test_an_error_in_every_write_rejects_nothing_and_is_waited_for(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    postgres, uptime = Faulty(records, lambda _: True), Uptime()
    stop = asyncio.Event()
    delays: list[float] = []

    async def sleep(delay_s: float) -> None:
        uptime.now_s += storage_limits.FLUSH_RETRY_S_MAX
        delays.append(delay_s)
        if len(delays) <= 10:
            await append(redis, minute(20 + len(delays)))
        elif len(delays) == 11:
            assert await rejected(redis) == []
            assert await redis.xlen(outbox_key(1)) == 30
            stop.set()

    for number in range(20):
        await append(redis, minute(number))
    await make_flusher(records=postgres, sleep=sleep, monotonic=uptime).run(stop)
    # At the next step the fault is mended.
    flusher = make_flusher()
    await flusher.run(stop)
    assert await rejected(redis) == []
    assert await minutes_written(connection) == [*range(20), *range(21, 31)]
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8], "it backs off"
    assert (flusher.flushed_records, flusher.rejected_entries) == (30, 0)


async def test_what_can_be_written_passes_what_cannot(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    """Credits pass the minutes that a fault in writing holds back.

    More minutes stay in the outbox than one read takes.
    """
    postgres, uptime = Faulty(records, lambda record: isinstance(record, MinuteUsed)), Uptime()
    for number in range(30):
        await append(redis, minute(number))
    flusher = make_flusher(records=postgres, monotonic=uptime, batch_entries=6)
    for number in range(5):
        await append(redis, entry(f"g{number}", 1_000_000))
        await steps(flusher, uptime, *([nothing] * 30))
        balance = (await records.load_account(TENANT, "ann")).balance_micros
        assert balance == 1_000_000 * (number + 1)
    assert await redis.xlen(outbox_key(1)) == 30
    postgres.fails = lambda _: False
    await steps(flusher, uptime, *([nothing] * 30))
    assert await rejected(redis) == []
    assert await minutes_written(connection) == list(range(30))
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0


async def test_a_lone_record_is_blamed_when_another_was_written(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    poison = minute(2)
    postgres, uptime = Faulty(records, lambda record: record == poison), Uptime()
    flusher = make_flusher(records=postgres, monotonic=uptime)
    await append(redis, poison)
    await steps(flusher, uptime, nothing, nothing, nothing)
    assert await rejected(redis) == [], "nothing says that it is to blame"
    await append(redis, minute(3))
    await steps(flusher, uptime, nothing, nothing, nothing)
    assert len(await rejected(redis)) == 1
    assert await minutes_written(connection) == [3]
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0


async def test_several_records_are_blamed_where_others_of_their_type_are_written(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    postgres = Faulty(records, lambda record: getattr(record, "minute", 9) < 3)
    for number in range(6):
        await append(redis, minute(number))
    flusher = make_flusher(records=postgres)
    await flusher.prepare()
    await flusher.flush(await flusher.read())
    assert await minutes_written(connection) == [3, 4, 5]
    assert len(await rejected(redis)) == 3
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0


async def test_of_an_unwritten_type_only_one_record_is_rejected(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    """Otherwise a fault in rare records would reject each of them alone."""
    postgres = Faulty(records, lambda record: isinstance(record, MinuteUsed))
    flusher = make_flusher(records=postgres)
    await flusher.prepare()
    for number in range(3):
        await append(redis, minute(number))
        await append(redis, entry(f"g{number}", 1_000_000))
        await flusher.flush(await flusher.read())
    assert (await records.load_account(TENANT, "ann")).balance_micros == 3_000_000
    assert len(await rejected(redis)) == 1
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 2


async def test_a_lone_record_does_not_wait_for_ever(
    redis: Redis, records: Records, make_flusher: MakeFlusher
) -> None:
    """A record that waits alone is not held back until others arrive.

    The oldest record has waited for 12 hours, no cold account is loaded, and nothing arrives.
    """
    uptime = Uptime()
    flusher = make_flusher(records=Faulty(records, lambda _: True), monotonic=uptime)
    await append(redis, minute(0))
    await steps(flusher, uptime, *([nothing] * 110))
    assert await rejected(redis) == []
    await steps(flusher, uptime, *([nothing] * 20))
    assert len(await rejected(redis)) == 1
    assert await redis.xlen(outbox_key(1)) == 0


async def test_a_fault_that_is_gone_on_retry_blames_no_entry(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    postgres = Faulty(records, lambda _: postgres.attempts < 3)
    for number in range(2):
        await append(redis, minute(number))
    flusher = make_flusher(records=postgres)
    await flusher.prepare()
    await flusher.flush(await flusher.read())
    assert await rejected(redis) == []
    assert await minutes_written(connection) == [0, 1]
