"""A user's month: its recorded part, and what only Redis knows."""

from types import SimpleNamespace
from typing import cast

import pytest

from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.process import Process
from server.usage.months import Months
from storage.postgres.records import UnavailableError
from storage.rows.months import AdjustmentRow
from tests.server.ledgers import MAY
from tests.simulation.cluster import Cluster, Node

ACME = "org:acme"


@pytest.fixture
def months(node: Node) -> Months:
    process = SimpleNamespace(loader=node.loader, clock=node.clock, live=node.live)
    return Months(cast(Process, process))


def away(monkeypatch: pytest.MonkeyPatch, node: Node) -> None:
    async def load_member(*_: object, **__: object) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(node.loader.records, "load_member", load_member)


async def test_greater_of_record_and_redis_was_used(
    cluster: Cluster, node: Node, months: Months
) -> None:
    assert (await months.use(ACME, "ann")).own_minutes == 0
    await cluster.records.adjust_minutes(
        AdjustmentRow(ACME, "ann", "a1", MAY, 7, "a meeting", node.clock.now())
    )
    assert (await months.use(ACME, "ann")).own_minutes == 7, "cold in Redis"
    await node.loader.months(ACME, "ann")
    await cluster.redis.hset(node.live.keys.member(ACME, "ann"), f"used:{MAY}", "9")
    used = await months.use(ACME, "ann")
    assert (used.own_minutes, used.month.first.isoformat()) == (9, MAY)


async def test_plan_is_remembered_while_postgres_is_away(
    cluster: Cluster, node: Node, months: Months, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.records.put_organization(ACME, "acme", monthly_hours_limit=2)
    known = await months.plan(ACME, "ann")
    assert known.org_limit_minutes == 120
    away(monkeypatch, node)
    assert await months.plan(ACME, "ann") == known
    with pytest.raises(ServiceError):
        await months.plan(ACME, "ben")


async def test_oldest_plans_are_forgotten(
    cluster: Cluster, node: Node, months: Months, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "ACCOUNTS_CACHED_MAX", 2)
    for user_id in ("ann", "ben", "ann", "eve"):
        await months.plan(ACME, user_id)
    away(monkeypatch, node)
    for user_id in ("ann", "eve"):
        await months.plan(ACME, user_id)
    with pytest.raises(ServiceError):
        await months.plan(ACME, "ben")
