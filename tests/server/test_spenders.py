"""Many clients spend from one account on two processes, beside live sessions.

Spends, holds and claims meet in one Redis and one Postgres over many connections, in whatever order
those take them; the account is topped up meanwhile. Only the time of the sessions is made up.
"""

import asyncio
import random
from collections import Counter

import msgspec
import pytest

from protocol import limits
from protocol.metering.states import Event
from server.credits.credit_ledger import CreditLedger
from server.credits.outcomes import Held, Posted, Short, Spent, Voided
from storage.audit import audit_live, audit_record
from storage.redis.figures import AccountFigures
from storage.redis.spending import AccountName
from tests.simulation.cluster import Browser, Cluster, Node
from tests.simulation.test_promises import chat

CREDIT = 1_000_000
ANN = AccountName("user:ann", "ann")
SPENDERS = 200
SESSIONS = 20
TURNS = 5
NEEDED_MICROS = SESSIONS * 6 * CREDIT // 60
"""What sessions may keep when little is left: a five-second grant and one increment."""


class SpendTally(msgspec.Struct):
    """The outcomes of all requests."""

    spent_micros: int = 0
    answers: Counter[str] = msgspec.field(default_factory=Counter)
    refused_falsely: list[str] = msgspec.field(default_factory=list)


class Spender:
    """Asks for more than there is: spends, repeats, holds, posts, voids."""

    def __init__(self, number: int, ledgers: list[CreditLedger], tally: SpendTally) -> None:
        self.number = number
        self.ledgers = ledgers
        self.tally = tally
        self.random = random.Random(number)

    async def run(self) -> None:
        for turn in range(TURNS):
            micros = self.random.randrange(1, 3 * CREDIT // 2)
            name = f"{self.number}.{turn}"
            if self.random.random() < 0.7:
                await self.spend(f"spend-{name}", micros)
            else:
                await self.hold(f"hold-{name}", micros)

    @property
    def ledger(self) -> CreditLedger:
        return self.random.choice(self.ledgers)

    async def spend(self, entry_id: str, micros: int) -> None:
        # Now and then both processes are asked at once, with one id.
        asked = [self.ledger] if self.random.random() < 0.8 else self.ledgers
        answers = await asyncio.gather(
            *(ledger.spend(ANN, entry_id=entry_id, micros=micros) for ledger in asked)
        )
        taken = [answer for answer in answers if isinstance(answer, Spent)]
        self.tally.spent_micros += micros * bool(taken)
        assert sum(not answer.repeated for answer in taken) == bool(taken)
        for answer in answers:
            self.judge(answer, micros)

    async def hold(self, hold_id: str, micros: int) -> None:
        answer = await self.ledger.hold(ANN, hold_id=hold_id, micros=micros, ttl_ms=3_600_000)
        self.judge(answer, micros)
        if not isinstance(answer, Held):
            return
        charge = self.random.randrange(0, micros + 1)
        both = [
            self.ledger.post(ANN.tenant, hold_id, charge),
            self.ledger.void(ANN.tenant, hold_id),
        ]
        self.random.shuffle(both)  # the first request usually wins
        (done,) = [
            answer for answer in await asyncio.gather(*both) if isinstance(answer, Posted | Voided)
        ]
        self.tally.spent_micros += charge * isinstance(done, Posted)
        self.tally.answers[type(done).__name__] += 1

    def judge(self, answer: object, micros: int) -> None:
        self.tally.answers[type(answer).__name__] += 1
        if isinstance(answer, Short):
            assert answer.missing_micros > 0
            if micros - answer.missing_micros > answer.credits_micros:
                self.tally.refused_falsely.append(f"{micros} {answer}")


class LowestBalance(msgspec.Struct):
    """The lowest balance of the account in any answer of Redis."""

    balance_micros: int = limits.BALANCE_MICROS_MAX
    available_micros: int = limits.BALANCE_MICROS_MAX
    answers: int = 0

    def see(self, figures: AccountFigures | None) -> None:
        if figures is not None:
            self.answers += 1
            self.balance_micros = min(self.balance_micros, figures.balance_micros)
            self.available_micros = min(self.available_micros, figures.available_micros)


def watch(
    ledger: CreditLedger, watched: LowestBalance, tally: SpendTally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watches every answer, and checks that each refusal was right."""
    decide, short, until = ledger.decide, ledger.short, ledger.recall.until

    async def seen(*arguments: object) -> object:
        answer = await decide(*arguments)  # type: ignore[arg-type]
        watched.see(answer.figures)
        return answer

    def refused(answer: object, micros: int) -> Short:
        made = short(answer, micros)  # type: ignore[arg-type]
        figures = answer.figures  # type: ignore[attr-defined]
        # All that is left, except open holds and what the sessions need to run on.
        spendable = made.credits_micros - figures.reserved_micros - NEEDED_MICROS
        if micros <= spendable:
            tally.refused_falsely.append(f"{micros} of {spendable}: {made}")
        return made

    async def recalled(*arguments: object) -> object:
        answer = await until(*arguments)  # type: ignore[arg-type]
        tally.answers["recalled"] += answer.status == "ok"
        return answer

    monkeypatch.setattr(ledger.recall, "until", recalled)
    monkeypatch.setattr(ledger, "decide", seen)
    monkeypatch.setattr(ledger, "short", refused)


async def burn(
    cluster: Cluster, browsers: list[Browser], spending: "asyncio.Future[list[None]]"
) -> int:
    """Passes time and tops up while clients spend; returns the money in."""
    came_in = 0
    while not spending.done():
        await cluster.advance(1_000)
        # The flusher writes the same records as the processes do themselves.
        await cluster.flush()
        if came_in < 300 * CREDIT:
            await cluster.grant(15 * CREDIT)
            came_in += 15 * CREDIT
    await cluster.advance(60_000)
    for number, browser in enumerate(browsers):
        if not browser.all("stopped"):
            await browser.request(f"chat-{number}", Event.STOP)
    return came_in


@pytest.mark.usefixtures("patience")
async def test_two_hundred_spend_while_twenty_burn(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await cluster.node()
    nodes, tally, watched = [node, other], SpendTally(), LowestBalance()
    await cluster.grant(150 * CREDIT)
    browsers = []
    for number in range(SESSIONS):
        browser = nodes[number % 2].browser(f"browser-{number}")
        await browser.start(f"chat-{number}", chat(free_ms=0))
        browsers.append(browser)
    for one in nodes:
        watch(one.ledger, watched, tally, monkeypatch)
        # Everything awaited here comes eventually: the test does not depend on speed.
        one.ledger.recall.wait_ms = 1_000
    spenders = [Spender(number, [one.ledger for one in nodes], tally) for number in range(SPENDERS)]
    spending = asyncio.gather(*(spender.run() for spender in spenders))
    came_in = 150 * CREDIT + await burn(cluster, browsers, spending)
    await spending

    assert tally.refused_falsely == []
    assert watched.answers > SPENDERS
    assert watched.balance_micros >= 0
    assert watched.available_micros >= 0
    receipts = [browser.last("stopped")["receipt"] for browser in browsers]
    burnt = sum(round(float(receipt["credits"]) * CREDIT) for receipt in receipts)
    account = await cluster.account()
    assert account["balance"] == came_in - tally.spent_micros - burnt
    assert (account["held"], account["reserved"], account["live"]) == (0, 0, 0)
    kinds = ("Spent", "Short", "Held", "Posted", "Voided", "recalled")
    assert min(tally.answers[kind] for kind in kinds) > 0

    # Ledger and Redis agree, before everything is flushed and after.
    for _ in range(2):
        assert await audit_record(cluster.records) == ()
        assert (await audit_live(node.live, cluster.records)).findings == ()
        await cluster.flush()
    loaded = await cluster.records.load_account(*ANN)
    assert loaded.balance_micros == account["balance"]
