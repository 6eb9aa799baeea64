"""Postgres is away, Redis is away, empty or full, and records that nobody can write."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias, cast

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from protocol.metering.records import MinuteUsed, Record
from storage import limits as storage_limits
from storage.flush.flusher import Flusher, StuckError
from storage.postgres.group_commit import Scribe
from storage.postgres.records import Records, UnavailableError
from storage.redis.keys import outbox_key, rejected_key
from storage.redis.outbox import text
from tests.storage.examples import START, TENANT, entry, minute
from tests.storage.outboxes import (
    MakeFlusher,
    append,
    pending,
    until,
    watermark,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def minutes(connection: Connection) -> list[int]:
    rows = await connection.fetch("SELECT minute FROM usage_tracking ORDER BY minute")
    return [row["minute"] for row in rows]


async def rejected(redis: Redis, partition: int = 1) -> list[dict[str, bytes]]:
    entries: Any = await redis.xrange(rejected_key(partition))
    return [{text(name): value for name, value in fields.items()} for _, fields in entries]


class Postgres:
    """The record behind a line that can be cut, before the commit or after it."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.is_away = False
        self.loses_answers = 0
        self.batches: list[int] = []

    async def write(self, records: Sequence[Record]) -> None:
        if self.is_away:
            raise UnavailableError("the line is cut")
        await self.records.write(records)
        if self.loses_answers:
            self.loses_answers -= 1
            raise UnavailableError("the answer was lost")
        self.batches.append(len(records))


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
    assert await minutes(connection) == list(range(13))
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
    # The next start has it.
    await make_flusher().run(stop)
    assert await minutes(connection) == [0]


async def test_backends_that_are_killed_all_the_time_delay_and_lose_nothing(
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
    assert await minutes(connection) == list(range(20))


# Redis


async def test_an_emptied_redis_gets_its_groups_again(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(make_flusher(block_ms=100).run(stop))
    for number in range(3):
        await append(redis, minute(number))

        async def is_flushed(number: int = number) -> bool:
            return await minutes(connection) == list(range(number + 1))

        await until(is_flushed)
        await redis.flushall()
        await redis.script_flush()
    stop.set()
    await task
    assert await minutes(connection) == [0, 1, 2]


async def test_a_stop_right_after_the_groups_were_lost_leaves_nothing(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    flusher, stop = make_flusher(), asyncio.Event()
    await flusher.prepare()
    await redis.flushall()
    await append(redis, minute(0))
    stop.set()
    await flusher.run(stop)
    assert await minutes(connection) == [0]


async def test_what_was_read_before_redis_was_emptied_is_written(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    await append(redis, minute(0))
    flusher = make_flusher()
    await flusher.prepare()
    entries = await flusher.read()
    await redis.flushall()
    await flusher.flush(entries)
    assert await minutes(connection) == [0]
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
    assert await minutes(connection) == list(range(10))
    assert await pending(redis) == 0


async def test_a_read_given_up_at_the_stop_loses_nothing(
    redis: Redis, redis_url: str, connection: Connection, make_flusher: MakeFlusher
) -> None:
    lost = asyncio.Event()

    class LosingRedis(Redis):
        """Redis behind a line that loses the answer to a blocking read."""

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
    assert await minutes(connection) == [0]
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
    assert await minutes(connection) == [0]


# Poison


async def test_a_record_that_postgres_refuses_stops_nothing_and_is_kept(
    redis: Redis, connection: Connection, make_flusher: MakeFlusher
) -> None:
    for number in range(4):
        await append(redis, minute(number))
    poison = minute(4, seconds=61, user_id="ben", session_id="s2")
    entry_id = await append(redis, minute(5), poison, minute(6))
    last = await append(redis, minute(7))
    flusher = make_flusher()
    await flusher.prepare()
    await flusher.flush(await flusher.read())

    assert await minutes(connection) == [0, 1, 2, 3, 5, 6, 7]
    (kept,) = await rejected(redis)
    assert kept["entry"] == entry_id.encode()
    assert b"usage_tracking_seconds_check" in kept["error"]
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
async def test_an_entry_that_cannot_be_decoded_stops_nothing_and_is_kept(
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
    assert await minutes(connection) == [0]
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
    assert await minutes(connection) == []
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


class Faulty(Postgres):
    """The record behind code of ours that fails on some records."""

    def __init__(self, records: Records, fails: Callable[[Record], bool]) -> None:
        super().__init__(records)
        self.fails = fails
        self.attempts = 0

    async def write(self, records: Sequence[Record]) -> None:
        self.attempts += 1
        if any(self.fails(record) for record in records):
            raise MemoryError("a fault of ours")
        await super().write(records)


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
    """Steps of the flusher, five seconds apart; what happens before each."""
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
    # The next one finds it mended.
    flusher = make_flusher()
    await flusher.run(stop)
    assert await rejected(redis) == []
    assert await minutes(connection) == [*range(20), *range(21, 31)]
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8], "it backs off"
    assert (flusher.flushed_records, flusher.rejected_entries) == (30, 0)


async def test_what_can_be_written_passes_what_cannot(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    """A fault in what writes minutes: they stay, more of them than one read takes, and what is
    credited passes them."""
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
    assert await minutes(connection) == list(range(30))
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
    assert await minutes(connection) == [3]
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
    assert await minutes(connection) == [3, 4, 5]
    assert len(await rejected(redis)) == 3
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0


async def test_of_a_type_that_is_never_written_one_is_rejected_and_the_next_is_kept(
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
    """Once the oldest has waited for 12 hours no cold account is loaded, and nothing comes."""
    uptime = Uptime()
    flusher = make_flusher(records=Faulty(records, lambda _: True), monotonic=uptime)
    await append(redis, minute(0))
    await steps(flusher, uptime, *([nothing] * 110))
    assert await rejected(redis) == []
    await steps(flusher, uptime, *([nothing] * 20))
    assert len(await rejected(redis)) == 1
    assert await redis.xlen(outbox_key(1)) == 0


async def test_a_fault_that_was_over_when_it_was_tried_again_blames_nothing(
    redis: Redis, records: Records, connection: Connection, make_flusher: MakeFlusher
) -> None:
    postgres = Faulty(records, lambda _: postgres.attempts < 3)
    for number in range(2):
        await append(redis, minute(number))
    flusher = make_flusher(records=postgres)
    await flusher.prepare()
    await flusher.flush(await flusher.read())
    assert await rejected(redis) == []
    assert await minutes(connection) == [0, 1]


async def test_one_of_many_who_wait_for_the_record_fails_alone(records: Records) -> None:
    postgres = Faulty(records, lambda record: getattr(record, "minute", None) == 2)
    scribe = Scribe(cast(Any, postgres))
    done = await asyncio.gather(
        *(scribe.write([minute(number)]) for number in range(5)), return_exceptions=True
    )
    assert [isinstance(one, MemoryError) for one in done] == [False, False, True, False, False]
