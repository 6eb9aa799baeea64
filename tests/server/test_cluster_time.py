"""Cluster time: taken from Redis once, and passed on among live processes."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from protocol import limits
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from storage import limits as storage_limits
from storage.redis import scripts
from storage.redis.keys import CLOCK, NODES
from storage.redis.live import Live
from tests.fixtures.server import StartServer, TestServer
from tests.server.billed_session import CREDIT, eventually, found

STEP_KEY = "{nodes}:test-step"

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

STEPS = [HOUR_MS, -HOUR_MS, DAY_MS, -DAY_MS]


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shifts the time that scripts get from Redis by ``STEP_KEY``, in seconds."""
    time = f"""(function()
      local time = redis.call('TIME')
      local off = tonumber(redis.call('GET', '{STEP_KEY}') or '0')
      return {{string.format('%.0f', time[1] + off), time[2]}}
    end)()"""
    directory = tmp_path / "lua"
    directory.mkdir()
    for path in scripts.LUA_DIR.glob("*.lua"):
        text = path.read_text().replace("redis.call('TIME')", time)
        (directory / path.name).write_text(text)
    monkeypatch.setattr(scripts, "LUA_DIR", directory)


async def step(server: TestServer, step_ms: int) -> None:
    """Steps the clock of Redis, from the system's."""
    await server.process.redis.set(STEP_KEY, step_ms // 1000)


def apart(one: TestServer, two: TestServer) -> int:
    """The difference between the clocks of two processes."""
    return abs(one.process.clock.now() - two.process.clock.now())


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("step_ms", STEPS)
async def test_a_newcomer_after_a_clock_step_takes_peers_time(
    start_server: StartServer, step_ms: int
) -> None:
    one = await start_server()
    await one.grant(1_000 * CREDIT)
    client = await one.login()
    began_at = one.process.clock.now()
    await client.ask("start", kind="chat", session_id="chat-1")
    await step(one, step_ms)
    two = await start_server()
    assert apart(one, two) < 100
    assert abs(two.process.clock.stepped_ms - step_ms) < 1_000
    other = await two.login()
    joined = await other.ask("start", kind="chat", session_id="chat-1")
    assert joined["state"] == "active"
    stopped = await other.ask("stop", session_id="chat-1")
    assert stopped["receipt"]["elapsed_ms"] <= two.process.clock.now() - began_at
    assert stopped["receipt"]["gaps"] == []
    # And from the newcomer on to the next, when the first one is gone.
    await client.close()
    await one.process.membership.stop()
    three = await start_server()
    assert apart(two, three) < 100


@pytest.mark.usefixtures("stepped")
async def test_the_time_is_handed_on_though_redis_was_emptied(
    start_server: StartServer,
) -> None:
    one = await start_server()
    await step(one, HOUR_MS)
    await one.process.redis.delete(NODES, CLOCK)
    two = await start_server()
    assert apart(one, two) < 100


@pytest.mark.usefixtures("stepped")
async def test_an_answer_across_a_step_is_not_taken(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await start_server()
    look, looks = Live.look, itertools.count()

    async def between(live: Live, *, ask: bool) -> Any:
        """Redis is stepped between the request for the heartbeat and its reading."""
        if next(looks) == 1:
            await one.process.membership.beat()
            await step(one, -HOUR_MS)
        elif not ask:
            await one.process.membership.beat()
        return await look(live, ask=ask)

    monkeypatch.setattr(Live, "look", between)
    two = await start_server()
    assert apart(one, two) < 100


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
async def test_without_live_peers_time_is_redis_and_never_decreases(
    start_server: StartServer, step_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "PRESENCE_BEAT_MS", 100)
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_MS", 400)
    one = await start_server()
    now_ms = one.process.clock.now()
    await one.process.redis.zadd(NODES, {"dead.1": now_ms})
    await one.process.redis.hset(CLOCK, mapping={"beats": 7, "redis": 1, "cluster": now_ms})
    monkeypatch.setattr(one.process.membership, "_asked", lambda _: None)
    await one.process.membership.stop()
    await one.process.registry.accounts.stop()
    await step(one, step_ms)
    two = await start_server()
    ahead_ms = two.process.clock.now() - one.process.clock.now()
    if step_ms > 0:
        assert abs(ahead_ms - step_ms) < 2_000
    else:
        assert -5_000 < ahead_ms <= 0
        assert two.process.clock.now() >= now_ms


async def test_with_a_slow_redis_newcomers_take_the_peers_time(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer takes 0.6 s, all of it on the way there."""
    one = await start_server()
    beat, look = Live.beat, Live.look

    async def late_beat(live: Live, *arguments: Any) -> Any:
        await asyncio.sleep(0.6)
        return await beat(live, *arguments)

    waits = iter([0.6, 0.05, 0.6, 0.6, 0.6])

    async def late_look(live: Live, **options: Any) -> Any:
        await asyncio.sleep(next(waits, 0.6))
        return await look(live, **options)

    monkeypatch.setattr(Live, "beat", late_beat)
    monkeypatch.setattr(Live, "look", late_look)
    two = await start_server()
    assert apart(one, two) < 100


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("step_ms", [0, *STEPS])
async def test_no_account_is_loaded_from_a_lagging_record(server: TestServer, step_ms: int) -> None:
    process = server.process
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    await client.ask("stop", session_id="chat-1")
    await process.registry.idle()
    entries: Any = await process.redis.xrange(process.live.keys.outbox(1))
    (entry, *_) = entries
    assert int(entry[1][b"t"]) <= process.clock.now()
    await process.loader.refuse_behind("user:ann")
    await step(server, step_ms)
    # A step forward lets keys expire at once; they are not read anew before all is written.
    if step_ms > storage_limits.ACCOUNT_IDLE_MS // 2:
        with pytest.raises(ServiceError):
            await process.loader.refuse_behind("user:ann")
    else:
        await process.loader.refuse_behind("user:ann")
    late = process.clock.now() - storage_limits.ACCOUNT_IDLE_MS // 2 - 1
    await process.redis.xtrim(process.live.keys.outbox(1), maxlen=0)
    await process.redis.xadd(process.live.keys.outbox(1), {"r": "[]", "t": late})
    with pytest.raises(ServiceError):
        await process.loader.refuse_behind("user:ann")


async def test_money_in_that_redis_forgot_is_not_applied_again(
    server: TestServer,
) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    live = server.process.live
    # It is kept for a day; the account of a running session for as long as that runs.
    await live.redis.delete(live.keys.applied("user:ann", "ann"))
    await server.grant(5 * CREDIT)
    figures = await live.account("user:ann", "ann")
    assert figures is not None
    assert figures.gross_micros == 5 * CREDIT
    assert (await found(server, "chat-1")).session.standing.charged_micros < CREDIT


async def test_a_process_answers_who_asks_for_the_time(server: TestServer) -> None:
    live = server.process.live
    before = await live.look(ask=False)

    async def answered() -> bool:
        return (await live.look(ask=False)).beats > before.beats

    asked = await live.look(ask=True)
    assert asked.heard == 1
    await asyncio.wait_for(eventually(answered), 10)
