"""Processes in Redis: their heartbeats, and the sessions that each serves."""

import pytest

from storage.redis.keys import Keys
from storage.redis.live import Live
from tests.protocol.examples import NOW

TENANT = "user:ann"


async def serve(live: Live, *nodes: str) -> None:
    """Notes that these processes have sockets of a session."""
    keys = live.keys
    for node in nodes:
        await live.redis.sadd(keys.sockets(TENANT, "chat-1"), node)
        await live.redis.sadd(keys.node(keys.partition(TENANT), node), f"{TENANT}/chat-1")


async def served(live: Live, node: str) -> list[tuple[str, str]]:
    return [one async for one in live.sessions_of_node(node)]


async def test_all_see_a_heartbeat_until_its_process_is_removed(live: Live) -> None:
    before = await live.look(ask=False)
    assert (before.nodes, before.beats, before.heard) == ({}, 0, 0)
    first = await live.beat(NOW, 5.0)
    other = Live(live.redis, live.keys, "other")
    second = await other.beat(NOW + 1_000, 6.5)
    assert first.nodes == {"node": NOW}
    assert second.nodes == {"node": NOW, "other": NOW + 1_000}
    assert second.redis_ms >= first.redis_ms
    look = await live.look(ask=True)
    assert (look.beats, look.beaten_at, look.believed_redis_ms) == (2, NOW + 1_000, 6.5)
    assert look.beaten_redis_ms == pytest.approx(second.redis_ms)
    await live.forget_node("node")
    assert (await live.look(ask=False)).nodes == {"other": NOW + 1_000}


async def test_late_heartbeat_takes_back_no_newer_one(live: Live) -> None:
    await live.beat(NOW + 4_000, 9.0)
    assert (await live.beat(NOW, 5.0)).nodes == {"node": NOW + 4_000}


async def test_a_process_departs_from_a_session_that_others_serve(live: Live) -> None:
    await serve(live, "node", "other")
    assert await served(live, "node") == [(TENANT, "chat-1")]
    await live.depart(TENANT, "chat-1", "node")
    assert await served(live, "node") == []
    assert await served(live, "other") == [(TENANT, "chat-1")]
    assert await live.redis.smembers(live.keys.sockets(TENANT, "chat-1")) == {b"other"}


async def test_the_last_process_of_a_session_does_not_retreat(live: Live) -> None:
    await serve(live, "node", "other")
    assert await live.retreat(TENANT, "chat-1")
    assert await served(live, "node") == []
    await live.depart(TENANT, "chat-1", "other")
    await serve(live, "node")
    assert not await live.retreat(TENANT, "chat-1")
    assert await served(live, "node") == [(TENANT, "chat-1")]
    # While a grace runs, a process looks at the session at the grace's end.
    graces = live.keys.graces(live.keys.partition(TENANT))
    await live.redis.zadd(graces, {f"{TENANT}/chat-1": NOW})
    assert await live.retreat(TENANT, "chat-1")


async def test_graces_that_are_over_are_found_in_every_partition(live: Live) -> None:
    for tenant, ends_at in (("user:ann", NOW), ("user:bob", NOW + 1), ("org:acme", NOW - 5)):
        graces = Keys(2).graces(Keys(2).partition(tenant))
        await live.redis.zadd(graces, {f"{tenant}/chat-1": ends_at})
    found = {one async for one in live.graces(NOW)}
    assert found == {("user:ann", "chat-1"), ("org:acme", "chat-1")}
