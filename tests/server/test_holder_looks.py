"""The work of many sessions at the end of their organisation's month.

Each session gets its last minute, asks the others for minutes that they have not begun, and looks
whether they have answered. If each asked all others, the work would be too much for thousands.
"""

from collections import Counter
from typing import Any

import pytest

from protocol.metering.meter import Meter
from protocol.metering.terms import MINUTE_MS
from server.counters.plans import apply_organization
from storage.redis.live import Live
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
    """Sessions of as many members, on two processes in turn, one after the other."""
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
    """Each session gets its last minute at the same instant, and sends a recall to all others."""
    await begin(cluster, MINUTE_MS // SESSIONS)
    await cluster.advance(MINUTE_MS)
    work.clear()
    await allow(cluster, int(2.6 * SESSIONS))
    await cluster.advance(1_000)
    assert SESSIONS <= work["recalled"] <= 4 * SESSIONS
    assert work["steps"] <= 4 * SESSIONS
