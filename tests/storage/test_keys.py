"""Keys of a tenant's partition share one slot, and none is duplicate."""

import itertools
import re

from redis.crc import key_slot

from storage.redis import keys as names
from storage.redis.keys import Keys

KEYS = Keys(16)
TENANT = "org:acme"


def of_tenant(tenant: str, name: str) -> list[str]:
    """Every key that a tenant's name and one other make."""
    return [
        KEYS.session(tenant, name), KEYS.prepared(tenant, name), KEYS.notices(tenant, name),
        KEYS.sockets(tenant, name), KEYS.account(tenant, name), KEYS.applied(tenant, name),
        KEYS.spends(tenant, name), KEYS.operations(tenant, name), KEYS.hold(tenant, name),
        KEYS.member(tenant, name), KEYS.running(tenant, name, "chat"), KEYS.free(tenant, name),
        KEYS.channel(tenant, name), KEYS.contained(KEYS.member(tenant, name)),
        KEYS.contained(KEYS.account(tenant, name)),
    ]  # fmt: skip


def of_partition(partition: int) -> list[str]:
    """Every key of a whole partition."""
    return [
        KEYS.outbox(partition), KEYS.watermark(partition), names.rejected_key(partition),
        KEYS.epoch(partition), KEYS.recovering(partition), KEYS.unsettled(partition),
        KEYS.live(partition), KEYS.graces(partition), KEYS.holds(partition),
        KEYS.node(partition, "one"), KEYS.node(partition, "two"),
    ]  # fmt: skip


def test_all_that_one_step_touches_lies_in_one_slot() -> None:
    for tenant in (TENANT, "user:ann", "user:a/b"):
        partition = KEYS.partition(tenant)
        keys = [*of_tenant(tenant, "x"), *of_partition(partition), KEYS.organization(tenant)]
        assert len({key_slot(key.encode()) for key in keys}) == 1
        assert all(re.match(rf"\{{p{partition}\}}:", key) for key in keys)


def test_no_two_names_are_alike() -> None:
    made = [
        *itertools.chain.from_iterable(
            of_tenant(tenant, name) for tenant in (TENANT, "user:ann") for name in ("x", "y")
        ),
        *itertools.chain.from_iterable(of_partition(partition) for partition in range(3)),
        KEYS.organization(TENANT), KEYS.limits_channel(TENANT),
        names.NODES, names.CLOCK, names.CHANNELS, names.LOOK_CHANNEL,
    ]  # fmt: skip
    assert len(set(made)) == len(made)


def test_a_tenant_stays_in_its_partition() -> None:
    # Deployments have data under these names: the function never changes.
    tenants = ("org:acme", "user:ann", "user:bob")
    assert [Keys(64).partition(tenant) for tenant in tenants] == [27, 9, 58]
    assert {Keys(4).partition(f"user:{number}") for number in range(64)} == {0, 1, 2, 3}
