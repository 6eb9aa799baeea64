"""Calls as sessions: what facts make of meters."""

import pytest

from protocol.metering.states import Phase
from protocol.wire.errors import ErrorCode, PeerError
from server.calls.billing import Billing
from server.calls.facts import FactKind
from storage import limits as storage_limits
from tests.server.call_desk import CallDesk, card
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT

MINUTE_MS = 60_000


@pytest.fixture
async def desk(cluster: Cluster, node: Node) -> CallDesk:
    await cluster.grant(100 * CREDIT)
    return CallDesk(cluster)


async def test_time_runs_while_a_participant_is_there(desk: CallDesk, node: Node) -> None:
    begin = desk.clock.now()
    await desk.joined(node)
    await desk.cluster.advance(90_000)
    await desk.left(node)
    assert await desk.standing(node) == (Phase.SUSPENDED, 90_000)
    await desk.cluster.advance(600_000)
    assert await desk.standing(node) == (Phase.SUSPENDED, 90_000)
    await desk.joined(node)
    await desk.cluster.advance(30_000)
    await desk.left(node)
    await desk.ended(node)
    row = await desk.row()
    assert (row.state, row.reason, row.elapsed_ms, row.minutes) == (
        "ended",
        "call_ended",
        120_000,
        2,
    )
    assert row.charged_micros == 2 * CREDIT
    assert row.segments == [(begin, begin + 90_000), (begin + 690_000, begin + 720_000)]
    assert [gap[2] for gap in row.gaps] == [False]
    known = await desk.duration()
    assert (known.elapsed_ms, known.facts_ms, known.reason) == (120_000, 120_000, "")
    assert known.corrections == ()


async def test_late_facts_count_from_their_instants(desk: CallDesk, node: Node) -> None:
    begin = desk.clock.now()
    await desk.cluster.advance(150_000)
    await desk.joined(node, at=begin)
    (local,) = node.registry
    assert local.meter.elapsed_at(desk.clock.now()) == 150_000
    await desk.cluster.advance(50_000)
    await desk.left(node, at=begin + 190_000)
    await desk.ended(node, at=begin + 200_000)
    row = await desk.row()
    assert (row.elapsed_ms, row.started_at) == (190_000, begin)
    assert row.segments == [(begin, begin + 190_000)]
    assert (await desk.duration()).corrections == ()


async def test_a_repetition_changes_nothing(desk: CallDesk, node: Node) -> None:
    facts = [desk.fact(FactKind.JOINED, "ann")]
    await desk.take(node, facts[0])
    await desk.cluster.advance(30_000)
    await desk.take(node, facts[0])
    assert await desk.standing(node) == (Phase.ACTIVE, 0)
    await desk.left(node)
    await desk.take(node, facts[0])
    assert await desk.standing(node) == (Phase.SUSPENDED, 30_000)
    await desk.ended(node)
    row, known = await desk.row(), await desk.duration()
    for fact in facts:
        await desk.take(node, fact)
    await desk.ended(node, at=desk.clock.now())
    assert (await desk.row(), await desk.duration()) == (row, known)


async def test_end_before_everything_else(desk: CallDesk, node: Node) -> None:
    begin = desk.clock.now()
    await desk.cluster.advance(200_000)
    await desk.ended(node, at=begin + 120_000)
    await desk.left(node, at=begin + 100_000)
    await desk.joined(node, at=begin)
    row = await desk.row()
    assert (row.state, row.reason) == ("ended", "call_ended")
    assert await desk.billed() == 100 * CREDIT // 60


async def test_two_processes_count_once(desk: CallDesk, node: Node) -> None:
    other = await desk.cluster.node()
    desk.meter(other)
    await desk.joined(node, device="phone")
    await desk.cluster.advance(30_000)
    await desk.joined(other, device="laptop")
    await desk.cluster.advance(30_000)
    await desk.left(other, device="phone")
    assert (await desk.standing(node))[0] is Phase.ACTIVE
    await desk.cluster.advance(30_000)
    await desk.left(node, device="laptop")
    assert await desk.standing(node) == (Phase.SUSPENDED, 90_000)
    await desk.ended(other)
    assert (await desk.row()).elapsed_ms == 90_000


async def test_the_process_with_the_presence_ends_it_at_the_fact(
    desk: CallDesk, node: Node
) -> None:
    other = await desk.cluster.node()
    desk.meter(other)
    begin = desk.clock.now()
    await desk.joined(node)
    await desk.cluster.advance(45_000)
    await desk.ended(other, at=begin + 40_000)
    row = await desk.row()
    assert (row.state, row.reason, row.elapsed_ms) == ("ended", "call_ended", 40_000)


async def test_devices_that_are_summed(cluster: Cluster, node: Node) -> None:
    await cluster.grant(100 * CREDIT)
    billing = {"ann": Billing(user_id="ann", account_id="ann", devices="sum")}
    desk = CallDesk(cluster, billing=billing)
    await desk.joined(node, device="phone")
    await desk.joined(node, device="laptop")
    await cluster.advance(60_000)
    await desk.left(node, device="phone")
    await desk.left(node, device="laptop")
    await desk.ended(node)
    known = await desk.duration()
    assert (known.elapsed_ms, known.facts_ms) == (60_000, 120_000)
    assert await desk.billed() == 2 * CREDIT
    assert (await cluster.account())["balance"] == 98 * CREDIT


async def test_kind_with_the_servers_clock_is_refused(cluster: Cluster, node: Node) -> None:
    desk = CallDesk(cluster, card(clock="server", enforce="none"))
    with pytest.raises(PeerError) as refused:
        await desk.joined(node)
    assert refused.value.code is ErrorCode.UNKNOWN_KIND


async def test_one_participant_who_fails_keeps_no_other_from_the_end(
    cluster: Cluster, node: Node
) -> None:
    await cluster.grant(100 * CREDIT, "ben")
    desk = CallDesk(cluster, billing={"ann": Billing(user_id="ann", account_id="ann", kind="gone")})
    await desk.joined(node, "ben")
    await cluster.advance(MINUTE_MS)
    with pytest.raises(PeerError):
        await desk.ended(node)
    await cluster.settle()
    assert (await desk.row("ben")).reason == "call_ended"


async def test_many_beginnings_hide_no_participant(
    desk: CallDesk, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "CALL_FACTS_READ_MAX", 4)
    await desk.joined(node)
    for _ in range(4):  # members who are invited, say
        await desk.keep(desk.fact(FactKind.STARTED))
    await desk.cluster.advance(MINUTE_MS)
    await desk.left(node)
    assert await desk.standing(node) == (Phase.SUSPENDED, MINUTE_MS)
    await desk.ended(node)
    assert await desk.billed() == CREDIT


async def test_a_call_that_is_mapped_a_day_later_is_billed_from_its_first_fact(
    desk: CallDesk, node: Node
) -> None:
    begin = desk.clock.now()
    await desk.cluster.advance(24 * 60 * MINUTE_MS)
    await desk.joined(node, at=begin)
    await desk.left(node, at=begin + 10 * MINUTE_MS)
    await desk.ended(node, at=begin + 11 * MINUTE_MS)
    await desk.cluster.settle()
    assert await desk.billed() == 10 * CREDIT
    known = await desk.duration()
    assert (known.facts_ms, known.reason, known.uncollected_ms) == (10 * MINUTE_MS, "longer", 0)
    await desk.ended(node, at=begin + 11 * MINUTE_MS)
    assert await desk.billed() == 10 * CREDIT
    assert desk.provider.ended == []
