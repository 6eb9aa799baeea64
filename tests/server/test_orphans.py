"""Sessions of dead processes are suspended at the last proof of life."""

import pytest

from protocol.metering.states import Phase
from storage.redis.live import FoundSession
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT, terms

CHAT = terms("chat")
NAME = ("user:ann", "s1")


async def found(node: Node) -> FoundSession | None:
    return await node.live.attach(*NAME, read_only=True)


@pytest.fixture
async def left_behind(cluster: Cluster, node: Node) -> Node:
    """The process of a session, which has died after half a minute."""
    dead = await cluster.node()
    await cluster.grant(10 * CREDIT)
    await dead.browser().start("s1", CHAT)
    await cluster.advance(30_000)
    dead.is_alive = False
    await dead.stop()
    return dead


async def test_session_of_a_dead_process_is_suspended_at_its_last_proof(
    cluster: Cluster, node: Node, left_behind: Node
) -> None:
    alive_at = cluster.clock.now()
    await cluster.advance(20_000)
    await cluster.meanwhile(node.orphans.adopt(*NAME, left_behind.name, alive_at))
    left = await found(node)
    assert left is not None
    standing = left.session.standing
    assert (standing.phase, standing.lost_at) == (Phase.SUSPENDED, alive_at)
    assert standing.elapsed_ms == 30_000
    assert left.nodes == frozenset()
    # Its grace is looked after here.
    await cluster.advance(CHAT.reconnect_grace_ms)
    ended = await found(node)
    assert ended is None or ended.session.standing.phase is Phase.ENDED
    assert list(node.registry) == []


async def test_socket_that_joins_a_dead_processs_session_pays_no_gap(
    cluster: Cluster, node: Node, left_behind: Node
) -> None:
    node.orphans.suspected = {left_behind.name: cluster.clock.now()}
    await cluster.advance(10_000)
    back = node.browser()
    answer = await cluster.meanwhile(back.start("s1", CHAT))
    assert (answer["state"], answer["elapsed_ms"]) == ("active", 30_000)
    joined = await found(node)
    assert joined is not None
    assert joined.nodes == {node.name}


async def test_session_that_is_unknown_is_not_this_processs_any_more(
    cluster: Cluster, node: Node
) -> None:
    partition = node.live.keys.partition("user:ann")
    await cluster.redis.sadd(node.live.keys.node(partition, node.name), "user:ann/s1")
    await node.orphans.reconcile()
    assert [name async for name in node.live.sessions_of_node(node.name)] == []


async def test_session_with_sockets_here_is_not_reconciled(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", CHAT)
    before = await found(node)
    await node.orphans.reconcile()
    assert await found(node) == before


async def test_process_that_redis_has_removed_is_noted_again(cluster: Cluster, node: Node) -> None:
    """A process that Redis has removed is noted again.

    For example, Redis carried out a leave after another socket had joined.
    """
    other = await cluster.node()
    await cluster.grant(10 * CREDIT)
    await other.browser().start("s1", CHAT)
    await node.browser().start("s1", CHAT)
    await node.live.depart(*NAME, node.name)
    await node.orphans.reconcile()
    await cluster.settle()
    served = await found(node)
    assert served is not None
    assert served.nodes == {node.name, other.name}
    steps = served.session.standing.version
    await node.orphans.reconcile()
    await cluster.settle()
    again = await found(node)
    assert again is not None
    assert again.session.standing.version == steps
