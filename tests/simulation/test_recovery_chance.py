"""Losses of Redis by chance, among everything else that may happen."""

import contextlib
import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.metering.states import Event
from protocol.metering.terms import Terms
from protocol.wire.errors import RefusedError, ServiceError
from server.sessions.pending_requests import PendingRequest
from storage.postgres.database import UnavailableError
from storage.postgres.records import Records
from storage.redis.live import LiveError
from tests.simulation.cluster import Browser, Cluster, Node
from tests.simulation.people import CREDIT, terms
from tests.simulation.test_recovery import LESSON, Copy, audited
from tests.simulation.test_recovery_races import ANN, CHAT, KEYS, away

PAIR = terms("pair", free_ms=45_000, free_scope="pair")
SEEDS = range(int(os.environ.get("SEED_FROM", "1")), int(os.environ.get("SEED_TO", "6")))


@pytest.fixture
async def second(cluster: Cluster, node: Node) -> Node:
    return await cluster.node()


class RecoveryChance:
    """Two processes with sessions, spends and holds, and a lossy Redis."""

    def __init__(self, cluster: Cluster, nodes: list[Node], seed: int) -> None:
        self.cluster = cluster
        self.nodes = nodes
        self.random = random.Random(seed)
        self.replica: Copy | None = None
        self.browsers: dict[str, list[Browser]] = {}
        self.holds: list[str] = []
        self.names = itertools.count()

    async def run(self, steps: int) -> None:
        """Runs this many actions, then waits until nothing is under way."""
        work = (
            [self.start] * 3 + [self.join, self.change, self.change, self.stop, self.spend]
            + [self.hold, self.end_hold, self.grant, self.flush, self.copy]
            + [self.wait] * 4 + [self.empty, self.promote, self.beat, self.beat]
        )  # fmt: skip
        for _ in range(steps):
            step = self.random.choice(work)
            with self.trouble(), contextlib.suppress(ServiceError, RefusedError, UnavailableError):
                await step()
                await self.cluster.settle()
            await self.cluster.settle()
        await self.rest()

    @contextlib.contextmanager
    def trouble(self) -> Iterator[None]:
        """One action may meet an absent Postgres or a lost answer.

        The answer is one of Redis that a process misses.
        """
        with pytest.MonkeyPatch.context() as patched:
            if self.random.random() < 0.1:
                patched.setattr(Records, "_run", away)
            if self.random.random() < 0.1:
                deaf = self.random.choice(self.nodes).live
                commit = deaf.commit

                async def unheard(*asked: Any) -> Any:
                    await commit(*asked)
                    raise LiveError("the answer was lost")

                patched.setattr(deaf, "commit", unheard)
            yield

    async def rest(self) -> None:
        """Processes recover from all losses, and all sessions are stopped."""
        for _ in range(6):
            await self.cluster.recovered()
            await self.cluster.advance(3_000)
        for session_id in list(self.browsers):
            await self.stop(session_id)
        await self.cluster.advance(40_000)

    async def start(self) -> None:
        """A client starts a session."""
        session_id = f"s{next(self.names)}"
        browser = self.random.choice(self.nodes).browser(session_id)
        kind = self.random.choice([CHAT, LESSON, PAIR])
        self.browsers[session_id] = [browser]
        await self.open(browser, session_id, kind)

    async def open(self, browser: Browser, session_id: str, kind: Terms) -> None:
        """A socket starts or joins a session."""
        shared = {"counterpart_id": "bob", "free_key": "ann/pair/pair/bob"} if kind is PAIR else {}
        with contextlib.suppress(AssertionError):  # Redis has lost a session that is served here
            await browser.start(session_id, kind, **shared)  # type: ignore[arg-type]

    async def join(self) -> None:
        """A client opens a session on another process too."""
        session_id = self.session()
        if session_id is None:
            return
        local = self.browsers[session_id][0].local_sessions.get(session_id)
        if local is None:
            return
        browser = self.random.choice(self.nodes).browser(session_id)
        terms_ = local.meter.session.identity.terms
        kind = next(one for one in (CHAT, LESSON, PAIR) if one.kind == terms_.kind)
        await self.open(browser, session_id, kind)
        self.browsers[session_id].append(browser)

    def session(self) -> str | None:
        """A session, chosen by chance."""
        return self.random.choice(list(self.browsers)) if self.browsers else None

    async def request(self, session_id: str, event: Event) -> None:
        """One of the session's sockets sends a request."""
        browser = self.random.choice(self.browsers[session_id])
        local = browser.local_sessions.get(session_id)
        if local is not None:
            browser._pong(self.cluster.clock.now())
            browser.node.registry.request(local, event, PendingRequest(browser, 2))
            await self.cluster.settle()

    async def change(self) -> None:
        """Pauses or resumes a session."""
        session_id = self.session()
        if session_id is not None:
            await self.request(session_id, self.random.choice([Event.PAUSE, Event.RESUME]))

    async def stop(self, session_id: str | None = None) -> None:
        """Stops a session."""
        session_id = session_id or self.session()
        if session_id is not None:
            for _ in range(4):
                await self.request(session_id, Event.STOP)
            for browser in self.browsers.pop(session_id):
                await browser.close()

    async def spend(self) -> None:
        """Spends credits."""
        node, name = self.random.choice(self.nodes), f"e{next(self.names)}"
        await node.ledger.spend(ANN, entry_id=name, micros=self.random.randrange(1, CREDIT))

    async def hold(self) -> None:
        """Holds credits."""
        node, name = self.random.choice(self.nodes), f"h{next(self.names)}"
        micros = self.random.randrange(2, CREDIT)
        await node.ledger.hold(ANN, hold_id=name, micros=micros, ttl_ms=86_400_000)
        self.holds.append(name)

    async def end_hold(self) -> None:
        """Posts or voids a hold."""
        if self.holds:
            node, name = self.random.choice(self.nodes), self.random.choice(self.holds)
            if self.random.random() < 0.5:
                await node.ledger.post(ANN.tenant, name, 1)
            else:
                await node.ledger.void(ANN.tenant, name)

    async def grant(self) -> None:
        """Grants credits."""
        await self.cluster.grant(self.random.randrange(1, CREDIT))

    async def flush(self) -> None:
        """Flushes the outboxes."""
        await self.cluster.flush()

    async def wait(self) -> None:
        """Time passes, with the heartbeats of at least a few seconds."""
        await self.cluster.advance(self.random.choice([700, 5_000, 31_000, 61_000]))

    async def beat(self) -> None:
        """One process checks for a loss, or all do and recover."""
        if self.random.random() < 0.5:
            with contextlib.suppress(LiveError):
                await self.random.choice(self.nodes).recovery.look()
        else:
            await self.cluster.recovered()

    async def copy(self) -> None:
        """A replica copies everything up to now."""
        self.replica = await Copy.of(self.cluster.redis)

    async def empty(self) -> None:
        """Redis comes back empty."""
        await self.cluster.lose()
        self.replica = None

    async def promote(self) -> None:
        """The replica takes over; every process's connection was down."""
        if self.replica is not None:
            await self.replica.promote()
            for node in self.nodes:
                node.recovery.suspect_loss()


async def months(cluster: Cluster) -> None:
    """The months in Redis agree with the record."""
    for key in (KEYS.member(ANN.tenant, "ann"), KEYS.organization(ANN.tenant)):
        found: Any = await cluster.redis.hgetall(key)
        if found:
            used = int(found.get(b"used:2026-05-01", 0)) + int(found.get(b"used:2026-06-01", 0))
            rows = await cluster.records._run(
                lambda connection: connection.fetchval(
                    "SELECT count(*) FROM usage_tracking WHERE counts"
                )
            )
            assert used == rows
            assert {int(value) for name, value in found.items() if name[:5] == b"held:"} <= {0}
            assert int(found[b"active"]) == 0


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_by_chance(
    cluster: Cluster, node: Node, second: Node, seed: int
) -> None:
    await cluster.grant(500 * CREDIT)
    await cluster.beat()
    await RecoveryChance(cluster, [node, second], seed).run(40)
    await audited(cluster)
    await months(cluster)
    free: Any = await cluster.redis.hget(KEYS.free(ANN.tenant, "ann/pair/pair/bob"), "used")
    had = await cluster.records._run(
        lambda connection: connection.fetchval("SELECT sum(free_ms) FROM usage_tracking")
    )
    assert int(free or 0) == int(had or 0) or free is None
