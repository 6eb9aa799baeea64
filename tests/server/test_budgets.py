"""Bounds of one user: messages, new sessions, live sessions per kind."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from protocol.wire.errors import PeerError
from server import limits as server_limits
from server.access.principals import Principal
from server.access.rate_limits import UserMessages, UserStarts
from tests.fixtures.server import StartServer
from tests.server.api import ask
from tests.server.billed_session import CREDIT, eventually, write_rates
from tests.server.test_timers import SteppedClock

HALL = """
[kinds.hall]
credits_per_minute = "1"
max_live_sessions = 2
reconnect_grace_seconds = 0
"""


def user(name: str) -> Principal:
    return Principal("user", user_id=name, org_id=None, account_id=name)


@pytest.fixture
def hall(tmp_path: Path) -> Path:
    path = write_rates(tmp_path)
    path.write_text(path.read_text().replace("[operations]", f"{HALL}\n[operations]", 1))
    return path


# --- Buckets -----------------------------------------------------------------------------


def test_each_user_has_a_budget_and_gets_the_retry_time() -> None:
    clock = SteppedClock()
    starts = UserStarts(clock)
    for _ in range(server_limits.STARTS_BURST):
        starts.check(user("ann"))
    with pytest.raises(PeerError) as refused:
        starts.check(user("ann"))
    assert (refused.value.code, refused.value.retryable) == ("rate_limited", True)
    wait_ms = refused.value.retry_after_ms
    assert wait_ms == 60_000 // server_limits.STARTS_PER_MINUTE
    starts.check(user("bob"))
    clock.now_ms += wait_ms
    starts.check(user("ann"))
    with pytest.raises(PeerError):
        starts.check(user("ann"))


def test_users_that_are_silent_for_longest_are_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_limits, "REQUEST_USERS_MAX", 10)
    messages = UserMessages(SteppedClock())
    for number in range(100):
        messages.check(user(f"user-{number}"))
        messages.check(user("ann"))
    assert len(messages._buckets) == 10
    assert (user("ann").tenant, "ann") in messages._buckets


# --- Over sockets and HTTP ---------------------------------------------------------------


async def test_messages_of_a_user_are_counted_over_all_sockets(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "USER_REQUESTS_BURST", 20)
    monkeypatch.setattr(server_limits, "USER_REQUESTS_PER_SECOND", 0.001)
    server = await start_server()
    clients = [await server.login() for _ in range(4)]
    answers = [await client.ask("ping") for _ in range(6) for client in clients]
    assert [one["type"] for one in answers] == ["pong"] * 20 + ["error"] * 4
    assert answers[-1]["code"] == "rate_limited"
    assert answers[-1]["retryable"]
    assert answers[-1]["retry_after_ms"] > 0
    assert (await (await server.login("bob")).ask("ping"))["type"] == "pong"


async def test_every_kind_of_start_counts_as_a_new_session(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "STARTS_BURST", 3)
    monkeypatch.setattr(server_limits, "STARTS_PER_MINUTE", 6)
    server = await start_server()
    await server.grant(5 * CREDIT)
    one, two = await server.login(), await server.login()
    assert (await one.ask("start", kind="chat", session_id="s-1"))["type"] == "session"
    assert (await two.ask("start", kind="chat", session_id="s-2"))["type"] == "session"
    # Joining a live session is no start.
    for _ in range(10):
        assert (await two.ask("start", kind="chat", session_id="s-1"))["type"] == "session"
    token = server.token()
    beat = await ask(server, "POST", "/v1/sessions/s-3/heartbeat", token, json={"kind": "chat"})
    assert beat.status_code == 200
    refused = await one.ask("start", kind="chat", session_id="s-4")
    assert (refused["code"], refused["retryable"]) == ("rate_limited", True)
    assert 0 < refused["retry_after_ms"] <= 10_000
    beat = await ask(server, "POST", "/v1/sessions/s-5/heartbeat", token, json={"kind": "chat"})
    assert beat.status_code == 429
    assert 1 <= int(beat.headers["Retry-After"]) <= 10
    # Live sessions go on, and other users are not affected.
    assert (await one.ask("pause", session_id="s-1"))["state"] == "paused"
    beat = await ask(server, "POST", "/v1/sessions/s-3/heartbeat", token)
    assert beat.status_code == 200


# --- Live sessions of a kind ---------------------------------------------------------------


async def started(client: Any, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = await client.ask("start", kind="hall", session_id=name)
    return answer


async def test_a_kind_bounds_a_users_live_sessions_on_all_processes(
    start_server: StartServer, hall: Path
) -> None:
    servers = [await start_server(rates=hall), await start_server(rates=hall)]
    await servers[0].grant(50 * CREDIT)
    clients = [await server.login() for server in servers for _ in range(3)]
    answers = await asyncio.gather(
        *(started(client, f"hall-{number}") for number, client in enumerate(clients))
    )
    running = [one["session_id"] for one in answers if one["type"] == "session"]
    refused = [one for one in answers if one["type"] == "error"]
    assert (len(running), len(refused)) == (2, 4)
    assert {(one["code"], one["retryable"]) for one in refused} == {("rate_limited", True)}
    # Another kind has no such bound, and another user has one of their own.
    assert (await clients[0].ask("start", kind="chat", session_id="chat-1"))["type"] == "session"
    bob = await servers[1].login("bob")
    await servers[1].grant(5 * CREDIT, "bob")
    assert (await started(bob, "hall-0"))["type"] == "session"
    # An ended session makes room; joining starts no new session.
    number = int(running[0][-1])
    await clients[number].ask("stop", session_id=running[0])
    assert (await started(clients[number], "hall-a"))["type"] == "session"
    assert (await started(clients[1 - number], "hall-a"))["type"] == "session"
    assert (await started(clients[number], "hall-b"))["code"] == "rate_limited"


async def test_live_sessions_of_a_kind_are_known_after_a_loss(
    start_server: StartServer, hall: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_BURST", "USER_REQUESTS_BURST", "STARTS_BURST"):
        monkeypatch.setattr(server_limits, name, 10_000)
    server = await start_server(rates=hall)
    await server.grant(50 * CREDIT)
    client = await server.login()
    for name in ("hall-1", "hall-2"):
        assert (await started(client, name))["type"] == "session"
    redis, live = server.process.redis, server.process.live
    key = live.keys.running("user:ann", "ann", "hall")
    await redis.flushall()

    async def are_known() -> bool:
        return int(await redis.scard(key)) == 2

    await eventually(are_known)
    await client.ask("stop", session_id="hall-1")

    async def has_room() -> bool:
        return bool((await started(client, "hall-3"))["type"] == "session")

    await eventually(has_room)


async def test_a_forgotten_session_takes_no_place(start_server: StartServer, hall: Path) -> None:
    server = await start_server(rates=hall)
    await server.grant(50 * CREDIT)
    client = await server.login()
    live = server.process.live
    key = live.keys.running("user:ann", "ann", "hall")
    await server.process.redis.sadd(key, "user:ann/gone-1", "user:ann/gone-2")
    assert (await started(client, "hall-1"))["type"] == "session"
    assert int(await server.process.redis.scard(key)) == 1
