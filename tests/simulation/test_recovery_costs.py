"""A loss of Redis costs little: few questions, one log line.

Each account is read once.
"""

from typing import Any

import pytest
from structlog.testing import capture_logs

from protocol.metering.states import Phase
from protocol.wire.errors import ServiceError
from storage import limits as storage_limits
from storage.postgres.database import UnavailableError
from storage.postgres.records import Records
from storage.redis.live import LiveError
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT
from tests.simulation.test_recovery_races import (
    ANN,
    CHAT,
    phase_of,
)


@pytest.fixture
async def second(cluster: Cluster, node: Node) -> Node:
    return await cluster.node()


async def test_total_loss_logs_one_line_and_asks_little(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(100 * CREDIT)
    browser = node.browser()
    for number in range(20):
        await browser.start(f"s{number}", CHAT)
    await cluster.beat()
    monkeypatch.setattr(storage_limits, "ASSERTIONS_PER_BATCH", 4)
    asked = 0

    async def away(*_: Any, **__: Any) -> Any:
        nonlocal asked
        asked += 1
        raise UnavailableError("Postgres is away")

    await cluster.lose()
    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(Records, "_run", away)
        await cluster.beat()
    assert len([line for line in logs if line["event"] == "not_asserted"]) == 1
    assert asked <= 10
    await cluster.beat()
    await cluster.recovered()
    assert await phase_of(cluster.redis, "s19") is Phase.ACTIVE


async def test_new_partition_does_not_read_ledger(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new partition does not cause a read of the ledger.

    Sessions come and go, and with them the partitions that a process serves.
    """
    await cluster.grant(10 * CREDIT)
    asked = 0
    entries_since = Records.entries_since

    async def counted(*given: Any) -> Any:
        nonlocal asked
        asked += 1
        return await entries_since(*given)

    monkeypatch.setattr(Records, "entries_since", counted)
    await cluster.beat()
    await node.browser().start("s1", CHAT)
    await cluster.beat()
    assert asked == 0


async def test_account_is_read_once_for_all_sessions(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(100 * CREDIT)
    browser = node.browser()
    for number in range(20):
        await browser.start(f"s{number}", CHAT)
    await cluster.beat()
    reads = 0
    account = node.live.account

    async def counted(*asked: Any) -> Any:
        nonlocal reads
        reads += 1
        return await account(*asked)

    monkeypatch.setattr(node.live, "account", counted)
    accounts = node.registry.accounts
    served = accounts.get(*ANN)
    assert served is not None
    for _ in range(200):
        accounts._told(served, {"reload": True})
    await cluster.settle()
    assert reads == 1


async def test_unreadable_account_logs_one_line(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    reads = 0

    async def away(*_: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads < 3:
            raise LiveError("no answer")

    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(node.registry.accounts, "read", away)
        await node.live.tell(*ANN, {"reload": True})
        await cluster.settle()
    assert reads == 3
    assert len([line for line in logs if line["event"] == "account_not_read"]) == 1


async def test_no_account_load_while_others_recover(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(10 * CREDIT)
    await cluster.lose()
    with pytest.raises(ServiceError):
        await node.loader.account(*ANN)

    async def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Records, "load_account", asked)
    with pytest.raises(ServiceError):
        await node.loader.account(*ANN)
