"""Holds leave their state once, in all orders of calls and failures."""

import asyncio
from datetime import date
from typing import Any

import msgspec
import pytest

from protocol.wire.errors import PeerError, ServiceError
from server import limits as server_limits
from server.credits.credit_ledger import CreditLedger
from server.credits.outcomes import (
    Exceeds,
    HoldGone,
    Limited,
    Posted,
    Short,
    Voided,
)
from storage import limits as storage_limits
from storage.audit import audit_record
from tests.fixtures.engines import grow_cold
from tests.server.ledgers import (
    ANN,
    CREDIT,
    MAY,
    TENANT,
    audited,
    held,
    lose_postgres,
    lose_replies,
    spent,
)
from tests.simulation.cluster import Cluster, ManualClock, Node


async def test_a_hold_is_posted_in_part(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    made = await held(node.ledger, "h1", 5 * CREDIT, operation="voice_creation")
    assert (made.state, made.repeated) == ("open", False)
    assert (made.available_micros, made.credits_micros) == (5 * CREDIT, 10 * CREDIT)
    assert made.expires_at == cluster.clock.now() + 60_000
    row = await cluster.records.hold(TENANT, "h1")
    assert row is not None
    assert row.state == "open"
    assert await node.ledger.post(TENANT, "h1", 6 * CREDIT) == Exceeds(5 * CREDIT)
    posted = await node.ledger.post(TENANT, "h1", 2 * CREDIT, {"tokens_used": 7})
    assert posted == Posted(
        "h1", "post:h1", 5 * CREDIT, 2 * CREDIT, 8 * CREDIT, 8 * CREDIT, repeated=False
    )
    row = await cluster.records.hold(TENANT, "h1")
    assert row is not None
    assert (row.state, row.posted_micros) == ("posted", 2 * CREDIT)
    entry = await cluster.records.entry(*ANN, "post:h1")
    assert entry is not None
    assert (entry.amount_micros, entry.metadata) == (-2 * CREDIT, {"tokens_used": 7})
    assert await node.ledger.void(TENANT, "h1") == HoldGone("posted")
    again = await node.ledger.post(TENANT, "h1", 3 * CREDIT)
    assert again == msgspec.structs.replace(posted, repeated=True)
    asked = await held(node.ledger, "h1", CREDIT)
    assert (asked.state, asked.amount_micros, asked.repeated) == ("posted", 5 * CREDIT, True)
    await audited(cluster)


async def test_a_hold_is_voided(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    await held(node.ledger, "h1", 5 * CREDIT, operation="script_generation")
    voided = await node.ledger.void(TENANT, "h1")
    assert voided == Voided("h1", 5 * CREDIT, 10 * CREDIT, 10 * CREDIT, repeated=False)
    assert await node.ledger.void(TENANT, "h1") == msgspec.structs.replace(voided, repeated=True)
    assert await node.ledger.post(TENANT, "h1", CREDIT) == HoldGone("voided")
    assert await node.ledger.post(TENANT, "never", CREDIT) == HoldGone(None)
    assert await node.ledger.void(TENANT, "never") == HoldGone(None)
    assert await cluster.records.operations_in_month(*ANN, date.fromisoformat(MAY)) == {}
    await held(node.ledger, "h2", 5 * CREDIT)
    posted = await node.ledger.post(TENANT, "h2", 5 * CREDIT)
    assert isinstance(posted, Posted)
    assert posted.posted_micros == 5 * CREDIT
    await audited(cluster)


@pytest.mark.parametrize("step", ["hold", "post", "void"])
@pytest.mark.parametrize("where", ["before Redis", "after Redis", "before Postgres"])
@pytest.mark.parametrize("is_flushed", [False, True])
async def test_a_step_of_a_hold_that_broke_off_is_made_once(
    cluster: Cluster, node: Node, step: str, where: str, is_flushed: bool
) -> None:
    await cluster.grant(10 * CREDIT)
    await node.ledger.figures(ANN)
    other = await cluster.node()

    async def make(ledger: CreditLedger) -> Any:
        match step:
            case "hold":
                return await held(ledger, "h1", 5 * CREDIT)
            case "post":
                return await ledger.post(TENANT, "h1", CREDIT, {"n": 1})
        return await ledger.void(TENANT, "h1")

    if step != "hold":
        await held(node.ledger, "h1", 5 * CREDIT)
    if where == "before Postgres":
        lose_postgres(node.ledger)
    else:
        lose_replies(node.ledger, step, before=where == "before Redis")
    with pytest.raises(ServiceError):
        await make(node.ledger)
    if is_flushed:
        await cluster.flush()
    answer = await make(other.ledger)
    # A hold that the flusher or its process wrote down is a repetition in any case.
    assert answer.repeated == (where != "before Redis")
    states = {"hold": "open", "post": "posted", "void": "voided"}
    row = await cluster.records.hold(TENANT, "h1")
    assert row is not None
    assert row.state == states[step]
    expected = 9 * CREDIT if step == "post" else 10 * CREDIT
    account = await cluster.account()
    assert (account["balance"], account["held"]) == (expected, 5 * CREDIT * (step == "hold"))
    await audited(cluster)


async def test_holds_expire_by_themselves_whoever_made_them(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    for number in range(3):
        await held(node.ledger, f"h{number}", CREDIT, ttl_ms=10_000 * (number + 1))
    other = await cluster.node()
    node.is_alive = False
    await node.stop()
    assert await other.ledger.expiry.expire_holds() == 0
    cluster.clock.now_ms += 20_000
    assert await other.ledger.expiry.expire_holds() == 2
    assert await other.ledger.expiry.expire_holds() == 0
    assert await other.ledger.post(TENANT, "h0", CREDIT) == HoldGone("expired")
    cluster.clock.now_ms += 10_000
    # No process has expired the hold yet, and it counts as expired all the same.
    assert await other.ledger.post(TENANT, "h2", CREDIT) == HoldGone("expired")
    assert await other.ledger.void(TENANT, "h1") == HoldGone("expired")
    account = await cluster.account()
    assert (account["held"], account["reserved"], account["live"]) == (0, 0, 0)
    await cluster.flush()
    row = await cluster.records.hold(TENANT, "h2")
    assert row is not None
    assert row.state == "expired"
    assert await audit_record(cluster.records) == ()


async def test_post_and_expiry_at_the_same_instant_one_wins(cluster: Cluster, node: Node) -> None:
    await cluster.grant(100 * CREDIT)
    other = await cluster.node()
    for number in range(40):
        await held(node.ledger, f"h{number}", CREDIT, ttl_ms=60_000)
    # Two processes whose clocks are a millisecond apart.
    cluster.clock.now_ms += 59_999
    other.ledger.clock = ManualClock(cluster.clock.now_ms + 1)
    *answers, expired = await asyncio.gather(
        *(node.ledger.post(TENANT, f"h{number}", CREDIT) for number in range(40)),
        other.ledger.expiry.expire_holds(),
    )
    posted = [answer for answer in answers if isinstance(answer, Posted)]
    gone = [answer for answer in answers if answer == HoldGone("expired")]
    assert len(posted) + len(gone) == 40
    assert expired == len(gone)
    account = await cluster.account()
    assert (account["balance"], account["held"]) == ((100 - len(posted)) * CREDIT, 0)
    await audited(cluster)


async def test_holds_outlive_redis(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    for number in range(3):
        await held(node.ledger, f"h{number}", 2 * CREDIT, ttl_ms=60_000)
    await node.ledger.void(TENANT, "h2")
    await cluster.flush()
    await grow_cold(cluster.redis)
    # A cold account is loaded with what its holds reserve.
    short = await node.ledger.spend(ANN, entry_id="s1", micros=7 * CREDIT)
    assert short == Short(missing_micros=CREDIT, credits_micros=10 * CREDIT)
    posted = await node.ledger.post(TENANT, "h0", CREDIT)
    assert isinstance(posted, Posted)
    assert (posted.credits_micros, posted.available_micros) == (9 * CREDIT, 7 * CREDIT)
    assert await node.ledger.void(TENANT, "h2") == Voided(
        "h2", 2 * CREDIT, 9 * CREDIT, 7 * CREDIT, repeated=True
    )
    assert await node.ledger.expiry.expire_forgotten_holds() == 0
    cluster.clock.now_ms += 60_000 + server_limits.HOLD_OVERDUE_MS + 1
    assert await node.ledger.expiry.expire_holds() == 0
    assert await node.ledger.expiry.expire_forgotten_holds() == 1
    account = await cluster.account()
    assert (account["balance"], account["held"], account["live"]) == (9 * CREDIT, 0, 0)
    await audited(cluster)


async def test_an_unknown_hold_is_dropped_from_the_queue(cluster: Cluster, node: Node) -> None:
    key = node.live.keys.holds(node.live.keys.partition(TENANT))
    await cluster.redis.zadd(key, {f"{TENANT}/ghost": 1})
    assert await node.ledger.expiry.expire_holds() == 0
    assert await cluster.redis.zcard(key) == 0


async def test_an_account_has_a_bounded_number_of_holds(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    await held(node.ledger, "h0", 1)
    key = node.live.keys.account(*ANN)
    await cluster.redis.hset(key, "holds", str(storage_limits.HOLDS_PER_ACCOUNT_MAX))
    with pytest.raises(PeerError, match="too many open holds"):
        await node.ledger.hold(ANN, hold_id="h1", micros=1, ttl_ms=1_000)
    # The existing hold can be requested again.
    assert (await held(node.ledger, "h0", 1)).repeated


@pytest.mark.parametrize("end", ["expire", "void"])
async def test_a_hold_with_an_unflushed_end_counts_in_no_month(
    cluster: Cluster, node: Node, end: str
) -> None:
    """A hold with an unflushed end counts in no month.

    Postgres still has the hold as open, and an operation of the month was refused for it.
    """
    await cluster.grant(10 * CREDIT)
    limited: dict[str, Any] = {"operation": "script_generation", "monthly_limit": 1}
    await held(node.ledger, "h1", CREDIT, **limited)
    await cluster.flush()
    # No request has used the month for a day: it leaves Redis.
    await cluster.redis.delete(node.live.keys.operations(*ANN))
    if end == "expire":
        await cluster.advance(60_001)
        assert await node.ledger.expire_hold(TENANT, "h1")
    else:
        lose_postgres(node.ledger)
        with pytest.raises(ServiceError):
            await node.ledger.void(TENANT, "h1")
    assert await cluster.records.operations_in_month(*ANN, date.fromisoformat(MAY)) != {}
    await spent(node.ledger, "e1", CREDIT, **limited)
    assert isinstance(
        await node.ledger.spend(ANN, entry_id="e2", micros=CREDIT, **limited), Limited
    )
    await audited(cluster)


async def test_an_open_hold_counts_in_a_month_that_is_loaded(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    limited: dict[str, Any] = {"operation": "script_generation", "monthly_limit": 1}
    await held(node.ledger, "h1", CREDIT, **limited)
    await cluster.flush()
    await cluster.redis.delete(node.live.keys.operations(*ANN))
    assert isinstance(
        await node.ledger.spend(ANN, entry_id="e1", micros=CREDIT, **limited), Limited
    )
