"""Heartbeats without a socket: the right to beat, number and end."""

import pytest

from protocol.metering.states import Phase
from protocol.wire.errors import ErrorCode, PeerError, ServiceError
from server import limits as server_limits
from server.access.principals import Principal
from server.gateway.heartbeats import Heartbeats
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT
from tests.simulation.test_heartbeats import ANN, START, Phone


def heartbeats_of(node: Node) -> Heartbeats:
    (heartbeats,) = Phone(node).desks
    return heartbeats


async def phase_of(node: Node) -> Phase:
    found = await node.live.attach("user:ann", "chat-1", read_only=True)
    assert found is not None
    return found.session.standing.phase


async def test_session_is_lost_when_no_heartbeat_follows(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    heartbeats = heartbeats_of(node)
    begun = await heartbeats.beat(ANN, "chat-1", START)
    assert begun.state == "active"
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS - 1)
    assert await phase_of(node) is Phase.ACTIVE
    assert (await heartbeats.beat(ANN, "chat-1", None)).state == "active"
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS - 1)
    assert await phase_of(node) is Phase.ACTIVE
    await cluster.advance(1)
    assert await phase_of(node) is not Phase.ACTIVE
    assert heartbeats._presences == {}


async def test_drain_takes_back_what_was_promised(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    heartbeats = heartbeats_of(node)
    await heartbeats.beat(ANN, "chat-1", START)
    await cluster.advance(20_000)
    heartbeats.drain()
    await cluster.settle()
    assert await phase_of(node) is not Phase.ACTIVE
    (local,) = node.registry
    assert local.meter.session.standing.elapsed_ms == 20_000
    assert heartbeats._presences == {}


async def test_heartbeat_is_for_the_sessions_own_user(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    heartbeats = heartbeats_of(node)
    await heartbeats.beat(ANN, "chat-1", START)
    ben = Principal("user", "ben", None, "ben", "user:ann")
    listed = Principal("user", "ann", None, "ann", "user:ann", sessions=frozenset({"chat-2"}))
    for principal in (ben, listed):
        with pytest.raises(PeerError) as refused:
            await heartbeats.beat(principal, "chat-1", START)
        assert refused.value.code is ErrorCode.FORBIDDEN


async def test_unknown_session_begins_only_with_its_kind(cluster: Cluster, node: Node) -> None:
    heartbeats = heartbeats_of(node)
    with pytest.raises(PeerError) as refused:
        await heartbeats.beat(ANN, "chat-1", None)
    assert refused.value.code is ErrorCode.UNKNOWN_SESSION
    assert heartbeats._presences == {}


async def test_sessions_by_heartbeats_are_bounded(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(10 * CREDIT)
    monkeypatch.setattr(server_limits, "HEARTBEAT_SESSIONS_MAX", 1)
    heartbeats = heartbeats_of(node)
    await heartbeats.beat(ANN, "chat-1", START)
    with pytest.raises(ServiceError):
        await heartbeats.beat(ANN, "chat-2", START)
    assert (await heartbeats.beat(ANN, "chat-1", None)).state == "active"
