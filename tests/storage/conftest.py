"""Fixtures that the tests of the storage share."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
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
from storage.redis.spending import Spending
from tests.storage.outboxes import PARTITIONS, MakeFlusher
from tests.storage.spending_steps import ChannelListener


@pytest.fixture
async def live(redis: Redis, redis_url: str) -> AsyncIterator[Live]:
    """Live state of process ``node`` in an empty Redis with two partitions."""
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


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A new directory, not pytest's, whose permissions every other run resets."""
    with tempfile.TemporaryDirectory(prefix="taximeter-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def used_dir() -> Iterator[Path]:
    """A directory that several tests share, each with its own word.

    Making a cluster takes a second. What these tests leave behind must not harm another test.
    """
    with tempfile.TemporaryDirectory(prefix="taximeter-") as directory:
        yield Path(directory)


@pytest.fixture
def spending(live: Live) -> Spending:
    return Spending(live)


@pytest.fixture
async def listener(live: Live) -> AsyncIterator[ChannelListener]:
    made = await ChannelListener(live).listen()
    yield made
    await made.close()
