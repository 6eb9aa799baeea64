"""Corrections of a month reach its live sessions, once."""

import pytest

from protocol.wire.errors import BadMessageError
from storage.audit import audit_record
from tests.server.ledgers import (
    MAY,
    lose_replies,
)
from tests.simulation.cluster import Cluster, Node
from tests.simulation.test_promises import RECORDING


async def test_an_adjustment_reaches_a_live_session_both_ways(cluster: Cluster, node: Node) -> None:
    await cluster.records.put_organization("org:acme", "acme", monthly_hours_limit=0.05)
    other = await cluster.node()
    browser = node.browser()
    await browser.start("rec-1", RECORDING, org_id="acme")
    await cluster.advance(130_000)
    assert browser.all("limit_reached") == []
    await cluster.flush()
    adjusted = await other.ledger.adjust_minutes(
        "org:acme", "ann", entry_id="a1", minutes=-1, reason="silence"
    )
    assert (adjusted.month, adjusted.minutes, adjusted.repeated) == (MAY, -1, False)
    again = await other.ledger.adjust_minutes(
        "org:acme", "ann", entry_id="a1", minutes=-9, reason="silence"
    )
    assert (again.minutes, again.repeated) == (-1, True)
    await cluster.settle()
    await cluster.advance(60_000)
    assert browser.all("limit_reached") == []
    await other.ledger.adjust_minutes(
        "org:acme", "ann", entry_id="a2", minutes=10, reason="a meeting without a client"
    )
    await cluster.settle()
    await cluster.advance(50_000)
    (reached,) = browser.all("limit_reached")
    assert reached["limit"] == "org_minutes"
    await cluster.advance(60_000)
    await cluster.flush()
    assert await audit_record(cluster.records) == ()
    with pytest.raises(BadMessageError, match="more than the month has"):
        await node.ledger.adjust_minutes(
            "org:acme", "ann", entry_id="a3", minutes=-99, reason="too much"
        )


async def test_an_adjustment_whose_process_died_is_applied_once(
    cluster: Cluster, node: Node
) -> None:
    await cluster.records.put_organization("org:acme", "acme", monthly_hours_limit=10)
    member = node.live.keys.member("org:acme", "ann")
    await node.loader.months("org:acme", "ann")
    lose_replies(node.ledger, "adjust", before=True)
    await node.ledger.adjust_minutes("org:acme", "ann", entry_id="a1", minutes=5, reason="r")
    assert await cluster.redis.hget(member, f"used:{MAY}") == b"0"
    # The month that is loaded now includes the adjustment, which is not added again.
    await cluster.redis.delete(member)
    await node.loader.months("org:acme", "ann")
    assert await cluster.redis.hget(member, f"used:{MAY}") == b"5"
    assert await node.ledger.apply_adjustments(age_ms=1) == 0
    assert await node.ledger.apply_adjustments() == 1
    assert await node.ledger.apply_adjustments() == 0
    organization = node.live.keys.organization("org:acme")
    for key in (member, organization):
        assert await cluster.redis.hget(key, f"used:{MAY}") == b"5"
    # Much later, the mark of the adjustment has left Redis with a cold counter.
    await cluster.redis.delete(member, organization)
    await node.loader.months("org:acme", "ann")
    again = await node.ledger.adjust_minutes(
        "org:acme", "ann", entry_id="a1", minutes=5, reason="r"
    )
    assert again.repeated
    for key in (member, organization):
        assert await cluster.redis.hget(key, f"used:{MAY}") == b"5"
