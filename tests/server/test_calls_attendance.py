"""Presences beside pages, and after the death of their process."""

import pytest

from protocol.metering.states import Event, Phase
from protocol.wire.errors import PeerError
from server.calls.facts import FactKind
from tests.server.call_desk import CallDesk
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT

MINUTE_MS = 60_000


@pytest.fixture
async def desk(cluster: Cluster, node: Node) -> CallDesk:
    await cluster.grant(100 * CREDIT)
    return CallDesk(cluster)


async def test_another_process_goes_on_where_a_dead_one_stopped(desk: CallDesk, node: Node) -> None:
    begin, other = desk.clock.now(), await desk.cluster.node()
    desk.meter(other)
    await desk.joined(node)
    await desk.cluster.advance(70_000)
    node.is_alive = False
    await node.stop()
    await desk.cluster.advance(7_000)
    name = (desk.billing_of("ann").tenant, desk.session_id())
    await other.orphans.adopt(*name, node.name, begin + 69_500)
    await desk.cluster.settle()
    assert (await desk.standing(other))[0] is Phase.ACTIVE
    await desk.cluster.advance(23_000)
    await desk.left(other)
    await desk.ended(other)
    row = await desk.row()
    assert (row.elapsed_ms, row.segments) == (100_000, [(begin, begin + 100_000)])
    assert (row.reason, row.gaps) == ("call_ended", [])
    assert await desk.billed() == row.charged_micros


async def test_all_processes_were_dead_for_ten_minutes(desk: CallDesk, node: Node) -> None:
    begin = desk.clock.now()
    await desk.joined(node)
    await desk.cluster.advance(70_000)
    node.is_alive = False
    await node.stop()
    await desk.cluster.advance(600_000)
    other = await desk.cluster.node()
    desk.meter(other)
    name = (desk.billing_of("ann").tenant, desk.session_id())
    await other.orphans.adopt(*name, node.name, begin + 69_500)
    await desk.cluster.advance(30_000)
    await desk.left(other)
    await desk.ended(other)
    row = await desk.row()
    assert (row.elapsed_ms, row.reason) == (700_000, "call_ended")
    assert await desk.billed() == 700 * CREDIT // 60


async def test_user_left_while_no_process_lived(desk: CallDesk, node: Node) -> None:
    begin = desk.clock.now()
    await desk.joined(node)
    await desk.cluster.advance(30_000)
    node.is_alive = False
    await node.stop()
    await desk.cluster.advance(100_000)
    other = await desk.cluster.node()
    desk.meter(other)
    await desk.keep(desk.fact(FactKind.LEFT, "ann", begin + 40_000))
    name = (desk.billing_of("ann").tenant, desk.session_id())
    await other.orphans.adopt(*name, node.name, begin + 29_500)
    await desk.cluster.settle()
    assert (await desk.standing(other))[0] is Phase.SUSPENDED
    await desk.ended(other)
    assert await desk.billed() == 40 * CREDIT // 60


async def test_page_that_stays_open_counts_nothing_after_the_user_has_left(
    desk: CallDesk, node: Node
) -> None:
    other = await desk.cluster.node()
    desk.meter(other)
    await desk.joined(node)
    browser = other.browser()
    answer = await browser.start(desk.session_id(), desk.terms)
    assert answer["state"] == "active"
    await desk.cluster.advance(30_000)
    with pytest.raises(PeerError):
        await browser.request(desk.session_id(), Event.PAUSE)
    await desk.left(node)
    assert await desk.standing(node) == (Phase.PAUSED, 30_000)
    with pytest.raises(PeerError):
        await browser.request(desk.session_id(), Event.RESUME)
    await desk.cluster.advance(30_000)
    await desk.joined(node)
    assert (await desk.standing(node))[0] is Phase.ACTIVE
    await desk.cluster.advance(30_000)
    await browser.close()
    await desk.cluster.advance(30_000)
    await desk.left(node)
    await desk.ended(node)
    assert (await desk.row()).elapsed_ms == 90_000


async def test_page_that_began_as_a_fallback_is_counted_once(desk: CallDesk, node: Node) -> None:
    begin = desk.clock.now()
    browser = node.browser()
    await browser.start(desk.session_id(), desk.terms)
    await desk.cluster.advance(20_000)
    await desk.joined(node, at=begin + 15_000)
    await desk.cluster.advance(40_000)
    await browser.close()
    await desk.cluster.advance(60_000)
    assert await desk.standing(node) == (Phase.ACTIVE, 120_000)
    await desk.left(node)
    await desk.ended(node)
    assert (await desk.row()).elapsed_ms == 120_000


async def test_redis_emptied_during_a_call(desk: CallDesk, node: Node) -> None:
    await desk.joined(node)
    await desk.cluster.advance(100_000)
    await desk.cluster.flush()
    await desk.cluster.lose()
    await desk.cluster.beat()
    await desk.cluster.recovered()
    await desk.cluster.advance(20_000)
    await desk.left(node)
    await desk.ended(node)
    assert (await desk.row()).elapsed_ms == 120_000
    assert await desk.billed() == 2 * CREDIT
