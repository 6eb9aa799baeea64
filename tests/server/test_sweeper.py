"""Peers clean up after a process that dies or leaves.

They do so through all obstacles.
"""

import asyncio

import pytest

from protocol.metering.states import Phase
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.recovery.sweeper import Sweeper
from server.runtime.rate_card_file import load_rate_card
from storage.redis.keys import NODES
from tests.fixtures.server import StartServer
from tests.server.billed_session import CREDIT, eventually, found, reaches
from tests.server.test_membership import nodes
from tests.simulation.cluster import Cluster, Node

CHAT = load_rate_card().terms("chat")

SESSIONS = [f"chat-{number}" for number in range(3)]


async def test_a_process_that_goes_hands_over_the_graces_it_began(
    start_server: StartServer,
) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    client = await one.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    await client.close()
    await reaches(one, "chat-1", Phase.SUSPENDED)
    await one.process.membership.stop()
    # The other process does not wait for the full time-out of silence.
    assert await nodes(two) == {two.process.node}

    async def adopted() -> bool:
        return any(True for _ in two.process.registry)

    await eventually(adopted)
    (local,) = two.process.registry
    assert local.meter.timer() == (await found(two, "chat-1")).session.standing.grace_until


async def test_a_process_that_leaves_a_socket_behind_is_swept(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    client = await one.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    await one.process.membership.stop()
    assert await nodes(two) == {one.process.node, two.process.node}

    assert await two.process.membership.sweeper.sweep(one.process.node, one.process.clock.now())
    assert await nodes(two) == {two.process.node}


async def test_one_session_that_cannot_be_swept_holds_up_no_other(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(5 * CREDIT)
    dead = await cluster.node()
    browser = dead.browser()
    for session_id in SESSIONS:
        await browser.start(session_id, CHAT)
    died_at = cluster.clock.now()
    await dead.live.beat(died_at, died_at)
    dead.is_alive = False
    await dead.stop()

    sweeper = Sweeper(node.live, node.orphans, cluster.clock, dict)  # type: ignore[arg-type]
    adopt = node.orphans.adopt

    async def refuse(tenant: str, session_id: str, name: str, alive_at: int | None) -> None:
        if session_id == SESSIONS[0]:
            raise ServiceError("the account cannot be loaded now")
        await adopt(tenant, session_id, name, alive_at)

    async def phases() -> list[Phase]:
        sessions = [
            await node.live.attach("user:ann", session_id, read_only=True)
            for session_id in SESSIONS
        ]
        return [one.session.standing.phase for one in sessions if one is not None]

    monkeypatch.setattr(node.orphans, "adopt", refuse)
    assert not await sweeper.sweep(dead.name, died_at)
    assert await phases() == [Phase.ACTIVE, Phase.SUSPENDED, Phase.SUSPENDED]
    assert dead.name in (await node.live.beat(died_at, died_at)).nodes

    monkeypatch.setattr(node.orphans, "adopt", adopt)
    assert await sweeper.sweep(dead.name, died_at)
    assert await phases() == [Phase.SUSPENDED] * 3
    assert dead.name not in (await node.live.beat(died_at, died_at)).nodes


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats follow each other without a pause."""
    monkeypatch.setattr(server_limits, "PRESENCE_BEAT_MS", 1)


@pytest.mark.usefixtures("hasty")
async def test_a_long_sweep_does_not_hold_up_the_beat(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server()
    process = server.process
    begun, done = asyncio.Event(), asyncio.Event()

    async def adopt(*_: object) -> None:
        begun.set()
        await done.wait()

    monkeypatch.setattr(process.membership.orphans, "adopt", adopt)
    keys = process.live.keys
    await process.redis.sadd(keys.node(keys.partition("user:ann"), "dead.1"), "user:ann/chat-1")
    await process.redis.zadd(NODES, {"dead.1": process.clock.now() - 60_000})
    await asyncio.wait_for(begun.wait(), 10)

    async def proof() -> float:
        at: float | None = await process.redis.zscore(NODES, process.node)
        assert at is not None
        return at

    swept_at = await proof()

    async def beaten_since() -> bool:
        return await proof() > swept_at

    await eventually(beaten_since)
    assert "dead.1" in await nodes(server)
    done.set()

    async def forgotten() -> bool:
        return "dead.1" not in await nodes(server)

    await eventually(forgotten)
    assert process.membership.redis_up
