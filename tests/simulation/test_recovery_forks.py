"""A session goes on twice under one version.

A step is lost with a Redis that fails, and another process makes a step on the older copy before
the first process puts its own back.
"""

import pytest
from redis.asyncio import Redis

from protocol.metering.states import Event, Phase
from storage.redis.cluster import ClusterRedis
from tests.simulation.cluster import Browser, Cluster, Node
from tests.simulation.people import CREDIT
from tests.simulation.test_recovery import Copy, audited
from tests.simulation.test_recovery_failover import begin_anew
from tests.simulation.test_recovery_races import CHAT, phase_of

MINUTE_MS = 60_000


@pytest.fixture(autouse=True)
async def one_redis(redis: Redis) -> None:
    if isinstance(redis, ClusterRedis):
        pytest.skip("a node of a cluster is not told whose replica it is")


@pytest.fixture
async def second(cluster: Cluster, node: Node) -> Node:
    return await cluster.node()


async def forked(
    cluster: Cluster, node: Node, second: Node, lost: str, made: str
) -> tuple[Browser, Browser]:
    """The sockets of a forked session on two processes.

    The first process's step ``lost`` went with the Redis that failed. The second process made the
    step ``made`` on the copy without it.
    """
    await cluster.grant(1_000 * CREDIT)
    one, other = node.browser("one"), second.browser("other")
    await one.start("s1", CHAT)
    await cluster.advance(30_000)
    await cluster.beat()
    replica = await Copy.of(cluster.redis)
    await step(cluster, one, lost)
    await replica.promote()
    await other.start("s1", CHAT)
    ours, theirs = (
        local.meter.session.standing
        for local in (one.local_sessions["s1"], other.local_sessions["s1"])
    )
    assert theirs.version == ours.version - 1
    await step(cluster, other, made)
    return one, other


async def step(cluster: Cluster, browser: Browser, name: str) -> None:
    match name:
        case "claim":
            browser._pong(browser.node.clock.now())
            meter = browser.local_sessions["s1"].meter
            meter.refresh(browser.node.clock.now())
            browser.local_sessions["s1"].drain()
            await cluster.settle()
        case _:
            await browser.request("s1", Event(name))


@pytest.mark.parametrize("lost", ["claim", "pause"])
@pytest.mark.parametrize("made", ["claim", "pause", "stop"])
async def test_forked_session_is_one_again(
    cluster: Cluster, node: Node, second: Node, lost: str, made: str
) -> None:
    one, other = await forked(cluster, node, second, lost, made)
    await begin_anew(cluster.redis)
    await cluster.beat()
    await cluster.recovered()
    await cluster.advance(3 * MINUTE_MS)
    phase = await phase_of(cluster.redis, "s1")
    expected = {"stop": Phase.ENDED, "pause": Phase.PAUSED}.get(made)
    assert phase is (expected or (Phase.PAUSED if lost == "pause" else Phase.ACTIVE))
    for browser in (one, other):
        local = browser.local_sessions.get("s1")
        assert (local is None) == (phase is Phase.ENDED)
        assert local is None or local.meter.phase is phase
    if phase is not Phase.ENDED:
        await other.request("s1", Event.STOP)
    await cluster.advance(1_000)
    account = await cluster.account()
    assert (account["held"], account["charged_live"], account["burn"]) == (0, 0, 0)
    await audited(cluster)
