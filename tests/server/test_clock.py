"""Cluster time: taken from Redis once, handed on among those who live, and never stepped."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from protocol import limits
from protocol.wire.errors import ServiceError
from server.runtime.clock import NUDGE_MS, STEP_MS, ClusterClock, Sample
from storage.redis import scripts
from storage.redis.keys import CLOCK, NODES
from storage.redis.live import Live
from tests.fixtures.server import StartServer, TestServer
from tests.server.scenes import CREDIT, eventually, found

STEP_KEY = "{nodes}:test-step"
HOUR_MS, DAY_MS = 3_600_000, 24 * 3_600_000
STEPS = [HOUR_MS, -HOUR_MS, DAY_MS, -DAY_MS]


class Quartz:
    """A monotonic clock that is set by hand, in seconds."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The time that scripts get from Redis is off by what ``STEP_KEY`` says, in seconds."""
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
    """How far the clocks of two processes are from each other."""
    return abs(one.process.clock.now() - two.process.clock.now())


# --- The clock alone -------------------------------------------------------------------


@pytest.mark.parametrize("step_ms", STEPS)
def test_a_step_is_noticed_and_not_followed(step_ms: int) -> None:
    quartz = Quartz()
    clock = ClusterClock(quartz)
    clock.anchor(5_000.0, 5_000.0, quartz())
    clock.observe(5_000.0 + step_ms, quartz())
    assert (clock.now(), clock.stepped_ms) == (5_000, step_ms)
    # Both quartzes run on alike; then it is stepped back.
    quartz.at += 60
    clock.observe(65_000.0 + step_ms, quartz())
    assert (clock.now(), clock.stepped_ms) == (65_000, step_ms)
    clock.observe(65_000.0, quartz())
    assert (clock.now(), clock.stepped_ms) == (65_000, 0)


@pytest.mark.parametrize("step_ms", [0, *STEPS])
def test_drift_is_followed_slowly_before_and_after_a_step(step_ms: int) -> None:
    quartz = Quartz()
    clock = ClusterClock(quartz)
    clock.anchor(5_000.0, 5_000.0 + step_ms, quartz())
    for beat in range(1, 2_001):
        quartz.at += 1
        # Redis's quartz is faster by 20 parts in a million.
        clock.observe(5_000.0 + step_ms + beat * 1_000.02, quartz())
    assert abs(clock.now() - (5_000 + 2_000 * 1_000.02)) <= 2
    assert clock.stepped_ms == step_ms


def test_what_takes_long_to_be_said_moves_nothing() -> None:
    quartz = Quartz()
    clock = ClusterClock(quartz)
    clock.anchor(5_000.0, 5_000.0, quartz())
    sent_at = quartz()
    quartz.at += (STEP_MS + 1) / 1000
    clock.observe(5_000.0 + DAY_MS, sent_at)
    assert clock.stepped_ms == 0
    assert clock.now() - 5_000 == STEP_MS + 1


def test_the_nudge_is_bounded() -> None:
    quartz = Quartz()
    clock = ClusterClock(quartz)
    clock.anchor(5_000.0, 5_000.0, quartz())
    for _ in range(20):
        clock.observe(5_000.0 + STEP_MS, quartz())
    assert clock.now() - 5_000 == 20 * NUDGE_MS == 1


@pytest.mark.parametrize("off_ms", [-700, 700])
def test_what_a_slow_answer_was_off_by_is_corrected_and_time_never_goes_back(off_ms: int) -> None:
    """The answer took 1.5 s, nearly all of it on one of its two ways."""
    quartz = Quartz()
    clock = ClusterClock(quartz)
    sent_at = quartz()
    quartz.at += 1.5
    clock.anchor(100_000.0, 100_000.0, sent_at)
    true_ms = 100_750.0 + off_ms
    assert clock.now() == 100_750
    shown = []
    for _ in range(200):
        quartz.at += 1
        true_ms += 1_000
        shown.append(clock.now())
        sent_at = quartz()
        quartz.at += 0.002
        true_ms += 2
        clock.observe(true_ms - 1, sent_at)
        shown.append(clock.now())
    assert abs(clock.now() - true_ms) <= 2
    assert clock.stepped_ms == 0
    assert shown == sorted(shown)
    # A bill is off by half of a percent meanwhile, at most.
    lasted = [after - before for before, after in itertools.pairwise(shown[::2])]
    assert all(abs(ms - 1_002) <= 6 for ms in lasted)


def test_who_may_be_behind_follows_the_others_and_nobody_else_does() -> None:
    quartz = Quartz()
    clock = ClusterClock(quartz)
    clock.set(Sample(100_000.0, quartz() * 1_000, 0.0), 90_000.0, behind_ms=2_500)
    assert (clock.now(), clock.stepped_ms) == (10_000, 90_000)
    for beat in range(600):
        quartz.at += 1
        clock.observe(101_000.0 + beat * 1_000, quartz())
        clock.follow(10_000 + 2_000 + (beat + 1) * 1_000)
    assert clock.now() == 10_000 + 2_000 + 600_000
    before = clock.now()
    clock.follow(before + 60_000)
    assert clock.now() == before
    clock.anchor(5_000.0, 5_000.0, quartz())
    clock.follow(6_000)
    assert clock.now() == 5_000


# --- Processes -------------------------------------------------------------------------


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("step_ms", STEPS)
async def test_who_starts_after_a_step_has_the_time_of_those_who_live(
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
    await one.process.presence.stop()
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
        """Redis is stepped after the beat that was asked for, and before it is seen."""
        if next(looks) == 1:
            await one.process.presence.beat()
            await step(one, -HOUR_MS)
        elif not ask:
            await one.process.presence.beat()
        return await look(live, ask=ask)

    monkeypatch.setattr(Live, "look", between)
    two = await start_server()
    assert apart(one, two) < 100


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
async def test_where_all_are_dead_time_is_that_of_redis_but_never_goes_back(
    start_server: StartServer, step_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PRESENCE_BEAT_MS", 100)
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_MS", 400)
    one = await start_server()
    now_ms = one.process.clock.now()
    await one.process.redis.zadd(NODES, {"dead.1": now_ms})
    await one.process.redis.hset(CLOCK, mapping={"beats": 7, "redis": 1, "cluster": now_ms})
    monkeypatch.setattr(one.process.presence, "_asked", lambda _: None)
    await one.process.presence.stop()
    await one.process.hub.accounts.stop()
    await step(one, step_ms)
    two = await start_server()
    ahead_ms = two.process.clock.now() - one.process.clock.now()
    if step_ms > 0:
        assert abs(ahead_ms - step_ms) < 2_000
    else:
        assert -5_000 < ahead_ms <= 0
        assert two.process.clock.now() >= now_ms


async def test_who_starts_while_redis_is_slow_has_the_time_of_those_who_live(
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


# --- What is as old as it is by both clocks ----------------------------------------------


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("step_ms", [0, *STEPS])
async def test_a_cold_account_is_not_loaded_from_a_record_that_is_behind(
    server: TestServer, step_ms: int
) -> None:
    process = server.process
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    await client.ask("stop", session_id="chat-1")
    await process.hub.idle()
    entries: Any = await process.redis.xrange(process.live.keys.outbox(1))
    (entry, *_) = entries
    assert int(entry[1][b"t"]) <= process.clock.now()
    await process.loader.refuse_behind("user:ann")
    await step(server, step_ms)
    # A step forward lets keys expire at once; they are not read anew before all is written.
    if step_ms > limits.ACCOUNT_IDLE_MS // 2:
        with pytest.raises(ServiceError):
            await process.loader.refuse_behind("user:ann")
    else:
        await process.loader.refuse_behind("user:ann")
    late = process.clock.now() - limits.ACCOUNT_IDLE_MS // 2 - 1
    await process.redis.xtrim(process.live.keys.outbox(1), maxlen=0)
    await process.redis.xadd(process.live.keys.outbox(1), {"r": "[]", "t": late})
    with pytest.raises(ServiceError):
        await process.loader.refuse_behind("user:ann")


async def test_money_that_redis_has_forgotten_to_have_taken_is_not_taken_again(
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
