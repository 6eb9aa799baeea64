"""Channels on a cluster reach every subscriber and survive a lost connection.

A subscriber hears the messages of all masters.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.exceptions import RedisError

from storage.redis.channels import ClusterChannels, agree_on_channels
from storage.redis.cluster import ClusterRedis
from storage.redis.keys import CHANNELS, NODES, Keys
from storage.redis.live import Live, connect
from tests.fixtures.redis_cluster import RedisCluster
from tests.storage.outboxes import until

KEYS = Keys(16)
PLAIN = {"ssubscribe": "subscribe", "sunsubscribe": "unsubscribe", "smessage": "message"}
"""What sharded channels call by other names."""


@pytest.fixture
def redis_url(redis_cluster: RedisCluster) -> str:
    """These tests are about a cluster, whatever the others run on."""
    return redis_cluster.url


@pytest.fixture
async def cluster(redis_url: str) -> AsyncIterator[ClusterRedis]:
    connected = connect(redis_url)
    assert isinstance(connected, ClusterRedis)
    async with connected:
        await connected.flushall()
        yield connected


@pytest.fixture
async def channels(cluster: ClusterRedis) -> AsyncIterator[ClusterChannels]:
    await agree_on_channels(cluster, CHANNELS)
    made = ClusterChannels(cluster)
    yield made
    await made.aclose()


def publish(cluster: ClusterRedis, channel: str, text: str) -> Any:
    command = "SPUBLISH" if cluster.shards_channels else "PUBLISH"
    return cluster.execute_command(command, channel, text)


async def heard(channels: ClusterChannels, number: int) -> list[tuple[str, str, bytes]]:
    """The next messages: kind, channel and text."""
    found = []
    for _ in range(number):
        message = await channels.get_message(timeout=20)
        assert message is not None
        text = message["data"] if isinstance(message["data"], bytes) else b""
        kind = PLAIN.get(message["type"], message["type"])
        found.append((kind, message["channel"].decode(), text))
    return found


async def test_channels_of_all_masters(cluster: ClusterRedis, channels: ClusterChannels) -> None:
    names = [f"{{p{number}}}:channel" for number in range(KEYS.partitions)]
    for name in names:
        await channels.subscribe(name)
    confirmed = await heard(channels, len(names))
    assert {kind for kind, _, _ in confirmed} == {"subscribe"}
    for name in names:
        assert await publish(cluster, name, name) == 1
    assert sorted(await heard(channels, len(names))) == sorted(
        ("message", name, name.encode()) for name in names
    )
    await channels.unsubscribe(names[0])
    (left,) = await heard(channels, 1)
    assert left[:2] == ("unsubscribe", names[0])
    assert await publish(cluster, names[0], "nobody") == 0


async def test_a_line_that_breaks_is_made_again_and_said(
    cluster: ClusterRedis, channels: ClusterChannels
) -> None:
    await channels.subscribe(NODES)
    await heard(channels, 1)
    client = await cluster.client_of(NODES)
    await client.client_kill_filter(_type="pubsub")
    # A second confirmation means that messages may be missed: the reader reads anew.
    ((kind, channel, _),) = await heard(channels, 1)
    assert (kind, channel) == ("subscribe", NODES)
    await publish(cluster, NODES, "again")
    assert await heard(channels, 1) == [("message", NODES, b"again")]


async def test_lines_that_break_while_others_subscribe_are_read(
    cluster: ClusterRedis, channels: ClusterChannels
) -> None:
    names = [f"{NODES}:{number}" for number in range(6)]
    heard_last: asyncio.Queue[bytes] = asyncio.Queue()

    async def read() -> None:
        while True:
            message = await channels.get_message(timeout=20)
            if message and PLAIN.get(message["type"], message["type"]) == "message":
                heard_last.put_nowait(message["data"])

    async def subscribe(name: str) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):
                return await channels.subscribe(name)

    async def is_heard(name: str, text: str) -> bool:
        return bool(await publish(cluster, name, text))

    client = await cluster.client_of(NODES)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(60):
        reader = tasks.create_task(read())
        for number in range(12):
            await asyncio.gather(
                client.client_kill_filter(_type="pubsub"), *(subscribe(name) for name in names)
            )
            # Every channel is subscribed again and read, whatever was lost meanwhile.
            for name in names:
                await until(functools.partial(is_heard, name, f"{name} {number}"))
                while await heard_last.get() != f"{name} {number}".encode():
                    pass
        reader.cancel()


async def test_a_process_is_told_by_its_name(
    cluster: ClusterRedis, channels: ClusterChannels
) -> None:
    live = Live(cluster, KEYS, "node-a")
    await live.prepare()
    assert not await live.tell_process("node-b", {"post": 1})
    for name in ("node-b", "node-c", "node-d", "node-e"):
        channel = KEYS.streams_channel(name)
        await channels.subscribe(channel)
        assert await heard(channels, 1) == [("subscribe", channel, b"")]
        assert await live.tell_process(name, {"post": 2})
        assert await heard(channels, 1) == [("message", channel, b'{"post":2}')]
