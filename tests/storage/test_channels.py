"""A line that is read by one task while others subscribe on it, whatever happens to it."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from storage.channels import channels_of
from storage.scripts import connect
from tests.storage.outboxes import until

CHANNELS = [f"channel-{number}" for number in range(8)]
BREAKS = 40


@pytest.fixture
async def client(redis_url: str, redis: Redis) -> AsyncIterator[Redis]:
    """As the server connects to a single Redis."""
    async with connect(redis_url) as connected:
        yield connected


@pytest.fixture
async def line(client: Redis) -> AsyncIterator[PubSub]:
    made = channels_of(client)
    assert isinstance(made, PubSub)
    yield made
    await made.aclose()  # type: ignore[no-untyped-call]


async def confirmed(line: PubSub, number: int) -> list[str]:
    """The channels of the next messages."""
    messages: list[dict[str, Any] | None] = [
        await line.get_message(timeout=5) for _ in range(number)
    ]
    return sorted(message["channel"].decode() for message in messages if message)


async def test_channels_that_are_asked_for_together_share_one_connection(
    line: PubSub, client: Redis
) -> None:
    await asyncio.gather(*(line.subscribe(channel) for channel in CHANNELS))
    assert await confirmed(line, len(CHANNELS)) == CHANNELS
    assert len([one for one in await client.client_list() if int(one["sub"])]) == 1


async def is_heard(client: Redis, text: bytes) -> bool:
    """Publishes, and tells whether anybody listened."""
    return bool(await client.publish(CHANNELS[0], text))


async def test_a_reader_and_subscribers_find_a_line_broken_together(
    line: PubSub, client: Redis
) -> None:
    await line.subscribe(CHANNELS[0])
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def read() -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):  # and nothing else
                message = await line.get_message(timeout=5)
                if message and message["type"] == "message":
                    heard.put_nowait(message["data"])

    async def subscribe(channel: str) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):
                return await line.subscribe(channel)

    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read())
        for number in range(BREAKS):
            await asyncio.gather(
                client.client_kill_filter(_type="pubsub"),
                *(subscribe(channel) for channel in CHANNELS),
            )
            # Whoever made it again: it is one, and everything is heard on it.
            text = b"%d" % number
            await until(functools.partial(is_heard, client, text))
            async with asyncio.timeout(5):
                while await heard.get() != text:
                    pass
        reader.cancel()
    assert len([one for one in await client.client_list() if int(one["sub"])]) == 1
