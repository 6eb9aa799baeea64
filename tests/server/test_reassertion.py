"""A process puts back what Redis has lost."""

import pytest

from protocol.metering.states import Phase
from protocol.wire.errors import ServiceError
from tests.protocol.examples import session_of
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT, terms

CHAT = terms("chat")


async def phase_of(node: Node) -> Phase | None:
    """The session's phase in Redis; None if Redis lacks the session."""
    found = await node.live.attach("user:ann", "s1", read_only=True)
    return None if found is None else found.session.standing.phase


async def test_session_is_put_back_with_the_next_look(cluster: Cluster, node: Node) -> None:
    await cluster.grant(5 * CREDIT)
    await node.browser().start("s1", CHAT)
    await cluster.beat()
    assert node.recovery.recovered == 0
    await cluster.lose()
    assert await phase_of(node) is None
    await cluster.beat()
    assert await phase_of(node) is Phase.ACTIVE
    assert node.recovery.recovered == 1


async def test_doubt_costs_nothing_where_nothing_was_lost(cluster: Cluster, node: Node) -> None:
    await cluster.grant(5 * CREDIT)
    await node.browser().start("s1", CHAT)
    before = await cluster.account()
    node.recovery.suspect_loss()
    await cluster.settle()
    assert node.recovery.recovered == 0
    assert await cluster.account() == before


async def test_session_that_is_not_known_here_is_not_put_back(node: Node) -> None:
    with pytest.raises(ServiceError):
        await node.recovery.restore(session_of())


@pytest.mark.parametrize("has_sessions", [False, True])
async def test_epochs_begin_where_nobody_has_anything_to_put_back(
    cluster: Cluster, node: Node, has_sessions: bool
) -> None:
    if has_sessions:
        await cluster.grant(5 * CREDIT)
        await node.browser().start("s1", CHAT)
        await cluster.flush()
    await cluster.lose()
    await node.recovery.begin()
    partition = node.live.keys.partition("user:ann")
    assert await node.live.is_warm(node.live.keys.epoch(partition)) is not has_sessions
    await cluster.beat()
