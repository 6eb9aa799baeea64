"""An outbox to flush: entries that claims append, and its Redis state."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias

import asyncpg
import msgspec
from redis.asyncio import Redis

from protocol.metering.records import Record
from storage.flush.flusher import Flusher
from storage.postgres.records import Records, UnavailableError
from storage.redis.keys import outbox_key, rejected_key, watermark_key
from storage.redis.outbox import GROUP, text

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


PARTITIONS = range(3)


class MakeFlusher(Protocol):
    """Makes a flusher on the test's engines."""

    def __call__(self, consumer: str = "one", **options: Any) -> Flusher: ...


async def append(redis: Redis, *records: Record, partition: int = 1, entry_id: str = "*") -> str:
    """Appends one entry to the partition's outbox, as a claim does."""
    encoded = msgspec.json.encode(list(records))
    appended = await redis.xadd(outbox_key(partition), {"r": encoded}, id=entry_id)
    return text(appended)


async def watermark(redis: Redis, partition: int = 1) -> str:
    return text(await redis.get(watermark_key(partition)) or "")


async def pending(redis: Redis, partition: int = 1) -> int:
    return int((await redis.xpending(outbox_key(partition), GROUP))["pending"])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits until the condition holds, for at most 20 s."""
    async with asyncio.timeout(20):
        while True:
            if await condition():
                return


async def minutes_written(connection: Connection) -> list[int]:
    rows = await connection.fetch("SELECT minute FROM usage_tracking ORDER BY minute")
    return [row["minute"] for row in rows]


async def rejected(redis: Redis, partition: int = 1) -> list[dict[str, bytes]]:
    entries: Any = await redis.xrange(rejected_key(partition))
    return [{text(name): value for name, value in fields.items()} for _, fields in entries]


class Postgres:
    """The record behind a connection that can break.

    The connection breaks before the commit or after it.
    """

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


class Faulty(Postgres):
    """The record behind a bug of ours that fails on some records."""

    def __init__(self, records: Records, fails: Callable[[Record], bool]) -> None:
        super().__init__(records)
        self.fails = fails
        self.attempts = 0

    async def write(self, records: Sequence[Record]) -> None:
        self.attempts += 1
        if any(self.fails(record) for record in records):
            raise MemoryError("a fault of ours")
        await super().write(records)
