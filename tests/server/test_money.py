"""Money, as a process moves it: decided in Redis, acknowledged in Postgres, once."""

import asyncio
from datetime import date
from typing import Any

import msgspec
import pytest

from protocol import limits
from protocol.errors import BadMessageError, PeerError, ServiceError
from protocol.events import EntryPosted
from protocol.rates import Package, parse_rate_card
from protocol.states import Event
from server.charges import (
    CanPerform,
    Exceeds,
    Held,
    HoldGone,
    Limited,
    Posted,
    Short,
    Spent,
    Voided,
)
from server.config import load_rate_card
from server.money import Money
from storage.audit import audit_live, audit_record
from storage.live import LiveError
from storage.records import UnavailableError
from storage.spending import AccountName
from tests.simulation.cluster import Cluster, Node, VirtualClock
from tests.simulation.test_promises import RECORDING, chat

CREDIT = 1_000_000
TENANT = "user:ann"
ANN = AccountName(TENANT, "ann")
MAY = "2026-05-01"
CARD = load_rate_card()


async def spent(money: Money, entry_id: str, micros: int, **options: Any) -> Spent:
    answer = await money.spend(ANN, entry_id=entry_id, micros=micros, **options)
    assert isinstance(answer, Spent), answer
    return answer


async def held(money: Money, hold_id: str, micros: int, **options: Any) -> Held:
    answer = await money.hold(ANN, hold_id=hold_id, micros=micros, **{"ttl_ms": 60_000, **options})
    assert isinstance(answer, Held), answer
    return answer


async def audited(cluster: Cluster) -> None:
    """Everything adds up: the record by itself, and Redis with the record."""
    await cluster.settle()
    assert await audit_record(cluster.records) == ()
    found = await audit_live(cluster.nodes[0].live, cluster.records)
    assert (found.findings, found.restless) == ((), 0)
    await cluster.flush()
    assert await audit_record(cluster.records) == ()
    assert (await audit_live(cluster.nodes[0].live, cluster.records)).findings == ()


def lose_replies(money: Money, script: str, *, before: bool = False) -> None:
    """The next call of a script gets no answer, though it was (or was not) done."""
    attribute = f"_{script}"
    real = getattr(money.spending, attribute)

    async def call(keys: Any, arguments: Any) -> Any:
        setattr(money.spending, attribute, real)
        if not before:
            await real(keys, arguments)
        raise LiveError("no answer")

    setattr(money.spending, attribute, call)


def lose_postgres(money: Money) -> None:
    """The next write gets no answer, and was not done: the process dies there, say."""
    real = money._scribe.write

    async def write(records: Any) -> None:
        money._scribe.write = real  # type: ignore[method-assign]
        raise UnavailableError("no answer")

    money._scribe.write = write  # type: ignore[method-assign]


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
    first = await spent(node.money, "s1", CREDIT, **options)
    assert first == Spent("s1", CREDIT, 2 * CREDIT, 2 * CREDIT, repeated=False)
    entry = await cluster.records.entry(*ANN, "s1")
    assert entry is not None
    assert (entry.entry_kind, entry.amount_micros) == ("spend", -CREDIT)
    assert (entry.operation, entry.metadata) == ("chat_refinement", options["metadata"])
    assert await cluster.records.operations_in_month(*ANN, date.fromisoformat(MAY)) == {
        "chat_refinement": 1
    }
    again = await spent(node.money, "s1", CREDIT, **options)
    assert again == msgspec.structs.replace(first, repeated=True)
    await audited(cluster)


async def test_a_spend_says_what_is_missing(cluster: Cluster, node: Node) -> None:
    await cluster.grant(3 * CREDIT)
    short = await node.money.spend(ANN, entry_id="s1", micros=5 * CREDIT)
    assert short == Short(missing_micros=2 * CREDIT, credits_micros=3 * CREDIT)
    await held(node.money, "h1", CREDIT)
    short = await node.money.spend(ANN, entry_id="s2", micros=5 * CREDIT)
    assert short == Short(missing_micros=3 * CREDIT, credits_micros=3 * CREDIT)
    assert await node.money.hold(ANN, hold_id="h2", micros=2 * CREDIT + 1, ttl_ms=1) == Short(
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
    await node.money.figures(ANN)
    if where == "before Postgres":
        lose_postgres(node.money)
    else:
        lose_replies(node.money, "spend", before=where == "before Redis")
    with pytest.raises(ServiceError):
        await node.money.spend(ANN, entry_id="s1", micros=CREDIT)
    if is_flushed:
        await cluster.flush()
    other = await cluster.node()
    cluster.clock.now_ms += 61_000
    # Somebody else tries again, and the price has changed meanwhile.
    again = await spent(other.money, "s1", CREDIT if where == "before Redis" else 2 * CREDIT)
    assert again.amount_micros == CREDIT
    assert again.credits_micros == 2 * CREDIT
    assert again.repeated == (where != "before Redis")
    entry = await cluster.records.entry(*ANN, "s1")
    assert entry is not None
    assert entry.amount_micros == -CREDIT
    await audited(cluster)


async def test_a_spend_that_only_the_ledger_remembers(cluster: Cluster, node: Node) -> None:
    await cluster.grant(3 * CREDIT)
    await spent(node.money, "s1", CREDIT)
    await spent(node.money, "free", 0, operation="chat_refinement")
    await cluster.flush()
    await cluster.redis.flushall()
    for entry_id, micros in (("s1", CREDIT), ("free", 0)):
        again = await spent(node.money, entry_id, CREDIT, operation="chat_refinement")
        assert (again.amount_micros, again.repeated) == (micros, True)
    assert (await cluster.account())["balance"] == 2 * CREDIT
    await audited(cluster)


async def test_postgres_is_away_before_anything_is_taken(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(3 * CREDIT)
    await node.money.figures(ANN)

    async def away(*_: Any) -> Any:
        raise UnavailableError("no answer")

    monkeypatch.setattr(node.money.records, "before_operation", away)
    with pytest.raises(ServiceError):
        await node.money.spend(ANN, entry_id="s1", micros=CREDIT)
    assert (await cluster.account())["balance"] == 3 * CREDIT


async def test_one_id_from_many_at_once_is_one_spend(cluster: Cluster, node: Node) -> None:
    await cluster.grant(100 * CREDIT)
    other = await cluster.node()
    answers = await asyncio.gather(
        *(spent((node, other)[number % 2].money, "s1", CREDIT) for number in range(100))
    )
    assert sum(not answer.repeated for answer in answers) == 1
    assert {answer.amount_micros for answer in answers} == {CREDIT}
    assert (await cluster.account())["balance"] == 99 * CREDIT
    await audited(cluster)


async def test_the_month_of_a_tier(cluster: Cluster, node: Node) -> None:
    await cluster.grant(100 * CREDIT)
    for number in range(3):
        await spent(node.money, f"s{number}", CREDIT, operation="script_generation")

    async def ask(entry_id: str, **options: Any) -> object:
        options = {"operation": "script_generation", **options}
        return await node.money.spend(ANN, entry_id=entry_id, micros=CREDIT, **options)

    assert await ask("s3") == Limited(limit=3, used=3)
    assert await node.money.hold(
        ANN, hold_id="h1", micros=1, ttl_ms=1, operation="script_generation"
    ) == Limited(limit=3, used=3)
    # Redis forgets, the record does not.
    await cluster.flush()
    await cluster.redis.flushall()
    assert await ask("s3") == Limited(limit=3, used=3)
    assert isinstance(await ask("s4", monthly_limit=None), Spent)
    assert await ask("s5", monthly_limit=4) == Limited(limit=4, used=4)
    assert isinstance(await ask("s6", operation="chat_refinement"), Spent)
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
        answer = await node.money.spend(
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
            node.money, f"s{number}", CREDIT, operation="script_generation", succeeded=False
        )
        assert (answer.amount_micros, answer.credits_micros) == (0, 5 * CREDIT)
    assert isinstance(await spent(node.money, "s9", CREDIT, operation="script_generation"), Spent)
    assert await cluster.records.operations_in_month(*ANN, date.fromisoformat(MAY)) == {
        "script_generation": 1
    }
    assert await cluster.records.entry(*ANN, "s1") is None
    await audited(cluster)


async def test_whether_an_operation_could_be_done(cluster: Cluster, node: Node) -> None:
    can = node.money.can_perform
    assert await can(ANN, "voice_creation") == CanPerform(
        False, "insufficient_credits", 5 * CREDIT, 0
    )
    await cluster.grant(8 * CREDIT)
    assert await can(ANN, "voice_creation") == CanPerform(True, None, 5 * CREDIT, 8 * CREDIT)
    await held(node.money, "h1", 4 * CREDIT)
    assert await can(ANN, "voice_creation") == CanPerform(
        False, "insufficient_credits", 5 * CREDIT, 8 * CREDIT
    )
    for number in range(3):
        await spent(node.money, f"s{number}", CREDIT, operation="script_generation")
    assert await can(ANN, "script_generation") == CanPerform(
        False, "operation_limit", CREDIT, 5 * CREDIT
    )
    with pytest.raises(BadMessageError, match="unknown operation"):
        await can(ANN, "voice_creatoin")


# --- Recall ----------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_a_session_merely_holds_is_not_in_the_way(
    cluster: Cluster, node: Node, elsewhere: bool
) -> None:
    await cluster.grant(10 * CREDIT)
    serving = await cluster.node() if elsewhere else node
    browser = serving.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await cluster.advance(30_000)
    before = await cluster.account()
    # It holds 65 s ahead from its first instant.
    assert before["balance"] - before["held"] == 10 * CREDIT - 65 * CREDIT // 60
    answer = await spent(node.money, "s1", 9 * CREDIT)
    assert answer.credits_micros == CREDIT // 2
    await cluster.settle()
    # It holds no further ahead than one does who has little left.
    assert (await cluster.account())["held"] <= 6 * CREDIT // 60
    # The session knows what it has left, and goes on to there.
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
    node.money.recall.wait_ms = 20
    browser = node.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await cluster.advance(30_000)
    answer = await node.money.spend(ANN, entry_id="s1", micros=19 * CREDIT // 2)
    assert isinstance(answer, Short)
    assert answer.credits_micros == 19 * CREDIT // 2
    assert 0 < answer.missing_micros <= 2 * CREDIT // 60
    await cluster.settle()
    rest = 19 * CREDIT // 2 - answer.missing_micros
    assert isinstance(await spent(node.money, "s2", rest), Spent)
    await cluster.advance(5_000)
    assert browser.last("stopped" if browser.all("stopped") else "session")
    await audited(cluster)


async def test_a_hold_is_not_stopped_by_what_a_session_holds_either(
    cluster: Cluster, node: Node
) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await cluster.advance(30_000)
    await held(node.money, "h1", 9 * CREDIT, ttl_ms=600_000)
    await cluster.settle()
    await cluster.advance(29_000)
    assert browser.all("limit_reached") == []
    await cluster.advance(1_000)
    assert len(browser.all("limit_reached")) == 1
    await cluster.advance(1_000)
    await node.money.void(TENANT, "h1")
    await cluster.settle()
    resumed = await browser.request("chat-1", Event.RESUME)
    assert resumed["state"] == "active"
    await audited(cluster)


# --- Holds -----------------------------------------------------------------------------


async def test_a_hold_is_posted_in_part(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    made = await held(node.money, "h1", 5 * CREDIT, operation="voice_creation")
    assert (made.state, made.repeated) == ("open", False)
    assert (made.available_micros, made.credits_micros) == (5 * CREDIT, 10 * CREDIT)
    assert made.expires_at == cluster.clock.now() + 60_000
    row = await cluster.records.hold(TENANT, "h1")
    assert row is not None
    assert row.state == "open"
    assert await node.money.post(TENANT, "h1", 6 * CREDIT) == Exceeds(5 * CREDIT)
    posted = await node.money.post(TENANT, "h1", 2 * CREDIT, {"tokens_used": 7})
    assert posted == Posted(
        "h1", "post:h1", 5 * CREDIT, 2 * CREDIT, 8 * CREDIT, 8 * CREDIT, repeated=False
    )
    row = await cluster.records.hold(TENANT, "h1")
    assert row is not None
    assert (row.state, row.posted_micros) == ("posted", 2 * CREDIT)
    entry = await cluster.records.entry(*ANN, "post:h1")
    assert entry is not None
    assert (entry.amount_micros, entry.metadata) == (-2 * CREDIT, {"tokens_used": 7})
    assert await node.money.void(TENANT, "h1") == HoldGone("posted")
    again = await node.money.post(TENANT, "h1", 3 * CREDIT)
    assert again == msgspec.structs.replace(posted, repeated=True)
    asked = await held(node.money, "h1", CREDIT)
    assert (asked.state, asked.amount_micros, asked.repeated) == ("posted", 5 * CREDIT, True)
    await audited(cluster)


async def test_a_hold_is_voided(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    await held(node.money, "h1", 5 * CREDIT, operation="script_generation")
    voided = await node.money.void(TENANT, "h1")
    assert voided == Voided("h1", 5 * CREDIT, 10 * CREDIT, 10 * CREDIT, repeated=False)
    assert await node.money.void(TENANT, "h1") == msgspec.structs.replace(voided, repeated=True)
    assert await node.money.post(TENANT, "h1") == HoldGone("voided")
    assert await node.money.post(TENANT, "never") == HoldGone(None)
    assert await node.money.void(TENANT, "never") == HoldGone(None)
    assert await cluster.records.operations_in_month(*ANN, date.fromisoformat(MAY)) == {}
    # All that was held is charged where nothing else is said.
    await held(node.money, "h2", 5 * CREDIT)
    posted = await node.money.post(TENANT, "h2")
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
    await node.money.figures(ANN)
    other = await cluster.node()

    async def make(money: Money) -> Any:
        match step:
            case "hold":
                return await held(money, "h1", 5 * CREDIT)
            case "post":
                return await money.post(TENANT, "h1", CREDIT, {"n": 1})
        return await money.void(TENANT, "h1")

    if step != "hold":
        await held(node.money, "h1", 5 * CREDIT)
    if where == "before Postgres":
        lose_postgres(node.money)
    else:
        lose_replies(node.money, step, before=where == "before Redis")
    with pytest.raises(ServiceError):
        await make(node.money)
    if is_flushed:
        await cluster.flush()
    answer = await make(other.money)
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
        await held(node.money, f"h{number}", CREDIT, ttl_ms=10_000 * (number + 1))
    other = await cluster.node()
    node.is_alive = False
    await node.stop()
    assert await other.money.expiry.expire_holds() == 0
    cluster.clock.now_ms += 20_000
    assert await other.money.expiry.expire_holds() == 2
    assert await other.money.expiry.expire_holds() == 0
    assert await other.money.post(TENANT, "h0") == HoldGone("expired")
    cluster.clock.now_ms += 10_000
    # Nobody has looked yet, and it is over all the same.
    assert await other.money.post(TENANT, "h2") == HoldGone("expired")
    assert await other.money.void(TENANT, "h1") == HoldGone("expired")
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
        await held(node.money, f"h{number}", CREDIT, ttl_ms=60_000)
    # Two processes whose clocks are a millisecond apart.
    cluster.clock.now_ms += 59_999
    other.money.clock = VirtualClock(cluster.clock.now_ms + 1)
    *answers, expired = await asyncio.gather(
        *(node.money.post(TENANT, f"h{number}") for number in range(40)),
        other.money.expiry.expire_holds(),
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
        await held(node.money, f"h{number}", 2 * CREDIT, ttl_ms=60_000)
    await node.money.void(TENANT, "h2")
    await cluster.flush()
    await cluster.redis.flushall()
    # What they hold is held, before anybody asks for them.
    short = await node.money.spend(ANN, entry_id="s1", micros=7 * CREDIT)
    assert short == Short(missing_micros=CREDIT, credits_micros=10 * CREDIT)
    posted = await node.money.post(TENANT, "h0", CREDIT)
    assert isinstance(posted, Posted)
    assert (posted.credits_micros, posted.available_micros) == (9 * CREDIT, 7 * CREDIT)
    assert await node.money.void(TENANT, "h2") == Voided(
        "h2", 2 * CREDIT, 9 * CREDIT, 7 * CREDIT, repeated=True
    )
    assert await node.money.expiry.expire_forgotten_holds() == 0
    cluster.clock.now_ms += 60_000 + limits.HOLD_OVERDUE_MS + 1
    assert await node.money.expiry.expire_holds() == 0
    assert await node.money.expiry.expire_forgotten_holds() == 1
    account = await cluster.account()
    assert (account["balance"], account["held"], account["live"]) == (9 * CREDIT, 0, 0)
    await audited(cluster)


async def test_a_hold_that_nobody_knows_is_not_looked_after(cluster: Cluster, node: Node) -> None:
    key = node.live.keys.holds(node.live.keys.partition(TENANT))
    await cluster.redis.zadd(key, {f"{TENANT}/ghost": 1})
    assert await node.money.expiry.expire_holds() == 0
    assert await cluster.redis.zcard(key) == 0


async def test_an_account_has_a_bounded_number_of_holds(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    await held(node.money, "h0", 1)
    key = node.live.keys.account(*ANN)
    await cluster.redis.hset(key, "holds", str(limits.HOLDS_PER_ACCOUNT_MAX))
    with pytest.raises(PeerError, match="too many open holds"):
        await node.money.hold(ANN, hold_id="h1", micros=1, ttl_ms=1_000)
    # The one that there is can be asked for again.
    assert (await held(node.money, "h0", 1)).repeated


# --- Grants ----------------------------------------------------------------------------


async def grant(
    node: Node, entry_id: str, micros: int, expires_at: int | None = None, priority: int = 100
) -> None:
    entry = EntryPosted(*ANN, entry_id, "grant", micros, node.clock.now())
    await node.money.enter(entry, priority, expires_at)


async def test_what_is_left_of_a_grant_is_lost_when_it_expires(
    cluster: Cluster, node: Node
) -> None:
    end = cluster.clock.now() + 3_600_000
    await grant(node, "g1", 5 * CREDIT, end)
    await grant(node, "g2", 5 * CREDIT)
    await spent(node.money, "s1", 2 * CREDIT)
    other = await cluster.node()
    late = end + limits.GRANT_EXPIRY_LATE_MS
    await cluster.flush()
    cluster.clock.now_ms = late
    assert await node.money.expiry.expire_grants() == 0
    cluster.clock.now_ms = late + 1
    expired = await asyncio.gather(
        node.money.expiry.expire_grants(), other.money.expiry.expire_grants()
    )
    assert sum(expired) == 1
    assert await node.money.expiry.expire_grants() == 0
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
    cluster.clock.now_ms += limits.GRANT_EXPIRY_LATE_MS + 10
    outbox = node.live.keys.outbox(node.live.keys.partition(TENANT))
    # Appended before the time was over; who knows what it used of the grant.
    waiting = now_ms + limits.GRANT_EXPIRY_LATE_MS
    await cluster.redis.xadd(outbox, {"r": b"[]"}, id=f"{waiting}-0")
    assert await node.money.expiry.expire_grants() == 0
    await cluster.redis.xdel(outbox, f"{waiting}-0")
    await cluster.redis.xadd(outbox, {"r": b"[]"}, id=f"{waiting + 1}-0")
    assert await node.money.expiry.expire_grants() == 1


async def test_a_grant_is_not_taken_from_under_a_session(cluster: Cluster, node: Node) -> None:
    await grant(node, "g1", 2 * CREDIT, cluster.clock.now() + 1_000)
    browser = node.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await held(node.money, "h1", CREDIT // 4, ttl_ms=3_600_000)
    cluster.clock.now_ms += 1
    before = await cluster.account()
    # The end of the grant, as seen by a process that is ahead of the others.
    node.money.clock = VirtualClock(cluster.clock.now_ms + limits.GRANT_EXPIRY_LATE_MS + 1_000)
    await cluster.flush()
    assert await node.money.expiry.expire_grants() == 1
    account = await cluster.account()
    assert account["balance"] == account["held"] == before["held"] > CREDIT
    assert await node.money.expiry.expire_grants() == 0
    node.money.clock = cluster.clock
    await cluster.advance(30_000)
    stopped = await browser.request("chat-1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 30_001
    await node.money.void(TENANT, "h1")
    await cluster.flush()
    cluster.clock.now_ms += limits.GRANT_EXPIRY_LATE_MS
    assert await node.money.expiry.expire_grants() == 1
    assert (await cluster.account())["balance"] == 0
    await audited(cluster)


async def test_packages_and_allotments(cluster: Cluster, node: Node) -> None:
    node.money.rates = msgspec.structs.replace(
        CARD,
        packages={"starter": Package("Starter", 50 * CREDIT, "9.90 EUR", 30)},
        allotments={"free": 7 * CREDIT},
    )
    for _ in range(2):
        await node.money.grant_package(ANN, "starter", entry_id="p1")
        await node.money.grant_allotment(ANN)
    allotment, package = await cluster.records.grants(*ANN, 10)
    assert (package.name, package.amount_micros) == ("package:starter", 50 * CREDIT)
    assert package.expires_at == cluster.clock.now() + 30 * 86_400_000
    assert (allotment.name, allotment.amount_micros) == ("allotment:free:2026-05", 7 * CREDIT)
    # It burns first, for it expires first: with the month.
    assert allotment.expires_at == 1_780_272_000_000
    assert (await cluster.account()) == {}
    with pytest.raises(BadMessageError, match="unknown package"):
        await node.money.grant_package(ANN, "stater", entry_id="p2")
    node.money.rates = parse_rate_card({})
    assert await node.money.grant_allotment(ANN) is None


# --- Adjustments -----------------------------------------------------------------------


async def test_an_adjustment_reaches_a_live_session_both_ways(cluster: Cluster, node: Node) -> None:
    await cluster.records.put_organization("org:acme", "acme", monthly_hours_limit=0.05)
    other = await cluster.node()
    browser = node.browser()
    await browser.start("rec-1", RECORDING, org_id="acme")
    await cluster.advance(130_000)
    assert browser.all("limit_reached") == []
    await cluster.flush()
    adjusted = await other.money.adjust_minutes(
        "org:acme", "ann", entry_id="a1", minutes=-1, reason="silence"
    )
    assert (adjusted.month, adjusted.minutes, adjusted.repeated) == (MAY, -1, False)
    again = await other.money.adjust_minutes(
        "org:acme", "ann", entry_id="a1", minutes=-9, reason="silence"
    )
    assert (again.minutes, again.repeated) == (-1, True)
    await cluster.settle()
    await cluster.advance(60_000)
    assert browser.all("limit_reached") == []
    await other.money.adjust_minutes(
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
        await node.money.adjust_minutes(
            "org:acme", "ann", entry_id="a3", minutes=-99, reason="too much"
        )


async def test_an_adjustment_whose_process_died_is_applied_once(
    cluster: Cluster, node: Node
) -> None:
    await cluster.records.put_organization("org:acme", "acme", monthly_hours_limit=10)
    member = node.live.keys.member("org:acme", "ann")
    await node.loader.months("org:acme", "ann")
    lose_replies(node.money, "adjust", before=True)
    await node.money.adjust_minutes("org:acme", "ann", entry_id="a1", minutes=5, reason="r")
    assert await cluster.redis.hget(member, f"used:{MAY}") == b"0"
    # Whoever loads the month now has it in the figures, and it is not added again.
    await cluster.redis.delete(member)
    await node.loader.months("org:acme", "ann")
    assert await cluster.redis.hget(member, f"used:{MAY}") == b"5"
    assert await node.money.apply_adjustments(age_ms=1) == 0
    assert await node.money.apply_adjustments() == 1
    assert await node.money.apply_adjustments() == 0
    organization = node.live.keys.organization("org:acme")
    for key in (member, organization):
        assert await cluster.redis.hget(key, f"used:{MAY}") == b"5"
