"""What the tests of the storage share."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from storage.flush.flusher import Flusher
from storage.postgres.records import Records
from storage.redis.outbox import connect
from tests.storage.outboxes import PARTITIONS, MakeFlusher


@pytest.fixture
async def make_flusher(
    redis: Redis, redis_url: str, records: Records
) -> AsyncIterator[MakeFlusher]:
    made: list[Flusher] = []

    def make(consumer: str = "one", **options: Any) -> Flusher:
        options = {
            "make_redis": lambda: connect(redis_url),
            "records": records,
            "partitions": PARTITIONS,
            "wait_ms": 0,
            **options,
        }
        made.append(Flusher(consumer=consumer, **options))
        return made[-1]

    yield make
    for flusher in made:
        await flusher.close()
