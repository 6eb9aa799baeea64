"""After any sequence of operations and failures, all accounts add up."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.metering.records import EntryPosted
from protocol.metering.states import Event
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.credits.credit_ledger import CreditLedger
from server.credits.outcomes import Held
from storage.audit import audit_live, audit_record
from storage.postgres.records import UnavailableError
from storage.redis.live import LiveError
from storage.redis.spending import AccountName
from tests.simulation.cluster import Browser, Cluster, Node
from tests.simulation.test_promises import chat

CREDIT = 1_000_000
STEPS = 60


class LedgerSequence:
    """The operations of one seed on three accounts and two processes."""

    def __init__(self, cluster: Cluster, nodes: list[Node], seed: int) -> None:
        self.cluster = cluster
        self.nodes = nodes
        self.random = random.Random(seed)
        self.seed = seed
        self.number = 0
        self.holds: list[tuple[AccountName, str]] = []
        self.browsers: list[tuple[Browser, str]] = []

    @property
    def ledger(self) -> CreditLedger:
        return self.random.choice(self.nodes).ledger

    @property
    def account(self) -> AccountName:
        name = self.random.choice(("ann", "ben", "cleo"))
        return AccountName(f"user:{name}", name)

    def name(self, what: str) -> str:
        self.number += 1
        return f"{what}-{self.number}"

    def amount(self) -> int:
        return self.random.choice((0, 1, CREDIT // 3, CREDIT, 4 * CREDIT))

    async def grant(self) -> None:
        account = self.account
        ends = (None, self.cluster.clock.now() + self.random.randrange(1, 200_000))
        entry = EntryPosted(
            *account, self.name("grant"), "grant", self.amount() + 1, self.cluster.clock.now()
        )
        await self.ledger.enter(entry, self.random.randrange(3), self.random.choice(ends))

    async def correct(self) -> None:
        entry = EntryPosted(
            *self.account, self.name("adjust"), "adjust", self.random.randrange(-9, 9), 1
        )
        await self.ledger.enter(entry)

    async def spend(self) -> None:
        account, entry_id, micros = self.account, self.name("spend"), self.amount()
        operation = self.random.choice((None, "script_generation", "chat_refinement"))
        succeeded = self.random.random() < 0.9
        for _ in range(self.random.choice((1, 1, 2))):
            await self.ledger.spend(
                account,
                entry_id=entry_id,
                micros=micros,
                operation=operation,
                succeeded=succeeded,
            )

    async def hold(self) -> None:
        account, hold_id = self.account, self.name("hold")
        self.holds.append((account, hold_id))
        answer = await self.ledger.hold(
            account,
            hold_id=hold_id,
            micros=self.amount(),
            ttl_ms=self.random.choice((1_000, 60_000, server_limits.HOLD_MS_MAX)),
            operation=self.random.choice((None, "voice_creation")),
        )
        if not isinstance(answer, Held):
            self.holds.pop()

    async def end_hold(self) -> None:
        if self.holds:
            account, hold_id = self.random.choice(self.holds)
            works: list[Awaitable[object]] = [
                self.ledger.post(
                    account.tenant, hold_id, self.random.choice((0, 1, CREDIT, 5 * CREDIT))
                ),
                self.ledger.void(account.tenant, hold_id),
                self.ledger.expire_hold(account.tenant, hold_id),
            ]
            self.random.shuffle(works)
            await asyncio.gather(*works)

    async def expire(self) -> None:
        await self.ledger.expiry.expire_holds()
        await self.ledger.expiry.expire_forgotten_holds()
        await self.ledger.expiry.expire_grants()

    async def start(self) -> None:
        browser, session_id = self.random.choice(self.nodes).browser(), self.name("chat")
        name = self.account.account_id
        await browser.start(session_id, chat(free_ms=5_000), user_id=name)
        self.browsers.append((browser, session_id))

    async def stop(self) -> None:
        if self.browsers:
            browser, session_id = self.browsers.pop()
            if session_id in browser.local_sessions:
                await browser.request(session_id, Event.STOP)

    async def pass_time(self) -> None:
        await self.cluster.advance(self.random.choice((100, 7_000, 61_000, 130_000)))

    async def flush(self) -> None:
        await self.cluster.flush()

    async def break_off(self) -> None:
        """Makes the next step fail: before Redis, after it, or before Postgres."""
        ledger = self.ledger
        broken = self.random.choice((break_script, break_writer))
        undo = broken(ledger, self.random)
        work = self.random.choice((self.spend, self.hold, self.end_hold))
        try:
            await work()
        finally:
            undo()

    async def run(self) -> None:
        works: list[Callable[[], Awaitable[None]]] = [
            self.grant, self.grant, self.correct, self.spend, self.spend, self.spend, self.hold,
            self.hold, self.end_hold, self.expire, self.start, self.stop, self.pass_time,
            self.flush, self.break_off, self.break_off,
        ]  # fmt: skip
        for _ in range(STEPS):
            with contextlib.suppress(ServiceError):
                await self.random.choice(works)()
            await self.cluster.settle()
            await self.check()

    async def check(self) -> None:
        found = await audit_live(self.nodes[0].live, self.cluster.records)
        assert (found.findings, found.restless) == ((), 0)
        assert await audit_record(self.cluster.records) == ()


def break_script(ledger: CreditLedger, dice: random.Random) -> Callable[[], None]:
    """A script of one process gets no answer, done or not."""
    spending: Any = ledger.spending
    name = dice.choice(("_spend", "_hold", "_post", "_void"))
    done, real = dice.random() < 0.7, getattr(spending, name)

    async def call(keys: Any, arguments: Any) -> Any:
        if done:
            await real(keys, arguments)
        raise LiveError("no answer")

    setattr(spending, name, call)
    return lambda: setattr(spending, name, real)


def break_writer(ledger: CreditLedger, _: random.Random) -> Callable[[], None]:
    """One process cannot write to Postgres."""
    writer: Any = ledger._writer
    real = writer.write

    async def write(_: Any) -> None:
        raise UnavailableError("no answer")

    writer.write = write
    return lambda: setattr(writer, "write", real)


@pytest.mark.parametrize("seed", range(8))
async def test_everything_adds_up_after_every_step(cluster: Cluster, seed: int) -> None:
    nodes = [await cluster.node(), await cluster.node()]
    for node in nodes:
        node.ledger.recall.wait_ms = 20
    sequence = LedgerSequence(cluster, nodes, seed)
    await sequence.run()
    for browser, session_id in sequence.browsers:
        if session_id in browser.local_sessions:
            await browser.request(session_id, Event.STOP)
    await cluster.flush()
    cluster.clock.now_ms += server_limits.HOLD_MS_MAX + server_limits.GRANT_EXPIRY_LATE_MS
    await sequence.expire()
    await sequence.expire()
    await sequence.check()
    for name in ("ann", "ben", "cleo"):
        account = await cluster.account(name)
        figures = [account.get(field, 0) for field in ("held", "reserved", "live")]
        assert figures == [0, 0, 0], f"seed {seed}"
