"""Sessions start once, and are joined, watched and left.

Their own user joins them; only the permitted watch them.
"""

import pytest

from protocol.metering.states import Event, Phase
from protocol.wire.errors import ErrorCode, ProtocolError
from server import limits as server_limits
from server.access.principals import Principal
from server.sessions.pending_requests import PendingRequest
from tests.protocol.examples import identity_of
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT, terms

CHAT = terms("chat")
NAME = ("user:ann", "chat-1")
ANN = Principal("user", "ann", None, "ann", "user:ann")
BEN = Principal("user", "ben", None, "ben", "user:ann")
UNANSWERED = PendingRequest(None, None)


@pytest.fixture(autouse=True)
async def _credits(cluster: Cluster, node: Node) -> None:
    del node  # the process that takes them
    await cluster.grant(5 * CREDIT)


async def code_of(work: object) -> ErrorCode:
    """The error that some work is refused with."""
    with pytest.raises(ProtocolError) as refused:
        await work  # type: ignore[misc]
    return refused.value.code


async def test_unknown_session_is_neither_joined_nor_watched(node: Node) -> None:
    registry, browser = node.registry, node.browser()
    assert await registry.join(browser, *NAME, "ann", UNANSWERED) is None
    assert await registry.watch(browser, ANN, "chat-1", UNANSWERED) is None
    assert await registry.open(browser, *NAME) is None
    assert list(registry) == []


async def test_session_is_started_once_on_a_process(cluster: Cluster, node: Node) -> None:
    registry, identity = node.registry, identity_of(CHAT)
    first = await registry.start(node.browser(), identity, UNANSWERED)
    assert first is not None
    assert await registry.start(node.browser(), identity, UNANSWERED) is None
    await cluster.settle()
    assert first.meter.session.standing.phase is Phase.ACTIVE


async def test_session_is_for_its_own_user(cluster: Cluster, node: Node) -> None:
    await node.browser().start("chat-1", CHAT)
    registry, other = node.registry, node.browser("other")
    assert await code_of(registry.join(other, *NAME, "ben", UNANSWERED)) is ErrorCode.FORBIDDEN
    assert await code_of(registry.watch(other, BEN, "chat-1", UNANSWERED)) is ErrorCode.FORBIDDEN
    (local,) = registry
    assert other not in local.subscribers


async def test_sockets_that_keep_a_session_alive_are_bounded(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "SOCKETS_PER_SESSION_MAX", 1)
    await node.browser().start("chat-1", CHAT)
    registry, other = node.registry, node.browser("other")
    join = registry.join(other, *NAME, "ann", UNANSWERED)
    assert await code_of(join) is ErrorCode.RATE_LIMITED
    # An observer takes none of these places.
    local = await registry.watch(other, ANN, "chat-1", UNANSWERED)
    assert local is not None
    assert other in local.service.passive


async def test_observer_keeps_no_session_alive(cluster: Cluster, node: Node) -> None:
    browser, observer = node.browser(), node.browser("observer")
    await browser.start("chat-1", CHAT)
    local = await node.registry.watch(observer, ANN, "chat-1", UNANSWERED)
    assert local is not None
    await browser.close()
    assert local.meter.sockets == 0
    assert local.meter.session.standing.phase is not Phase.ACTIVE
    node.registry.unsubscribe(local, observer, cluster.clock.now())
    node.registry.unsubscribe(local, observer, cluster.clock.now())
    assert local.subscribers == []


async def test_ended_session_is_shown_to_who_missed_the_end(cluster: Cluster, node: Node) -> None:
    browser = node.browser()
    await browser.start("chat-1", CHAT)
    await cluster.advance(10_000)
    await browser.request("chat-1", Event.STOP)
    late = node.browser("late")
    answer = await late.start("chat-1", CHAT, last_seq=0)
    assert (answer["state"], answer["missed"][-1]["type"]) == ("ended", "stopped")
    join = node.registry.join(late, *NAME, "ann", UNANSWERED)
    assert await code_of(join) is ErrorCode.SESSION_ENDED
    assert list(node.registry) == []
