"""Two clocks: what a settlement corrects, once, and what it leaves."""

import asyncio
from typing import Any

import pytest

from protocol.metering.states import Event
from protocol.wire.errors import ServiceError
from server.calls.billing import Billing
from server.calls.facts import FactKind
from server.credits.credit_ledger import CreditLedger
from server.sessions.pending_requests import PendingRequest
from storage.audit import audit_live
from tests.fixtures.database import Connection
from tests.server.call_desk import CallDesk, card
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT

MINUTE_MS = 60_000
OF_ORG = {"ann": Billing(user_id="ann", org_id="acme", account_id="ann")}


@pytest.fixture
async def desk(cluster: Cluster, node: Node) -> CallDesk:
    await cluster.grant(100 * CREDIT)
    return CallDesk(cluster)


async def balance(cluster: Cluster, org_id: str | None = None) -> int:
    await cluster.flush()
    audited = await audit_live(cluster.nodes[-1].live, cluster.records)
    assert audited.findings == ()
    return (await cluster.account(org_id=org_id))["balance"]


async def called(desk: CallDesk, node: Node, ms: int, duration_ms: int | None = None) -> None:
    """A call of that length, with the provider's figure."""
    await desk.joined(node)
    await desk.cluster.advance(ms)
    await desk.left(node, duration_ms=duration_ms)
    await desk.ended(node)


async def left_late(desk: CallDesk, node: Node, true_ms: int, known_ms: int) -> None:
    """A call whose leaving became known late."""
    begin = desk.clock.now()
    await desk.joined(node)
    await desk.cluster.advance(known_ms)
    await desk.left(node, at=begin + true_ms)
    await desk.ended(node)


async def entries(connection: Connection) -> list[Any]:
    return await connection.fetch(
        "SELECT entry_id, amount_micros, reason FROM credit_ledger WHERE entry_id LIKE 'clock:%'"
        " ORDER BY position"
    )


async def test_a_longer_figure_is_charged(
    desk: CallDesk, node: Node, connection: Connection
) -> None:
    await called(desk, node, 90_000, 100_000)
    row, known = await desk.row(), await desk.duration()
    assert (row.elapsed_ms, row.charged_micros) == (90_000, 1_500_000)
    assert (known.provider_ms, known.difference_ms, known.reason) == (100_000, 10_000, "longer")
    (made,) = known.corrections
    assert (made.credits_micros, made.minutes, made.is_done) == (166_666, 0, True)
    (entry,) = await entries(connection)
    assert entry["entry_id"] == f"clock:{desk.session_id()}:0"
    assert entry["amount_micros"] == -166_666
    assert entry["reason"] == "longer: the provider counted 100.000 s, our clock 90.000 s"
    assert await balance(desk.cluster) == 100 * CREDIT - 1_500_000 - 166_666
    await desk.ended(node)
    assert await desk.duration() == known
    assert len(await entries(connection)) == 1


async def test_a_shorter_figure_is_given_back(
    desk: CallDesk, node: Node, connection: Connection
) -> None:
    await left_late(desk, node, 100_000, 305_000)
    row, known = await desk.row(), await desk.duration()
    assert row.elapsed_ms == 300_000
    assert (known.facts_ms, known.provider_ms, known.reason) == (100_000, None, "shorter")
    assert await desk.billed() == 100 * CREDIT // 60
    assert await balance(desk.cluster) == 100 * CREDIT - 100 * CREDIT // 60
    (entry,) = await entries(connection)
    assert entry["reason"] == "shorter: the call's facts have 100.000 s, our clock 300.000 s"


@pytest.mark.parametrize("duration_ms", [58_000, 62_000, 60_000])
async def test_a_difference_within_the_tolerance_is_left(
    desk: CallDesk, node: Node, duration_ms: int
) -> None:
    await called(desk, node, MINUTE_MS, duration_ms)
    known = await desk.duration()
    assert known.corrections == ()
    assert known.reason == ("tolerance" if duration_ms != MINUTE_MS else "")
    assert known.difference_ms == duration_ms - MINUTE_MS
    assert await desk.billed() == CREDIT


async def test_what_the_balance_does_not_cover_is_no_debt(
    desk: CallDesk, node: Node, connection: Connection
) -> None:
    await desk.cluster.grant(-98 * CREDIT, kind="adjust")
    await called(desk, node, MINUTE_MS, 5 * MINUTE_MS)
    known = await desk.duration()
    assert await balance(desk.cluster) == 0
    assert sum(one.credits_micros for one in known.corrections) == CREDIT
    assert (known.uncollected_micros, known.uncollected_ms) == (3 * CREDIT, 3 * MINUTE_MS)
    # Later credits are not taken for it, and a repetition changes nothing.
    await desk.cluster.grant(10 * CREDIT)
    await desk.ended(node)
    assert await desk.duration() == known
    assert await balance(desk.cluster) == 10 * CREDIT
    assert len(await entries(connection)) == 1


async def test_truth_that_changes_is_a_further_entry(
    desk: CallDesk, node: Node, connection: Connection
) -> None:
    await called(desk, node, MINUTE_MS, 90_000)
    assert await desk.billed() == 1_500_000
    await desk.confirm(node, desk.truth(ended=True, durations_ms={"ann": 75_000}))
    known = await desk.duration()
    assert [one.credits_micros for one in known.corrections] == [500_000, -250_000]
    assert (known.provider_ms, known.asked_ms) == (75_000, 75_000)
    assert await balance(desk.cluster) == 100 * CREDIT - 1_250_000
    await desk.ended(node)  # a repetition keeps what the provider was asked
    assert await desk.duration() == known


async def test_correction_of_a_process_that_died_is_made_once(
    desk: CallDesk, node: Node, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.joined(node)
    await desk.cluster.advance(MINUTE_MS)
    await desk.left(node, duration_ms=90_000)
    spend = CreditLedger.spend
    calls = []

    async def dies(self: CreditLedger, *arguments: Any, **named: Any) -> Any:
        calls.append(named["entry_id"])
        if len(calls) == 1:
            raise ServiceError("before")
        spent = await spend(self, *arguments, **named)
        if len(calls) == 2:
            raise ServiceError("after")
        return spent

    monkeypatch.setattr(CreditLedger, "spend", dies)
    end = desk.fact(FactKind.ENDED)
    for _ in range(2):
        with pytest.raises(ServiceError):
            await desk.take(node, end)
    noted = await desk.duration()
    assert [one.is_done for one in noted.corrections] == [False]
    await desk.take(node, end)
    assert len(set(calls)) == 1
    assert len(await entries(connection)) == 1
    assert await balance(desk.cluster) == 100 * CREDIT - 1_500_000


async def test_two_processes_settle_once(
    desk: CallDesk, node: Node, connection: Connection
) -> None:
    other = await desk.cluster.node()
    await desk.joined(node)
    await desk.cluster.advance(MINUTE_MS)
    await desk.left(node, duration_ms=90_000)
    end = desk.fact(FactKind.ENDED)
    await desk.keep(end)
    meters = [desk.meter(node), desk.meter(other)]
    await asyncio.gather(*(meter.apply(end, desk.mapping) for meter in meters))
    await desk.cluster.settle()
    assert len(await entries(connection)) == 1
    assert await balance(desk.cluster) == 100 * CREDIT - 1_500_000


async def test_minutes_are_corrected_in_the_open_month(
    cluster: Cluster, node: Node, connection: Connection
) -> None:
    await cluster.records.put_organization("org:acme", "acme", timezone="UTC")
    desk = CallDesk(cluster, card(credits_per_minute="0", counts_minutes=True), dict(OF_ORG))
    await called(desk, node, 2 * MINUTE_MS, 4 * MINUTE_MS)
    (made,) = (await desk.duration()).corrections
    assert (made.minutes, made.credits_micros, made.month) == (2, 0, "2026-05-01")
    await cluster.flush()
    (row,) = await connection.fetch("SELECT month, minutes, reason FROM minute_adjustments")
    assert (row["month"].isoformat(), row["minutes"]) == ("2026-05-01", 2)


async def test_minutes_of_a_closed_month_come_back_in_the_open_one(
    cluster: Cluster, node: Node, connection: Connection
) -> None:
    await cluster.records.put_organization("org:acme", "acme", timezone="UTC")
    desk = CallDesk(cluster, card(credits_per_minute="0", counts_minutes=True), dict(OF_ORG))
    begin = desk.clock.now()
    await desk.joined(node)
    await cluster.advance(10 * MINUTE_MS)
    await desk.left(node)
    await cluster.advance(4 * 24 * 60 * MINUTE_MS)  # into June
    await desk.left(node, at=begin + 5 * MINUTE_MS)
    await desk.ended(node, at=begin + 5 * MINUTE_MS)
    known = await desk.duration()
    (made,) = known.corrections
    # June has no minutes to give back, and none goes below zero: the entry says so.
    assert (made.month, made.minutes, known.uncollected_minutes) == ("2026-06-01", 0, -5)
    assert made.reason.endswith("our clock 600.000 s in 2026-05")
    assert await connection.fetch("SELECT FROM minute_adjustments") == []


async def test_minutes_are_given_back_once_the_record_has_them(
    cluster: Cluster, node: Node
) -> None:
    await cluster.records.put_organization("org:acme", "acme", timezone="UTC")
    desk = CallDesk(cluster, card(credits_per_minute="0", counts_minutes=True), dict(OF_ORG))
    with pytest.raises(ServiceError):
        await called(desk, node, 4 * MINUTE_MS, 2 * MINUTE_MS)  # nothing is flushed yet
    await cluster.flush()
    await desk.ended(node)
    known = await desk.duration()
    assert ([one.minutes for one in known.corrections], known.uncollected_minutes) == ([-2], 0)


async def test_minutes_beyond_the_limit_are_not_collected(cluster: Cluster, node: Node) -> None:
    await cluster.grant(100 * CREDIT, org_id="acme")
    await cluster.records.put_organization(
        "org:acme", "acme", timezone="UTC", monthly_hours_limit=0.1
    )
    desk = CallDesk(cluster, card(counts_minutes=True), dict(OF_ORG))
    await called(desk, node, 4 * MINUTE_MS, 10 * MINUTE_MS)
    known = await desk.duration()
    (made,) = known.corrections
    # Six minutes in all, of which four are used: two of six are left.
    assert (made.minutes, made.credits_micros) == (2, 2 * CREDIT)
    assert (known.uncollected_minutes, known.uncollected_ms) == (4, 4 * MINUTE_MS)
    await desk.ended(node)
    assert await desk.duration() == known


async def test_an_operators_end_is_kept(desk: CallDesk, node: Node) -> None:
    await desk.joined(node)
    await desk.cluster.advance(MINUTE_MS)
    (local,) = node.registry
    node.registry.request(local, Event.STOP, PendingRequest(None, None), "operator")
    await desk.cluster.advance(MINUTE_MS)
    await desk.left(node)
    await desk.ended(node)
    known = await desk.duration()
    assert (known.reason, known.uncollected_ms, known.corrections) == ("operator", MINUTE_MS, ())


async def test_a_correction_is_of_the_account_that_paid(
    desk: CallDesk, node: Node, cluster: Cluster, connection: Connection
) -> None:
    """A page may have begun the session, say."""
    await cluster.grant(100 * CREDIT, "rich")
    await desk.joined(node)
    desk.billing["ann"] = Billing(user_id="ann", account_id="rich")
    await connection.execute(
        """UPDATE call_participants SET mapping = mapping || '{"account_id": "rich"}'"""
    )
    await cluster.advance(5 * MINUTE_MS)
    await desk.left(node, duration_ms=2 * MINUTE_MS)
    await desk.ended(node)
    (correction,) = (await desk.duration()).corrections
    assert correction.credits_micros == -3 * CREDIT
    assert await balance(cluster) == 98 * CREDIT
