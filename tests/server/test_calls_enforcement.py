"""Calls at a limit are ended, and bill no more."""

import pytest

from protocol.metering.states import Event, Phase
from server.calls import limits as call_limits
from tests.server.call_desk import RUN, CallDesk, card
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT

MINUTE_MS = 60_000


@pytest.fixture
async def desk(cluster: Cluster, node: Node) -> CallDesk:
    await cluster.grant(100 * CREDIT)
    return CallDesk(cluster)


async def test_call_is_ended_at_its_limit(desk: CallDesk, node: Node) -> None:
    await desk.cluster.grant(-99 * CREDIT, kind="adjust")
    begin = desk.clock.now()
    desk.provider.is_refusing = True
    await desk.joined(node)
    await desk.cluster.advance(60_000)
    assert desk.provider.ended == [(RUN, "ann")]
    await desk.cluster.advance(60_000)
    assert 5 <= len(desk.provider.ended) <= 10  # ever more rarely
    desk.provider.is_refusing = False
    await desk.left(node)
    told = len(desk.provider.ended)
    await desk.cluster.advance(600_000)
    assert len(desk.provider.ended) == told
    await desk.ended(node)
    row, known = await desk.row(), await desk.duration()
    assert (row.reason, row.limit_name, row.elapsed_ms) == ("limit", "credits", 60_000)
    assert row.segments == [(begin, begin + 60_000)]
    assert (known.facts_ms, known.reason, known.uncollected_ms) == (120_000, "limit", 60_000)
    assert known.corrections == ()
    assert await desk.billed() == CREDIT


async def test_end_is_asked_for_as_long_as_the_provider_shows_the_call(
    desk: CallDesk, node: Node
) -> None:
    await desk.cluster.grant(-99 * CREDIT, kind="adjust")
    desk.provider.is_refusing = True
    await desk.joined(node)
    for _ in range(6):
        await desk.cluster.advance(1_200_000)
        asked = len(desk.provider.ended)
        await desk.swept()
        await desk.confirm(node, desk.truth())
        await desk.cluster.advance(300_000)
        assert 4 <= len(desk.provider.ended) - asked <= 6  # once a minute
    assert desk.meter(node).enforcement.is_busy


async def test_end_is_asked_for_no_longer_once_another_process_hears_of_it(
    desk: CallDesk, node: Node
) -> None:
    other = await desk.cluster.node()
    await desk.cluster.grant(-99 * CREDIT, kind="adjust")
    desk.provider.is_refusing = True
    await desk.joined(node)
    await desk.cluster.advance(120_000)
    await desk.left(other)
    asked = len(desk.provider.ended)
    await desk.cluster.advance(600_000)
    assert len(desk.provider.ended) == asked
    assert not desk.meter(node).enforcement.is_busy


async def test_call_of_which_the_provider_says_nothing_is_ended_again_at_its_next_word(
    desk: CallDesk, node: Node
) -> None:
    await desk.cluster.grant(-99 * CREDIT, kind="adjust")
    desk.provider.is_refusing = True
    await desk.joined(node)
    await desk.cluster.advance(call_limits.CALL_PROOF_MS + 120_000)
    asked = len(desk.provider.ended)
    await desk.cluster.advance(1_200_000)
    assert len(desk.provider.ended) == asked
    assert not desk.meter(node).enforcement.is_busy
    await desk.swept()
    await desk.confirm(node, desk.truth())
    await desk.cluster.advance(10_000)
    assert len(desk.provider.ended) > asked


async def test_whole_call_is_ended_without_credits(cluster: Cluster, node: Node) -> None:
    desk = CallDesk(cluster, card(enforce="call"))
    await desk.joined(node)
    assert desk.provider.ended == [(RUN, None)]
    await desk.cluster.advance(10_000)
    await desk.left(node)
    await desk.ended(node)
    known = await desk.duration()
    assert (known.elapsed_ms, known.facts_ms) == (0, 10_000)
    assert (known.reason, known.uncollected_ms) == ("not_started", 10_000)


async def test_top_up_lets_a_call_go_on(desk: CallDesk, node: Node) -> None:
    await desk.cluster.grant(-99 * CREDIT, kind="adjust")
    desk.provider.is_refusing = True
    await desk.joined(node)
    browser = node.browser()
    await browser.start(desk.session_id(), desk.terms)
    await desk.cluster.advance(65_000)
    await desk.cluster.grant(10 * CREDIT)
    await browser.request(desk.session_id(), Event.RESUME)
    await desk.cluster.advance(100_000)
    asked = len(desk.provider.ended)
    await desk.cluster.advance(100_000)
    assert len(desk.provider.ended) == asked
    assert (await desk.standing(node))[0] is Phase.ACTIVE
