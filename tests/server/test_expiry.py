"""Grants expire without a request, and never while a session uses them."""

import asyncio
from typing import Any

import msgspec
import pytest

from protocol.metering.records import EntryPosted
from protocol.metering.states import Event
from protocol.rate_card import Package
from protocol.wire.errors import BadMessageError, ServiceError
from server import limits as server_limits
from server.runtime.rate_card_file import load_rate_card
from storage.postgres.records import UnavailableError
from storage.redis.live import LiveError
from storage.tasks import end
from tests.fixtures.server import TIMEOUT_S
from tests.server.ledgers import (
    ANN,
    CREDIT,
    TENANT,
    audited,
    held,
    spent,
)
from tests.simulation.cluster import Cluster, ManualClock, Node
from tests.simulation.test_promises import chat

CARD = load_rate_card()


async def grant(
    node: Node, entry_id: str, micros: int, expires_at: int | None = None, priority: int = 100
) -> None:
    entry = EntryPosted(*ANN, entry_id, "grant", micros, node.clock.now())
    await node.ledger.enter(entry, priority, expires_at)


async def test_the_rest_of_an_expired_grant_is_lost(cluster: Cluster, node: Node) -> None:
    end = cluster.clock.now() + 3_600_000
    await grant(node, "g1", 5 * CREDIT, end)
    await grant(node, "g2", 5 * CREDIT)
    await spent(node.ledger, "s1", 2 * CREDIT)
    other = await cluster.node()
    late = end + server_limits.GRANT_EXPIRY_LATE_MS
    await cluster.flush()
    cluster.clock.now_ms = late
    assert await node.ledger.expiry.expire_grants() == 0
    cluster.clock.now_ms = late + 1
    expired = await asyncio.gather(
        node.ledger.expiry.expire_grants(), other.ledger.expiry.expire_grants()
    )
    assert sum(expired) == 1
    assert await node.ledger.expiry.expire_grants() == 0
    assert (await cluster.account())["balance"] == 5 * CREDIT
    entry = await cluster.records.entry(*ANN, "expire:g1:0")
    assert entry is not None
    assert (entry.entry_kind, entry.amount_micros) == ("expire", -3 * CREDIT)
    (left,) = await cluster.records.grants(*ANN, 10)
    assert (left.entry_id, left.left_micros) == ("g2", 5 * CREDIT)
    await audited(cluster)


async def test_nothing_expires_while_older_records_wait(cluster: Cluster, node: Node) -> None:
    now_ms = cluster.clock.now()
    await grant(node, "g1", 5 * CREDIT, now_ms + 1)
    cluster.clock.now_ms += server_limits.GRANT_EXPIRY_LATE_MS + 10
    outbox = node.live.keys.outbox(node.live.keys.partition(TENANT))
    # Appended before the time was over; who knows what it used of the grant.
    waiting = now_ms + server_limits.GRANT_EXPIRY_LATE_MS
    entry_id: Any = await cluster.redis.xadd(outbox, {"r": b"[]", "t": waiting})
    assert await node.ledger.expiry.expire_grants() == 0
    await cluster.redis.xdel(outbox, entry_id)
    await cluster.redis.xadd(outbox, {"r": b"[]", "t": waiting + 1})
    assert await node.ledger.expiry.expire_grants() == 1


async def test_a_grant_is_not_taken_from_under_a_session(cluster: Cluster, node: Node) -> None:
    await grant(node, "g1", 2 * CREDIT, cluster.clock.now() + 1_000)
    browser = node.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await held(node.ledger, "h1", CREDIT // 4, ttl_ms=3_600_000)
    cluster.clock.now_ms += 1
    before = await cluster.account()
    # The end of the grant, as seen by a process that is ahead of the others.
    node.ledger.clock = ManualClock(
        cluster.clock.now_ms + server_limits.GRANT_EXPIRY_LATE_MS + 1_000
    )
    await cluster.flush()
    assert await node.ledger.expiry.expire_grants() == 1
    account = await cluster.account()
    assert account["balance"] == account["held"] == before["held"] > CREDIT
    assert await node.ledger.expiry.expire_grants() == 0
    node.ledger.clock = cluster.clock
    await cluster.advance(30_000)
    stopped = await browser.request("chat-1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 30_001
    await node.ledger.void(TENANT, "h1")
    await cluster.flush()
    cluster.clock.now_ms += server_limits.GRANT_EXPIRY_LATE_MS
    assert await node.ledger.expiry.expire_grants() == 1
    assert (await cluster.account())["balance"] == 0
    await audited(cluster)


async def test_packages_and_allotments(cluster: Cluster, node: Node) -> None:
    node.ledger.rates = msgspec.structs.replace(
        CARD,
        packages={"starter": Package("Starter", 50 * CREDIT, "9.90 EUR", 30)},
        allotments={"free": 7 * CREDIT},
    )
    for _ in range(2):
        entry, expires_at = node.ledger.package_entry(ANN, "starter", entry_id="p1")
        await node.ledger.enter(entry, 100, expires_at)
        await node.ledger.ensure_monthly_allotment(ANN)
    allotment, package = await cluster.records.grants(*ANN, 10)
    assert (package.name, package.amount_micros) == ("package:starter", 50 * CREDIT)
    assert package.expires_at == cluster.clock.now() + 30 * 86_400_000
    assert (allotment.name, allotment.amount_micros) == ("allotment:free:2026-05", 7 * CREDIT)
    # This grant is used first, because it expires first: with the month.
    assert allotment.expires_at == 1_780_272_000_000
    assert (await cluster.account()) == {}
    with pytest.raises(BadMessageError, match="unknown package"):
        node.ledger.package_entry(ANN, "stater", entry_id="p2")


async def test_a_process_looks_for_what_is_over_and_outlives_faults(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "HOLD_EXPIRY_INTERVAL_S", 0)
    monkeypatch.setattr(server_limits, "GRANT_EXPIRY_INTERVAL_S", 0)
    await grant(node, "g1", 5 * CREDIT, cluster.clock.now())
    await grant(node, "g2", 5 * CREDIT)
    await held(node.ledger, "h1", CREDIT, ttl_ms=1_000)
    await cluster.flush()
    cluster.clock.now_ms += server_limits.GRANT_EXPIRY_LATE_MS + 1
    faults: list[Exception] = [LiveError("away"), UnavailableError("away"), ValueError("a bug")]
    holds_due = node.ledger.spending.holds_due
    is_over, is_resting = asyncio.Event(), asyncio.Event()

    async def faulty(now_ms: int) -> list[tuple[str, str]]:
        if faults:
            raise faults.pop()
        if is_over.is_set():  # ended at rest, not in the middle of a command
            is_resting.set()
            await asyncio.Event().wait()
        return await holds_due(now_ms)

    monkeypatch.setattr(node.ledger.spending, "holds_due", faulty)
    running = asyncio.create_task(node.ledger.run())
    async with asyncio.timeout(TIMEOUT_S):
        while (await cluster.account()).get("balance") != 5 * CREDIT or faults:
            assert not running.done()
        while (await cluster.account())["held"]:
            assert not running.done()
    is_over.set()
    await is_resting.wait()
    await end([running])
    assert running.cancelled()
    assert faults == []
    assert (await cluster.account())["held"] == 0
    await audited(cluster)


async def test_one_hold_that_cannot_be_ended_stops_no_other(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(10 * CREDIT)
    for number in range(3):
        await held(node.ledger, f"h{number}", CREDIT, ttl_ms=1_000)
    cluster.clock.now_ms += 1_000
    hold_of = node.ledger.hold_of

    async def faulty(tenant: str, hold_id: str) -> object:
        if hold_id == "h1":
            raise ServiceError("no answer")
        return await hold_of(tenant, hold_id)

    monkeypatch.setattr(node.ledger, "hold_of", faulty)
    assert await node.ledger.expiry.expire_holds() == 2
    monkeypatch.undo()
    assert await node.ledger.expiry.expire_holds() == 1
