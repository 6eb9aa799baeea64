"""What a process does for credits without a request."""

import asyncio

import pytest

from protocol.metering.records import EntryPosted
from server import limits as server_limits
from storage.rows.months import AdjustmentRow
from storage.tasks import end
from tests.server.billed_session import eventually
from tests.server.ledgers import ANN, CREDIT, MAY, TENANT
from tests.simulation.cluster import Cluster, Node


async def test_what_was_only_written_down_is_applied(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "INBOX_INTERVAL_S", 0)
    monkeypatch.setattr(server_limits, "INBOX_AGE_MS_MIN", 0)
    now_ms = cluster.clock.now()
    await node.ledger.figures(ANN)
    await node.loader.months(TENANT, "ann")
    await cluster.records.post_entry(
        EntryPosted(TENANT, "ann", "g1", "grant", 2 * CREDIT, now_ms), 0, None
    )
    await cluster.records.adjust_minutes(AdjustmentRow(TENANT, "ann", "a1", MAY, 5, "x", now_ms))
    key = node.live.keys.member(TENANT, "ann")
    assert await cluster.redis.hget(key, f"used:{MAY}") == b"0"

    async def is_applied() -> bool:
        noted = [*await cluster.records.inbox(10), *await cluster.records.adjustments_waiting(10)]
        return not noted

    running = asyncio.create_task(node.ledger.run())
    await eventually(is_applied)
    await end([running])
    assert (await node.ledger.figures(ANN)).gross_micros == 2 * CREDIT
    assert await cluster.redis.hget(key, f"used:{MAY}") == b"5"
