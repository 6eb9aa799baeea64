"""An outbox to flush: what claims append, and what is to be seen of it in Redis."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from redis.asyncio import Redis

from protocol.metering.records import Record
from storage.flush.flusher import Flusher
from storage.redis.keys import outbox_key, watermark_key
from storage.redis.outbox import GROUP, text

PARTITIONS = range(3)


class MakeFlusher(Protocol):
    """Makes a flusher on the test's engines."""

    def __call__(self, consumer: str = "one", **options: Any) -> Flusher: ...


async def append(redis: Redis, *records: Record, partition: int = 1, entry_id: str = "*") -> str:
    """What a claim does: one entry of the partition's outbox."""
    encoded = msgspec.json.encode(list(records))
    appended = await redis.xadd(outbox_key(partition), {"r": encoded}, id=entry_id)
    return text(appended)


async def watermark(redis: Redis, partition: int = 1) -> str:
    return text(await redis.get(watermark_key(partition)) or "")


async def pending(redis: Redis, partition: int = 1) -> int:
    return int((await redis.xpending(outbox_key(partition), GROUP))["pending"])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns when it holds; only a test that fails waits so long."""
    async with asyncio.timeout(20):
        while True:
            if await condition():
                return
