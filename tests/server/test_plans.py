"""Limits of a month are brought from the record to Redis."""

from typing import Any

import pytest

from server.counters.plans import apply_member, apply_organization
from storage.rows.months import MemberRecord
from tests.simulation.cluster import Cluster, Node

ACME = "org:acme"


async def limits(cluster: Cluster, node: Node) -> list[Any]:
    """Member's limit, organisation's limit and overage flag, as Redis has them.

    The flag says whether the organisation's limit may be exceeded.
    """
    keys = node.live.keys
    member = await cluster.redis.hget(keys.member(ACME, "ann"), "limit")
    return [member, *await cluster.redis.hmget(keys.organization(ACME), "limit", "overage")]


async def test_limits_reach_the_counters(cluster: Cluster, node: Node) -> None:
    await node.loader.months(ACME, "ann")
    assert await limits(cluster, node) == [b"", b"", b"0"]
    await cluster.records.put_organization(ACME, "acme", monthly_hours_limit=2, allow_overage=True)
    await cluster.records.put_member(ACME, "ann", monthly_hours_limit=0.5)
    found = await apply_organization(node.live, cluster.records, ACME)
    assert (found.org_limit_minutes, found.allow_overage) == (120, True)
    assert (await apply_member(node.live, cluster.records, ACME, "ann")).member_limit_minutes == 30
    assert await limits(cluster, node) == [b"30", b"120", b"1"]
    await cluster.records.put_member(ACME, "ann", monthly_hours_limit=None)
    await apply_member(node.live, cluster.records, ACME, "ann")
    assert await limits(cluster, node) == [b"", b"120", b"1"]


async def test_change_between_reading_and_applying_is_applied_too(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.loader.months(ACME, "ann")
    await cluster.records.put_organization(ACME, "acme", monthly_hours_limit=2)
    real = cluster.records.load_member

    async def overtaken(*asked: Any, **options: Any) -> MemberRecord:
        found = await real(*asked, **options)
        monkeypatch.setattr(cluster.records, "load_member", real)
        await cluster.records.put_organization(ACME, "acme", monthly_hours_limit=3)
        return found

    monkeypatch.setattr(cluster.records, "load_member", overtaken)
    found = await apply_organization(node.live, cluster.records, ACME)
    assert found.org_limit_minutes == 180
    assert (await limits(cluster, node))[1] == b"180"
