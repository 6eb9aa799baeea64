"""The work of many sessions at the end of their organisation's month.

Each session gets its last minute, asks the others for minutes that they have not begun, and looks
whether they have answered. If each asked all others, the work would be too much for thousands.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from protocol import limits
from protocol.metering.meter import Meter
from protocol.metering.states import Phase
from protocol.metering.terms import MINUTE_MS
from server import limits as server_limits
from server.counters.plans import apply_organization
from server.runtime.turns import Turns
from server.sessions.holder_looks import HolderLooks
from storage.redis.live import Live, LiveError
from tests.simulation.cluster import Browser, Cluster
from tests.simulation.people import RATES

RECORDING = RATES.kinds["recording"]
TENANT = "org:acme"
SESSIONS = 120


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the sessions read and recalled, and the steps requested."""
    made: Counter[str] = Counter()
    sessions, recall, ask = Live.sessions, Meter.recall, Meter._ask

    async def read(self: Live, tenant: str, names: Any) -> Any:
        made["read"] += len(names)
        return await sessions(self, tenant, names)

    def recalled(self: Meter, now_ms: int, *, minutes: bool = False) -> bool:
        made["recalled"] += 1
        return recall(self, now_ms, minutes=minutes)

    def asked(self: Meter, *step: Any) -> None:
        made["steps"] += 1
        ask(self, *step)

    monkeypatch.setattr(Live, "sessions", read)
    monkeypatch.setattr(Meter, "recall", recalled)
    monkeypatch.setattr(Meter, "_ask", asked)
    return made


async def allow(cluster: Cluster, minutes: int) -> None:
    """The organisation's month is limited."""
    await cluster.records.put_organization(TENANT, "acme", monthly_hours_limit=minutes / 60)
    await apply_organization(cluster.nodes[0].live, cluster.records, TENANT)
    await cluster.settle()


async def begin(cluster: Cluster, apart_ms: int) -> list[Browser]:
    """Starts ``SESSIONS`` sessions of as many members on two processes alternately.

    They start one after the other.
    """
    nodes = [await cluster.node(), await cluster.node()]
    await allow(cluster, 100_000)
    browsers = []
    for number in range(SESSIONS):
        browser = nodes[number % 2].browser(f"browser-{number}")
        await browser.start(f"s{number}", RECORDING, user_id=f"user-{number}", org_id="acme")
        browsers.append(browser)
        await cluster.advance(apart_ms)
    return browsers


async def test_a_bounded_number_of_sessions_is_read_for_answers(
    cluster: Cluster, work: Counter[str]
) -> None:
    await begin(cluster, 2)
    await cluster.advance(30_000)
    await allow(cluster, SESSIONS + 1)
    work.clear()
    await cluster.advance(MINUTE_MS // 2)
    # They ask within as many milliseconds as they began in; both processes read the other's.
    spent_ms = SESSIONS * 2
    assert 0 < work["read"] <= 2 * (4 * spent_ms + SESSIONS)


async def test_of_many_that_lack_minutes_together_one_recall_is_heard(
    cluster: Cluster, work: Counter[str]
) -> None:
    """When many sessions lack minutes together, holders hear one recall.

    Each session gets its last minute at the same instant, and sends a recall to all others.
    """
    await begin(cluster, MINUTE_MS // SESSIONS)
    await cluster.advance(MINUTE_MS)
    work.clear()
    await allow(cluster, int(2.6 * SESSIONS))
    await cluster.advance(1_000)
    assert SESSIONS <= work["recalled"] <= 4 * SESSIONS
    assert work["steps"] <= 4 * SESSIONS


# --- Looks by themselves --------------------------------------------------------------


class Looks:
    """Looks over sessions that lack minutes of their organisation's month."""

    def __init__(self, sessions: int) -> None:
        self.now_ms = 0
        self.told: list[tuple[str, bool]] = []
        self.deadlines: list[tuple[int, Any]] = []
        self.turns = Turns()
        self.tasks: list[asyncio.Future[None]] = []
        self.active = sessions
        self.passes = 0
        self.locals = [self._local(f"s{number}") for number in range(sessions)]
        table: Any = SimpleNamespace(
            live=None,
            clock=SimpleNamespace(now=lambda: self.now_ms),
            timers=SimpleNamespace(deadline=lambda at, act, _: self.deadlines.append((at, act))),
            turns=self.turns,
            local_sessions={local.key: local for local in self.locals},
            local_sessions_of=self._local_sessions_of,
            run=lambda work: self.tasks.append(asyncio.ensure_future(work)),
        )
        self.table = table
        self.looks = HolderLooks(table)

    def _local(self, key: str) -> Any:
        identity = SimpleNamespace(
            tenant="org:acme", account_id="ann", user_id=key,
            terms=SimpleNamespace(counts_minutes=True),
        )  # fmt: skip
        meter = SimpleNamespace(
            shared_limit="org_minutes",
            session=SimpleNamespace(
                identity=identity, standing=SimpleNamespace(phase=Phase.ACTIVE)
            ),
            counters=SimpleNamespace(
                org=SimpleNamespace(over=lambda _: SimpleNamespace(active=self.active))
            ),
            org=None,
            know_holders=lambda _, are_silent: self.told.append((key, are_silent)),
        )
        return SimpleNamespace(meter=meter, key=key, account=None, drain=lambda: None)

    def _local_sessions_of(self, _: str) -> list[Any]:
        self.passes += 1
        return list(self.locals)

    async def pass_until(self, at: int) -> None:
        """The deadlines up to ``at`` fire, one after the other."""
        while True:
            await asyncio.gather(*self.tasks)
            due = [one for one in self.deadlines if one[0] <= at]
            if not due:
                break
            first = min(due, key=lambda one: one[0])
            self.deadlines.remove(first)
            self.now_ms = first[0]
            first[1](first[0])
        self.now_ms = at


async def test_answer_reaches_session_after_next_look_was_due() -> None:
    """An answer reaches its session after the next look was due.

    Forty other customers have work, so the turn comes after the look was forgotten.
    """

    def work() -> Iterator[None]:
        for _ in range(3):
            yield

    looks = Looks(1)
    looks.looks.ask(looks.locals[0])
    for number in range(40):
        looks.turns.run(number, work())
    await looks.pass_until(1_000)
    await looks.turns.idle()
    assert looks.told == [("s0", False)]


async def test_all_local_sessions_are_counted_a_bounded_number_of_times() -> None:
    """Looks count all local sessions a bounded number of times.

    A look that finds no session elsewhere reads none, but counts all local ones.
    """
    looks = Looks(1_000)
    for at, local in enumerate(looks.locals):
        looks.looks.ask(local)
        await looks.pass_until(at)
    await looks.pass_until(2_000)
    await looks.turns.idle()
    assert len(looks.told) == 1_000
    assert looks.passes <= 1_000 // server_limits.ACCOUNT_LOOK_PAUSE_MS + 2


async def test_look_that_failed_is_repeated_while_its_session_waits() -> None:
    looks = Looks(2)
    looks.active = 3  # one of them elsewhere
    reads = 0

    async def sessions_of_tenant(*_: object, **__: object) -> AsyncIterator[list[Any]]:
        nonlocal reads
        reads += 1
        if reads < 3:
            raise LiveError("away")
        yield []

    looks.table.live = SimpleNamespace(sessions_of_tenant=sessions_of_tenant)
    for local in looks.locals:
        looks.looks.ask(local)
    await looks.pass_until(limits.RECALL_WAIT_MS)
    assert (reads, looks.told) == (2, [])
    del looks.table.local_sessions["s0"]
    await looks.pass_until(2 * limits.RECALL_WAIT_MS)
    await looks.turns.idle()
    assert (reads, looks.told) == (3, [("s1", False)])
    await looks.pass_until(9 * limits.RECALL_WAIT_MS)
    assert reads == 3
