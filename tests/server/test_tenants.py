"""A process's tenants: which calendar counts, and who hears of changed limits."""

from tests.protocol.examples import identity_of
from tests.simulation.cluster import Cluster, Node

ACME = "org:acme"
MEMBER = identity_of(tenant=ACME, org_id="acme")
ALONE = identity_of()


async def change_limit(cluster: Cluster, node: Node) -> None:
    await node.live.change_limit(ACME, None, 60, overage=False)
    await cluster.settle()


async def test_organisation_is_listened_to_while_it_has_sessions(
    cluster: Cluster, node: Node
) -> None:
    tenants, heard = node.registry.tenants, list[tuple[str, str, str | None]]()
    tenants.listeners.append(lambda *told: heard.append(told))
    await tenants.enter(MEMBER)
    await tenants.enter(MEMBER)
    await tenants.leave(MEMBER)
    await change_limit(cluster, node)
    assert heard == [(ACME, "changed", None)]
    await tenants.leave(MEMBER)
    await change_limit(cluster, node)
    assert len(heard) == 1


async def test_sessions_count_by_the_zone_of_their_organisation(
    cluster: Cluster, node: Node
) -> None:
    await cluster.records.put_organization(ACME, "acme", timezone="Asia/Tokyo")
    tenants = node.registry.tenants
    days = await tenants.enter(MEMBER)
    assert (days.zone.key, tenants.is_current(MEMBER, days)) == ("Asia/Tokyo", True)
    assert (await tenants.enter(ALONE)).zone.key == "UTC"
    await cluster.records.put_organization(ACME, "acme", timezone="Europe/Oslo")
    assert await tenants.calendar_of(MEMBER) is days, "kept until a change is told"
    await change_limit(cluster, node)
    assert not tenants.is_current(MEMBER, days)
    assert (await tenants.calendar_of(MEMBER)).zone.key == "Europe/Oslo"
    for identity in (MEMBER, ALONE):
        await tenants.leave(identity)
    # Nothing was heard of while it was not served, so nothing is remembered.
    await cluster.records.put_organization(ACME, "acme", timezone="UTC")
    assert (await tenants.enter(MEMBER)).zone.key == "UTC"
    await tenants.leave(MEMBER)


async def test_waiters_for_minutes_are_notified_of_more(cluster: Cluster, node: Node) -> None:
    tenants = node.registry.tenants
    async with tenants.listening(MEMBER) as freed:
        tenants._changed(ACME, {"recall": True, "user_id": "ann"})
        assert not freed.is_set()
        tenants._changed(ACME, {"freed": True})
        assert freed.is_set()
    assert tenants._waiting == {}
