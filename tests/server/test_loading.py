"""Cold counters load once, complete, and never from a stale record."""

from typing import Any

import pytest

from server.counters.plans import apply_member, apply_organization
from storage.rows.months import MemberRecord
from tests.server.ledgers import (
    MAY,
)
from tests.simulation.cluster import Cluster, Node


async def test_what_changes_while_a_month_is_loaded_is_not_missed(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A month that is loaded misses no change made meanwhile.

    Between the load's read of Postgres and its write to Redis, other processes find no counter to
    correct.
    """
    await cluster.records.put_organization("org:acme", "acme", monthly_hours_limit=10)
    other = await cluster.node()
    keys = node.live.keys
    member, organization = keys.member("org:acme", "ann"), keys.organization("org:acme")
    real = node.loader.records.load_member

    async def slow(*asked: Any, **options: Any) -> MemberRecord:
        found = await real(*asked, **options)
        monkeypatch.setattr(node.loader.records, "load_member", real)
        await other.ledger.adjust_minutes(
            "org:acme", "ann", entry_id="a1", minutes=5, reason="a meeting"
        )
        await cluster.records.put_organization("org:acme", "acme", monthly_hours_limit=1)
        await apply_organization(other.live, cluster.records, "org:acme")
        await cluster.records.put_member("org:acme", "ann", monthly_hours_limit=0.5)
        await apply_member(other.live, cluster.records, "org:acme", "ann")
        return found

    monkeypatch.setattr(node.loader.records, "load_member", slow)
    await node.loader.months("org:acme", "ann")
    for key, minutes in ((member, b"30"), (organization, b"60")):
        assert await cluster.redis.hmget(key, f"used:{MAY}", "limit") == [b"5", minutes]
    # Changes that the loaded figures already contain are not added to them.
    await cluster.redis.delete(member)
    await node.loader.months("org:acme", "ann")
    for key in (member, organization):
        assert await cluster.redis.hget(key, f"used:{MAY}") == b"5"
