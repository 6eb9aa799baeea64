"""Kills real servers, and checks what is billed, kept and continued.

One course of events is run once, with three sessions at a time, and several tests examine it,
because the start of a server with its engines takes seconds.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from protocol.metering.terms import MINUTE_MS
from storage.embedded import start_engines
from storage.redis.keys import NODES, Keys
from storage.redis.outbox import GROUP
from tests.faults.processes import PARTITIONS, Installation, eventually, open_installation
from tests.fixtures.server import SocketClient

SPEED = 30
"""Counted milliseconds for each real one: a minute is over in two seconds."""
RATES = f"""
[kinds.chat]
free_seconds = 30
credits_per_minute = "1"
increment_seconds = [1, 1]
reconnect_grace_seconds = 60
speed = {SPEED}

[kinds.brief]
credits_per_minute = "1"
increment_seconds = [1, 1]
reconnect_grace_seconds = 1
speed = {SPEED}
"""


@dataclass
class RestartObservations:
    """Observations of three sessions over the death of their server."""

    kept: dict[str, Any] = field(default_factory=dict)
    back: dict[str, Any] = field(default_factory=dict)
    """The session that continued: its last tick before the death, the snapshot of the new join, its
    receipt; and instants by the test's own clock."""
    paused: dict[str, Any] = field(default_factory=dict)
    lost: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    """The exit codes of servers that signals stopped."""
    errors: str = ""


async def credits_of(installation: Installation, token: str) -> str:
    """The balance in the welcome of a new socket."""
    client, welcome = await installation.connect(token)
    await client.close()
    return str(welcome["credits"])


async def is_missed(installation: Installation) -> bool:
    """Whether the killed process missed a heartbeat or is already swept."""
    async with Redis.from_url(installation.url_of("redis")) as redis:
        nodes: Any = await redis.zrange(NODES, 0, -1, withscores=True)
        seconds, rest = await redis.time()
    return len(nodes) == 1 or seconds * 1000 + rest / 1000 - min(at for _, at in nodes) > 1_700


async def age_what_is_pending(installation: Installation) -> None:
    """Ages the entries that a killed flusher had read by a minute.

    After half a minute another flusher takes them over.
    """
    async with Redis.from_url(installation.url_of("redis")) as redis:
        for partition in range(PARTITIONS):
            key = Keys(PARTITIONS).outbox(partition)
            pending: Any = await redis.xpending_range(key, GROUP, "-", "+", 100)
            for entry in pending:
                consumer, name = entry["consumer"], entry["message_id"]
                await redis.xclaim(key, GROUP, consumer, 0, [name], idle=60_000, justid=True)


async def is_flushed(installation: Installation) -> bool:
    """Whether Postgres has all records."""
    async with Redis.from_url(installation.url_of("redis")) as redis:
        keys = [Keys(PARTITIONS).outbox(partition) for partition in range(PARTITIONS)]
        return sum([await redis.xlen(key) for key in keys]) == 0


async def run_until_a_minute_is_written(
    installation: Installation, client: SocketClient
) -> dict[str, Any]:
    """Starts the three sessions, and lets them run into their second minute."""
    await client.ask("start", kind="chat", session_id="back", tick_ms=250, counterpart_id="eve")
    await client.ask("start", kind="brief", session_id="lost", tick_ms=60_000)
    await client.ask("start", kind="chat", session_id="paused", tick_ms=60_000)
    paused = await client.ask("pause", session_id="paused")
    await client.until("minute", lambda minute: minute["session_id"] == "back")
    return paused


async def observe_restart(installation: Installation) -> RestartObservations:
    """Kills the server in mid-minute, starts it again, and reconnects."""
    observations = RestartObservations()
    first = await installation.serve()
    token = await installation.visitor("visitor-ann")
    client, _ = await installation.connect(token)
    observations.kept["before"] = await credits_of(installation, token)
    observations.paused["before"] = await run_until_a_minute_is_written(installation, client)
    observations.back["tick"] = await client.until("tick")
    observations.back["ticked"] = time.monotonic()
    asked_s = time.monotonic()
    pong = await client.ask("ping")
    await first.kill()
    observations.back["killed"] = time.monotonic()
    # The latest cluster time of the kill: the pong's time plus the time since its request.
    run_ms = (observations.back["killed"] - asked_s) * 1000
    observations.lost["killed_at"] = pong["server_time_at"] + run_ms + 1
    await installation.deserted()

    second = await installation.serve()
    await eventually(lambda: is_missed(installation))
    client, _ = await installation.connect(token)
    observations.back["returned"] = time.monotonic()
    observations.back["snapshot"] = await client.ask(
        "start", kind="chat", session_id="back", last_seq=0, tick_ms=250
    )
    observations.back["answered"] = time.monotonic()
    observations.paused["after"] = await client.ask("start", kind="chat", session_id="paused")
    await client.until("minute", lambda minute: minute["session_id"] == "back")
    observations.paused["receipt"] = (await client.ask("stop", session_id="paused"))["receipt"]
    observations.back["receipt"] = (await client.ask("stop", session_id="back"))["receipt"]

    async def ended() -> dict[str, Any] | None:
        answer = await installation.http("GET", "/v1/sessions/lost", token=token)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found if "ended_at" in found else None

    observations.lost["receipt"] = await eventually(ended)
    observations.kept["after"] = await credits_of(installation, token)
    await age_what_is_pending(installation)
    await eventually(lambda: is_flushed(installation))
    observations.codes["SIGINT"] = await second.stop(signal.SIGINT)
    await installation.deserted()

    third = await installation.serve()
    observations.kept["later"] = await credits_of(installation, token)
    client, _ = await installation.connect(token)
    await client.ask("start", kind="chat", session_id="short")
    observations.kept["short"] = (await client.ask("stop", session_id="short"))["receipt"]
    observations.codes["SIGTERM"] = await third.stop(signal.SIGTERM)
    await installation.deserted()
    async with await start_engines(installation.data_dir):
        observations.kept["record"] = await read_record(installation)
    await installation.deserted()
    observations.errors = first.errors + second.errors + third.errors
    return observations


async def read_record(installation: Installation) -> dict[str, Any]:
    """All tables of Postgres that the tests compare."""
    record = await asyncpg.connect(installation.url_of("postgres"))
    try:
        return {
            name: [dict(row) for row in await record.fetch(query)]
            for name, query in {
                "sessions": "SELECT * FROM sessions ORDER BY session_id",
                "minutes": "SELECT * FROM usage_tracking ORDER BY session_id, minute",
                "ledger": "SELECT * FROM credit_ledger ORDER BY position",
                "accounts": "SELECT * FROM credit_accounts",
            }.items()
        }
    finally:
        await record.close()


@pytest.fixture(scope="module")
async def observations() -> AsyncIterator[RestartObservations]:
    """The course of events, run once."""
    async with open_installation(RATES) as installation:
        yield await observe_restart(installation)


def micros(amount: str) -> int:
    return round(float(amount) * 1_000_000)


async def test_the_session_continues_and_the_gap_is_not_billed(
    observations: RestartObservations,
) -> None:
    back = observations.back
    snapshot, receipt = back["snapshot"], back["receipt"]
    assert (snapshot["type"], snapshot["state"]) == ("session", "active")
    assert snapshot["started_at"] == receipt["started_at"]
    # Only time that was proven before the death, or run after the return, is counted.
    proven_ms = back["tick"]["elapsed_ms"] + (back["killed"] - back["ticked"]) * 1000 * SPEED
    run_ms = (back["answered"] - back["returned"]) * 1000 * SPEED
    assert MINUTE_MS <= snapshot["elapsed_ms"] <= proven_ms + run_ms
    (gap,) = receipt["gaps"]
    assert gap["billed"] is False
    # Segments and gaps do not overlap, and together they leave no instant out.
    (one, two) = receipt["segments"]
    assert 0 <= one["from_at"] - receipt["started_at"] <= 1_000
    assert one["to_at"] == gap["from_at"]
    assert gap["to_at"] == two["from_at"]
    run_at_all_ms = sum(part["to_at"] - part["from_at"] for part in (one, two))
    assert abs(receipt["elapsed_ms"] - run_at_all_ms * SPEED) <= 2 * SPEED


async def test_missed_notices_are_sent_again(
    observations: RestartObservations,
) -> None:
    missed = observations.back["snapshot"]["missed"]
    assert [notice["type"] for notice in missed] == ["free_time"]
    assert [notice["seq"] for notice in missed] == [1]


async def test_a_paused_session_stays_paused(observations: RestartObservations) -> None:
    before, after = observations.paused["before"], observations.paused["after"]
    assert (before["state"], after["state"]) == ("paused", "paused")
    assert (
        after["elapsed_ms"] == before["elapsed_ms"] == observations.paused["receipt"]["elapsed_ms"]
    )


async def test_an_abandoned_session_ends_at_its_last_proof(
    observations: RestartObservations,
) -> None:
    receipt = observations.lost["receipt"]
    assert receipt["reason"] == "disconnected"
    (segment,) = receipt["segments"]
    assert receipt["ended_at"] == segment["to_at"]
    run_ms = (segment["to_at"] - segment["from_at"]) * SPEED
    assert abs(receipt["elapsed_ms"] - run_ms) <= 2 * SPEED
    assert receipt["ended_at"] <= observations.lost["killed_at"]


async def test_every_minute_is_recorded_once_and_credits_add_up(
    observations: RestartObservations,
) -> None:
    record = observations.kept["record"]
    receipts = [
        part["receipt"] for part in (observations.back, observations.lost, observations.paused)
    ]
    receipts.append(observations.kept["short"])  # it ended right before the server did
    for receipt in receipts:
        name = receipt["session_id"]
        minutes = [row for row in record["minutes"] if row["session_id"] == name]
        assert [row["minute"] for row in minutes] == list(range(receipt["minutes"])), name
        assert receipt["minutes"] == -(-receipt["elapsed_ms"] // MINUTE_MS), name
        assert sum(row["charged_micros"] for row in minutes) == micros(receipt["credits"]), name
        burnt = [row for row in record["ledger"] if row["session_id"] == name]
        assert sum(row["amount_micros"] for row in burnt) == -micros(receipt["credits"]), name
        (row,) = [row for row in record["sessions"] if row["session_id"] == name]
        assert (row["state"], row["reason"]) == ("ended", receipt["reason"]), name
        assert row["charged_micros"] == micros(receipt["credits"]), name
        assert row["elapsed_ms"] == receipt["elapsed_ms"], name
    spent = sum(micros(receipt["credits"]) for receipt in receipts)
    assert spent > 0
    assert micros(observations.kept["before"]) - micros(observations.kept["after"]) == spent
    (account,) = record["accounts"]
    assert account["balance_micros"] == micros(observations.kept["after"])
    assert sum(row["amount_micros"] for row in record["ledger"]) == account["balance_micros"]
    assert observations.kept["later"] == observations.kept["after"]


async def test_signals_stop_all_processes(
    observations: RestartObservations,
) -> None:
    # After each signal, ``observe_restart`` waited until no process was left in the directory.
    assert observations.codes == {"SIGINT": 130, "SIGTERM": 0}
    assert "Traceback" not in observations.errors
    assert "[error" not in observations.errors


async def test_serving_and_flushing_apart() -> None:
    async with open_installation(RATES) as installation:
        web, flush = await asyncio.gather(installation.serve("web"), installation.start("flush"))
        token = await installation.visitor("visitor-ann")
        client, _ = await installation.connect(token)
        await client.ask("start", kind="chat", session_id="chat-1", tick_ms=60_000)
        await client.until("minute")
        await flush.kill()
        await age_what_is_pending(installation)
        await client.until("minute")
        successor = await installation.start("flush")

        # Only the server dies: engines live while any process uses them.
        paused = await client.ask("pause", session_id="chat-1")
        await client.ask("resume", session_id="chat-1")
        await web.kill()
        web = await installation.serve("web")
        await eventually(lambda: is_missed(installation))
        client, _ = await installation.connect(token)
        back = await client.ask("start", kind="chat", session_id="chat-1")
        assert back["state"] == "active"
        assert back["elapsed_ms"] >= paused["elapsed_ms"]
        receipt = (await client.ask("stop", session_id="chat-1"))["receipt"]
        assert len(receipt["gaps"]) == 1
        await client.close()
        assert await web.stop(signal.SIGTERM) == 0
        assert await successor.stop(signal.SIGINT) == 130
        await installation.deserted()

        # The flusher moved the rest of the outbox before it stopped.
        async with await start_engines(installation.data_dir):
            record = await read_record(installation)
        assert [row["minute"] for row in record["minutes"]] == list(range(receipt["minutes"]))
        charged = sum(row["charged_micros"] for row in record["minutes"])
        assert charged == micros(receipt["credits"])
        (session,) = record["sessions"]
        assert (session["state"], session["elapsed_ms"]) == ("ended", receipt["elapsed_ms"])
        for process in installation.processes:
            assert "Traceback" not in process.errors
