"""Operations are charged at once: decided in Redis, acknowledged in Postgres."""

import asyncio
from datetime import date
from typing import Any

import msgspec
import pytest

from protocol.metering.states import Event
from protocol.wire.errors import BadMessageError, ServiceError
from server.credits.outcomes import (
    CanPerform,
    Limited,
    Short,
    Spent,
)
from storage.postgres.records import UnavailableError
from storage.redis.spending import AccountName
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
from tests.simulation.cluster import Cluster, Node
from tests.simulation.test_promises import chat

# --- Spends ----------------------------------------------------------------------------


async def test_a_spend_is_in_the_ledger_when_it_is_acknowledged(
    cluster: Cluster, node: Node
) -> None:
    await cluster.grant(3 * CREDIT)
    options = {
        "operation": "chat_refinement",
        "user_id": "ann",
        "metadata": {"service": "gpt", "tokens_used": 812, "response_time_ms": 93, "page": 7},
    }
    first = await spent(node.ledger, "s1", CREDIT, **options)
    assert first == Spent("s1", CREDIT, "chat_refinement", 2 * CREDIT, 2 * CREDIT, repeated=False)
    entry = await cluster.records.entry(*ANN, "s1")
    assert entry is not None
    assert (entry.entry_kind, entry.amount_micros) == ("spend", -CREDIT)
    assert (entry.operation, entry.metadata) == ("chat_refinement", options["metadata"])
    assert await cluster.records.operations_in_month(*ANN, date.fromisoformat(MAY)) == {
        "chat_refinement": 1
    }
    again = await spent(node.ledger, "s1", CREDIT, **options)
    assert again == msgspec.structs.replace(first, repeated=True)
    await audited(cluster)


async def test_a_spend_says_what_is_missing(cluster: Cluster, node: Node) -> None:
    await cluster.grant(3 * CREDIT)
    short = await node.ledger.spend(ANN, entry_id="s1", micros=5 * CREDIT)
    assert short == Short(missing_micros=2 * CREDIT, credits_micros=3 * CREDIT)
    await held(node.ledger, "h1", CREDIT)
    short = await node.ledger.spend(ANN, entry_id="s2", micros=5 * CREDIT)
    assert short == Short(missing_micros=3 * CREDIT, credits_micros=3 * CREDIT)
    assert await node.ledger.hold(ANN, hold_id="h2", micros=2 * CREDIT + 1, ttl_ms=1) == Short(
        missing_micros=1, credits_micros=3 * CREDIT
    )
    assert await cluster.records.entry(*ANN, "s1") is None
    await audited(cluster)


@pytest.mark.parametrize("where", ["before Redis", "after Redis", "before Postgres"])
@pytest.mark.parametrize("is_flushed", [False, True])
async def test_a_spend_that_broke_off_is_done_once(
    cluster: Cluster, node: Node, where: str, is_flushed: bool
) -> None:
    await cluster.grant(3 * CREDIT)
    await node.ledger.figures(ANN)
    if where == "before Postgres":
        lose_postgres(node.ledger)
    else:
        lose_replies(node.ledger, "spend", before=where == "before Redis")
    with pytest.raises(ServiceError):
        await node.ledger.spend(ANN, entry_id="s1", micros=CREDIT)
    if is_flushed:
        await cluster.flush()
    other = await cluster.node()
    cluster.clock.now_ms += 61_000
    # Another client tries again, and the price has changed meanwhile.
    again = await spent(other.ledger, "s1", CREDIT if where == "before Redis" else 2 * CREDIT)
    assert again.amount_micros == CREDIT
    assert again.credits_micros == 2 * CREDIT
    assert again.repeated == (where != "before Redis")
    entry = await cluster.records.entry(*ANN, "s1")
    assert entry is not None
    assert entry.amount_micros == -CREDIT
    await audited(cluster)


async def test_a_spend_that_only_the_ledger_remembers(cluster: Cluster, node: Node) -> None:
    await cluster.grant(3 * CREDIT)
    await spent(node.ledger, "s1", CREDIT)
    await spent(node.ledger, "free", 0, operation="chat_refinement")
    await cluster.flush()
    await grow_cold(cluster.redis)
    for entry_id, micros in (("s1", CREDIT), ("free", 0)):
        again = await spent(node.ledger, entry_id, CREDIT, operation="chat_refinement")
        assert (again.amount_micros, again.repeated) == (micros, True)
    assert (await cluster.account())["balance"] == 2 * CREDIT
    await audited(cluster)


async def test_postgres_is_away_before_anything_is_taken(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(3 * CREDIT)
    await node.ledger.figures(ANN)

    async def away(*_: Any) -> Any:
        raise UnavailableError("no answer")

    monkeypatch.setattr(node.ledger.records, "before_operation", away)
    with pytest.raises(ServiceError):
        await node.ledger.spend(ANN, entry_id="s1", micros=CREDIT)
    assert (await cluster.account())["balance"] == 3 * CREDIT


@pytest.mark.usefixtures("patience")
async def test_one_id_from_many_at_once_is_one_spend(cluster: Cluster, node: Node) -> None:
    await cluster.grant(100 * CREDIT)
    other = await cluster.node()
    answers = await asyncio.gather(
        *(spent((node, other)[number % 2].ledger, "s1", CREDIT) for number in range(100))
    )
    assert sum(not answer.repeated for answer in answers) == 1
    assert {answer.amount_micros for answer in answers} == {CREDIT}
    assert (await cluster.account())["balance"] == 99 * CREDIT
    await audited(cluster)


async def test_the_month_of_a_tier(cluster: Cluster, node: Node) -> None:
    await cluster.grant(100 * CREDIT)
    for number in range(3):
        await spent(node.ledger, f"s{number}", CREDIT, operation="script_generation")

    async def ask(entry_id: str, **options: Any) -> object:
        options = {"operation": "script_generation", **options}
        return await node.ledger.spend(ANN, entry_id=entry_id, micros=CREDIT, **options)

    assert await ask("s3") == Limited(limit=3, used=3)
    assert await node.ledger.hold(
        ANN, hold_id="h1", micros=1, ttl_ms=1, operation="script_generation"
    ) == Limited(limit=3, used=3)
    # Redis forgets the spend, the record does not.
    await cluster.flush()
    await grow_cold(cluster.redis)
    assert await ask("s3") == Limited(limit=3, used=3)
    assert isinstance(await ask("s4", monthly_limit=None), Spent)
    assert await ask("s5", monthly_limit=4) == Limited(limit=4, used=4)
    assert isinstance(await ask("s6", operation="chat_refinement"), Spent)
    await cluster.flush()
    cluster.clock.now_ms += 5 * 86_400_000
    assert isinstance(await ask("s3"), Spent)
    await audited(cluster)


async def test_the_month_of_an_organisation_begins_where_it_is(
    cluster: Cluster, node: Node
) -> None:
    await cluster.records.put_organization("org:acme", "acme", timezone="Pacific/Auckland")
    await cluster.grant(100 * CREDIT, "pot", "acme")
    pot = AccountName("org:acme", "pot")
    # In Auckland it is June while UTC still has ten hours of May.
    cluster.clock.now_ms = 1_780_236_000_000
    for number in range(4):
        answer = await node.ledger.spend(
            pot, entry_id=f"s{number}", micros=CREDIT, operation="script_generation"
        )
        assert isinstance(answer, Spent if number < 3 else Limited)
    assert await cluster.records.operations_in_month(*pot, date(2026, 6, 1)) == {
        "script_generation": 3
    }


async def test_what_did_not_succeed_is_kept_and_costs_nothing(cluster: Cluster, node: Node) -> None:
    await cluster.grant(5 * CREDIT)
    for number in range(4):
        answer = await spent(
            node.ledger, f"s{number}", CREDIT, operation="script_generation", succeeded=False
        )
        assert (answer.amount_micros, answer.credits_micros) == (0, 5 * CREDIT)
    assert isinstance(await spent(node.ledger, "s9", CREDIT, operation="script_generation"), Spent)
    assert await cluster.records.operations_in_month(*ANN, date.fromisoformat(MAY)) == {
        "script_generation": 1
    }
    assert await cluster.records.entry(*ANN, "s1") is None
    await audited(cluster)


async def test_whether_an_operation_could_be_done(cluster: Cluster, node: Node) -> None:
    can = node.ledger.can_perform
    assert await can(ANN, "voice_creation") == CanPerform(
        False, "insufficient_credits", 5 * CREDIT, 0
    )
    await cluster.grant(8 * CREDIT)
    assert await can(ANN, "voice_creation") == CanPerform(True, None, 5 * CREDIT, 8 * CREDIT)
    await held(node.ledger, "h1", 4 * CREDIT)
    assert await can(ANN, "voice_creation") == CanPerform(
        False, "insufficient_credits", 5 * CREDIT, 8 * CREDIT
    )
    for number in range(3):
        await spent(node.ledger, f"s{number}", CREDIT, operation="script_generation")
    assert await can(ANN, "script_generation") == CanPerform(
        False, "operation_limit", CREDIT, 5 * CREDIT
    )
    with pytest.raises(BadMessageError, match="unknown operation"):
        await can(ANN, "voice_creatoin")


# --- Recall ----------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_spend_recalls_what_sessions_hold(
    cluster: Cluster, node: Node, elsewhere: bool
) -> None:
    await cluster.grant(10 * CREDIT)
    serving = await cluster.node() if elsewhere else node
    browser = serving.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await cluster.advance(30_000)
    before = await cluster.account()
    # The session holds 65 s ahead from its first instant.
    assert before["balance"] - before["held"] == 10 * CREDIT - 65 * CREDIT // 60
    answer = await spent(node.ledger, "s1", 9 * CREDIT)
    assert answer.credits_micros == CREDIT // 2
    await cluster.settle()
    # It holds no further ahead than one does who has little left.
    assert (await cluster.account())["held"] <= 6 * CREDIT // 60
    # The session knows what is left, and runs to that point.
    assert browser.all("limit_warning")[-1]["remaining_ms"] == 30_000
    await cluster.advance(60_000)
    (reached,) = browser.all("limit_reached")
    assert reached["received_at"] == reached["stopped_at"]
    stopped = browser.last("stopped")["receipt"]
    assert stopped["elapsed_ms"] == 60_000
    assert (await cluster.account())["balance"] == 0
    await audited(cluster)


async def test_a_session_keeps_what_it_needs_to_run_on(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    node.ledger.recall.wait_ms = 20
    browser = node.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await cluster.advance(30_000)
    answer = await node.ledger.spend(ANN, entry_id="s1", micros=19 * CREDIT // 2)
    assert isinstance(answer, Short)
    assert answer.credits_micros == 19 * CREDIT // 2
    assert 0 < answer.missing_micros <= 2 * CREDIT // 60
    await cluster.settle()
    rest = 19 * CREDIT // 2 - answer.missing_micros
    assert isinstance(await spent(node.ledger, "s2", rest), Spent)
    await cluster.advance(5_000)
    assert browser.last("stopped" if browser.all("stopped") else "session")
    await audited(cluster)


async def test_a_hold_recalls_what_sessions_hold(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await cluster.advance(30_000)
    await held(node.ledger, "h1", 9 * CREDIT, ttl_ms=600_000)
    await cluster.settle()
    await cluster.advance(29_000)
    assert browser.all("limit_reached") == []
    await cluster.advance(1_000)
    assert len(browser.all("limit_reached")) == 1
    await cluster.advance(1_000)
    await node.ledger.void(TENANT, "h1")
    await cluster.settle()
    resumed = await browser.request("chat-1", Event.RESUME)
    assert resumed["state"] == "active"
    await audited(cluster)
