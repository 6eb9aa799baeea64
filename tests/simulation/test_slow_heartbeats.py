"""Living processes whose Redis answers late do not count as dead."""

import asyncio
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from protocol import limits
from server.recovery.sweeper import Sweeper
from storage.redis.live import Live
from tests.simulation.driver import Laboratory
from tests.simulation.redis_links import VirtualRedis
from tests.simulation.traces import act, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """When processes proved their life to a slow Redis, in seconds."""
    sent: dict[str, list[float]] = defaultdict(list)
    real = Live.beat

    async def beat(live: Live, *arguments: Any) -> Any:
        assert isinstance(live.redis, VirtualRedis)
        if live.redis.line.delays:
            sent[live.node].append(asyncio.get_running_loop().time())
        return await real(live, *arguments)

    monkeypatch.setattr(Live, "beat", beat)
    return sent


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The processes that others took for dead."""
    found: list[str] = []

    async def sweep(_: Sweeper, node: str, alive_at: int) -> bool:
        found.append(node)
        return False

    monkeypatch.setattr(Sweeper, "sweep", sweep)
    return found


@pytest.mark.parametrize(
    "delays", [[1_400], [1_490], [1_400, 300], [1_600], [5_000], [5_000, 1_400, 300]], ids=str
)
def test_living_process_is_not_swept(
    lab: Laboratory, delays: list[int], beats: dict[str, list[float]], swept: list[str]
) -> None:
    run(
        lab,
        pay("cat9", 100_000_000),
        act("serve", node="node.1"),
        start("s1"),
        wait(20),
        act("slow_redis", delays=delays, ms=90_000),
        wait(120),
    )
    assert not swept
    # A beat goes out when it is due, or as soon as the last one is answered or given up.
    longest_s = max(1_000, limits.REDIS_TIMEOUT_MS) / 1000
    assert len(beats) >= 2
    for times in beats.values():
        pauses = [after - before for before, after in pairwise(times)]
        assert max(pauses) < longest_s + 0.1, max(pauses)
