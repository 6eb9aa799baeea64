"""A full outbox, or a Redis without writes, behaves as documented."""

from typing import Any

import pytest
from redis.asyncio import Redis

from protocol.metering.states import Event
from protocol.wire.errors import ServiceError
from storage import limits as storage_limits
from storage.redis.spending import AccountName
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT, terms
from tests.simulation.test_recovery import audited, minutes

ANN = AccountName("user:ann", "ann")


async def test_full_outbox_refuses_starts_and_records_running(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(100 * CREDIT)
    browser = node.browser()
    await browser.start("s1", terms("second"))
    with monkeypatch.context() as patched:
        patched.setattr(storage_limits, "OUTBOX_ENTRIES_MAX", 1)
        refused = await node.browser("late").start("s2", terms("second"))
        assert (refused["code"], refused["retryable"]) == ("unavailable", True)
        with pytest.raises(ServiceError, match="too many records wait"):
            await node.ledger.spend(ANN, entry_id="e1", micros=CREDIT)
        with pytest.raises(ServiceError, match="too many records wait"):
            await node.ledger.hold(ANN, hold_id="h1", micros=CREDIT, ttl_ms=1_000)
        await cluster.advance(180_000)
        assert browser.local_sessions["s1"].meter.counting
    await cluster.flush()
    assert (await node.browser("late").start("s2", terms("second")))["state"] == "active"
    stopped = await browser.request("s1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 180_000
    await audited(cluster)
    assert await minutes(cluster, "s1") == [60, 60, 60]


async def test_full_redis_behaves_as_unreachable(
    cluster: Cluster, node: Node, redis: Redis
) -> None:
    await cluster.grant(100 * CREDIT)
    browser = node.browser()
    await browser.start("s1", terms("second"))
    await cluster.advance(61_000)
    before: dict[Any, Any] = await redis.config_get("maxmemory")
    assert before
    await redis.config_set("maxmemory", "1")
    try:
        await cluster.advance(70_000)  # beyond the grant: uncovered
        assert browser.local_sessions["s1"].meter.counting
    finally:
        await redis.config_set("maxmemory", "0")
    await cluster.advance(9_000)
    stopped = await browser.request("s1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 140_000
    await audited(cluster)
    assert await minutes(cluster, "s1") == [60, 60, 20]
