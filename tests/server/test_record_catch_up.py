"""What only the record has is brought to Redis, once."""

from typing import Any

import pytest

from protocol.metering.records import EntryPosted
from server import limits as server_limits
from server.recovery.record_catch_up import RecordCatchUp
from storage.postgres.records import UnavailableError
from storage.rows.months import AdjustmentRow
from tests.server.ledgers import ANN, CREDIT, MAY
from tests.simulation.cluster import Cluster, Node
from tests.storage.examples import minute, started

ACME = "org:acme"


@pytest.fixture
def catch_up(cluster: Cluster, node: Node) -> RecordCatchUp:
    return RecordCatchUp(node.recovery.restoring, cluster.records, node.loader)


def is_due(catch_up: RecordCatchUp) -> bool:
    return catch_up.is_due


async def test_entries_corrections_and_limits_are_brought_once(
    cluster: Cluster, node: Node, catch_up: RecordCatchUp
) -> None:
    now_ms, keys = cluster.clock.now(), node.live.keys
    await node.ledger.figures(ANN)
    await node.loader.months(ACME, "ann")
    await cluster.records.post_entry(EntryPosted(*ANN, "g1", "grant", CREDIT, now_ms))
    await cluster.records.adjust_minutes(AdjustmentRow(ACME, "ann", "a1", MAY, 5, "x", now_ms))
    await cluster.records.put_organization(ACME, "acme", monthly_hours_limit=2)
    assert await catch_up.bring(now_ms)
    assert catch_up.learnt == 3
    assert (await node.ledger.figures(ANN)).balance_micros == CREDIT
    for key, limit in ((keys.member(ACME, "ann"), b""), (keys.organization(ACME), b"120")):
        assert await cluster.redis.hmget(key, f"used:{MAY}", "limit") == [b"5", limit]
    assert await catch_up.bring(now_ms)
    assert catch_up.learnt == 3
    await node.ledger.apply_inbox()
    assert (await node.ledger.figures(ANN)).balance_micros == CREDIT


async def test_nothing_is_brought_while_postgres_is_away(
    cluster: Cluster, node: Node, catch_up: RecordCatchUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(cluster.records, "entries_since", away)
    assert not await catch_up.bring(cluster.clock.now())
    assert catch_up.learnt == 0


async def test_open_holds_wait_for_a_record_that_is_behind(
    cluster: Cluster, node: Node, catch_up: RecordCatchUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(5 * CREDIT)
    await node.ledger.hold(ANN, hold_id="h1", micros=CREDIT, ttl_ms=600_000)
    await cluster.flush()
    await cluster.redis.delete(node.live.keys.hold(ANN.tenant, "h1"))
    partition = node.live.keys.partition(ANN.tenant)
    behind = {partition}

    async def partitions_behind(_: int) -> set[int]:
        return behind

    monkeypatch.setattr(node.loader, "behind", partitions_behind)
    assert await catch_up.bring(cluster.clock.now())
    key = node.live.keys.hold(ANN.tenant, "h1")
    assert not await node.live.is_warm(key)
    assert not is_due(catch_up)
    behind.clear()
    cluster.clock.now_ms = catch_up._put_off_until
    assert is_due(catch_up)
    await catch_up.bring_put_off()
    assert await node.live.is_warm(key)
    assert not is_due(catch_up)


async def test_limits_come_back_although_reported_sessions_cannot_be_read(
    cluster: Cluster, node: Node, catch_up: RecordCatchUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.loader.months(ACME, "ann")
    await cluster.records.put_organization(ACME, "acme", monthly_hours_limit=2)

    async def slow(*_: Any) -> None:
        raise UnavailableError("no answer in time")

    monkeypatch.setattr(cluster.records, "reported_sessions", slow)
    assert not await catch_up.bring(cluster.clock.now())
    assert await cluster.redis.hget(node.live.keys.organization(ACME), "limit") == b"120"


@pytest.mark.parametrize("page_rows", [1, 2, 500])
async def test_reported_minutes_of_all_pages_come_back(
    cluster: Cluster,
    node: Node,
    catch_up: RecordCatchUp,
    monkeypatch: pytest.MonkeyPatch,
    page_rows: int,
) -> None:
    now_ms = cluster.clock.now()
    names = [(f"org:{tenant}", f"s{number}") for tenant in ("a", "b") for number in range(2)]
    for tenant, session_id in names:
        first = started(session_id=session_id, tenant=tenant, started_at=now_ms, is_reported=True)
        one = minute(0, session_id=session_id, tenant=tenant, started_at=now_ms)
        await cluster.records.write([first, one])
    monkeypatch.setattr(server_limits, "LOST_SESSIONS_PAGE_ROWS", page_rows)
    assert await catch_up.bring(now_ms)
    assert catch_up.learnt == len(names)
    for tenant, session_id in names:
        (found,) = await node.live.sessions(tenant, [session_id])
        assert found.standing.minutes_kept == 1
