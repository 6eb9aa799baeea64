"""What the tests of the storage share."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from storage.flush.flusher import Flusher
from storage.postgres.records import Records
from storage.redis import live as live_state
from storage.redis.keys import Keys
from storage.redis.live import Live
from storage.redis.outbox import connect
from storage.redis.recovery import Restoring
from tests.storage.outboxes import PARTITIONS, MakeFlusher


@pytest.fixture
async def live(redis: Redis, redis_url: str) -> AsyncIterator[Live]:
    """The live state of an empty Redis with two partitions, for the process ``node``."""
    connected = Live(live_state.connect(redis_url), Keys(2), "node")
    await Restoring(connected).begin_epochs()
    yield connected
    await connected.redis.aclose()


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
