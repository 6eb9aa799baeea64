"""A third process gets a join while a second polls earlier members."""

import pytest

from protocol import limits
from protocol.metering.states import Event
from tests.simulation.cluster import Browser, Cluster, Node
from tests.simulation.people import CREDIT
from tests.simulation.test_recovery import audited
from tests.simulation.test_recovery_races import CHAT

CUT_MS = 8_000


@pytest.fixture
async def sockets(cluster: Cluster, node: Node) -> list[Browser]:
    """A socket on each of three processes.

    The first one is in a session that has run for 30 s.
    """
    nodes = [node, await cluster.node(), await cluster.node()]
    await cluster.grant(1_000 * CREDIT)
    sockets = [one.browser(f"socket-{number}") for number, one in enumerate(nodes)]
    await sockets[0].start("s1", CHAT)
    await cluster.advance(30_000)
    return sockets


async def stopped(cluster: Cluster, sockets: list[Browser]) -> tuple[int, list[int]]:
    """Counted time and gap lengths when the last socket stops."""
    await cluster.advance(2 * limits.DOUBT_WAIT_MS)
    await cluster.advance(20_000)
    answer = await sockets[-1].request("s1", Event.STOP)
    await audited(cluster)
    receipt = answer["receipt"]
    gaps = [gap["to_at"] - gap["from_at"] for gap in receipt["gaps"]]
    return receipt["elapsed_ms"], gaps


@pytest.mark.parametrize("part", [0, 1, 2, 3, 5, 8])
async def test_gap_ends_with_first_of_two_joins(
    cluster: Cluster, sockets: list[Browser], part: int
) -> None:
    first, second, third = sockets
    proven_at = first.alive_at
    first.cut()
    await cluster.advance(CUT_MS)
    await second.start("s1", CHAT)
    came_at = second.node.clock.now()
    await cluster.advance(part * limits.DOUBT_WAIT_MS // 4)
    await third.start("s1", CHAT)
    elapsed_ms, gaps = await stopped(cluster, sockets)
    gap_ms = came_at - proven_at
    assert gaps == [gap_ms]
    assert elapsed_ms == third.node.clock.now() - first_at(first) - gap_ms


async def test_join_makes_no_gap_while_first_socket_lives(
    cluster: Cluster, sockets: list[Browser]
) -> None:
    first, second, third = sockets
    await cluster.advance(CUT_MS)
    await second.start("s1", CHAT)
    await cluster.advance(limits.DOUBT_WAIT_MS // 4)
    await third.start("s1", CHAT)
    elapsed_ms, gaps = await stopped(cluster, sockets)
    assert gaps == []
    assert elapsed_ms == third.node.clock.now() - first_at(first)


def first_at(browser: Browser) -> int:
    """When the session began, from the answer to its start."""
    started_at: int = browser.messages[0]["received_at"]
    return started_at
