"""The channels of a process, over one connection."""

import asyncio
import json
from typing import Any

from structlog.testing import capture_logs

from tests.simulation.cluster import Cluster, Node

CHANNEL = "{p0}:told"


async def publish(node: Node, message: bytes) -> None:
    await node.redis.execute_command(node.live.publish, CHANNEL, message)  # type: ignore[no-untyped-call]


async def test_messages_are_heard_until_the_channel_is_given_up(
    cluster: Cluster, node: Node
) -> None:
    channels, heard = node.registry.accounts.channels, asyncio.Queue[dict[str, Any]]()
    before = len(channels)
    await channels.subscribe(CHANNEL, heard.put_nowait)
    assert len(channels) == before + 1
    await publish(node, json.dumps({"number": 1}).encode())
    async with asyncio.timeout(30):
        assert await heard.get() == {"number": 1}
    await channels.unsubscribe(CHANNEL)
    await publish(node, json.dumps({"number": 2}).encode())
    await cluster.settle()
    assert heard.empty()
    assert len(channels) == before


async def test_message_that_is_not_understood_stops_no_other(cluster: Cluster, node: Node) -> None:
    channels, heard = node.registry.accounts.channels, asyncio.Queue[dict[str, Any]]()
    await channels.subscribe(CHANNEL, heard.put_nowait)
    with capture_logs() as logs:
        await publish(node, b"no JSON")
        await publish(node, b'{"number":2}')
        async with asyncio.timeout(30):
            assert await heard.get() == {"number": 2}
    assert [entry["event"] for entry in logs] == ["message_not_taken"]
    await channels.unsubscribe(CHANNEL)


async def test_channels_that_are_confirmed_anew_are_read_anew(cluster: Cluster, node: Node) -> None:
    channels = node.registry.accounts.channels
    heard: list[dict[str, Any]] = []
    lost: list[None] = []
    channels.resynchronised = lambda: lost.append(None)
    names = [CHANNEL, "{p0}:other"]
    for name in names:
        await channels.subscribe(name, heard.append)
    for name in names:
        channels._take({"type": "subscribe", "channel": name.encode(), "data": 1})
    assert heard == [{"reload": True}] * 2
    await asyncio.sleep(0)
    assert len(lost) == 1, "once for all of them"
    for name in names:
        await channels.unsubscribe(name)
