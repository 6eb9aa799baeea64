"""Money, as a process moves it: decided in Redis, acknowledged in Postgres, once."""

import msgspec

from server.charges import (
    Exceeds,
    Held,
    HoldGone,
    Posted,
    Short,
    Spent,
)
from server.config import load_rate_card
from storage.spending import AccountName
from tests.simulation.cluster import Cluster, Node

CREDIT = 1_000_000
CHAT = load_rate_card().terms("chat")
ANN = AccountName("user:ann", "ann")


async def test_a_spend_is_in_the_ledger_when_it_is_acknowledged(
    cluster: Cluster, node: Node
) -> None:
    await cluster.grant(3 * CREDIT)
    spent = await node.money.spend(
        ANN, entry_id="s1", micros=CREDIT, operation="chat_refinement", user_id="ann"
    )
    assert spent == Spent("s1", CREDIT, 2 * CREDIT, 2 * CREDIT, repeated=False)
    entry = await cluster.records.entry("user:ann", "ann", "s1")
    assert entry is not None
    assert (entry.entry_kind, entry.amount_micros) == ("spend", -CREDIT)
    again = await node.money.spend(
        ANN, entry_id="s1", micros=CREDIT, operation="chat_refinement", user_id="ann"
    )
    assert again == msgspec.structs.replace(spent, repeated=True)
    short = await node.money.spend(ANN, entry_id="s2", micros=5 * CREDIT)
    assert short == Short(3 * CREDIT, 2 * CREDIT)


async def test_a_hold_is_posted_in_part(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    held = await node.money.hold(
        ANN, hold_id="h1", micros=5 * CREDIT, ttl_ms=60_000, operation="voice_creation"
    )
    assert isinstance(held, Held)
    assert (held.state, held.available_micros, held.credits_micros) == (
        "open",
        5 * CREDIT,
        10 * CREDIT,
    )
    assert await node.money.post("user:ann", "h1", 6 * CREDIT) == Exceeds(5 * CREDIT)
    posted = await node.money.post("user:ann", "h1", 2 * CREDIT, {"tokens_used": 7})
    assert isinstance(posted, Posted)
    assert (posted.posted_micros, posted.credits_micros, posted.available_micros) == (
        2 * CREDIT,
        8 * CREDIT,
        8 * CREDIT,
    )
    assert await node.money.void("user:ann", "h1") == HoldGone("posted")
    assert await node.money.post("user:ann", "none") == HoldGone(None)
    again = await node.money.post("user:ann", "h1", 3 * CREDIT)
    assert again == msgspec.structs.replace(posted, repeated=True)
