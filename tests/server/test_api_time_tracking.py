"""A chat's time in the old format, in every state."""

from typing import Any

import httpx
import msgspec
import pytest

from server import limits as server_limits
from storage.rows.sessions import SessionPrepared
from tests.fixtures.engines import grow_cold
from tests.fixtures.server import API_KEY, SocketClient, StartServer, TestServer
from tests.server.api import advance, ask, assert_problem, grant, settled

PATH = "/api/time-tracking/c1"
BEAT = f"{PATH}/heartbeat"
NOTHING = {
    "duration": 0,
    "freeTimeRemaining": 0,
    "credits": "0",
    "isPaidTime": False,
    "state": "none",
}


async def read(server: TestServer, path: str = PATH, bearer: str | None = None) -> dict[str, Any]:
    response = await ask(server, "GET", path, bearer or server.token())
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    found: dict[str, Any] = response.json()
    return found


async def chat(server: TestServer, kind: str = "chat") -> SocketClient:
    """A socket of ann's with a chat."""
    await grant(server, "10", "k1", "/v1/accounts/ann/grants?user=ann")
    client = await server.login()
    started = await client.ask("start", kind=kind, session_id="c1")
    assert started["state"] == "active", started
    return client


async def test_a_chat_without_a_record_has_zeros_and_a_state(server: TestServer) -> None:
    assert await read(server) == NOTHING
    assert await read(server, f"{PATH}?user=ann", API_KEY) == NOTHING
    assert await read(server, f"{PATH}?org=acme", API_KEY) == NOTHING


async def test_a_chat_without_a_record_shows_what_its_user_has(server: TestServer) -> None:
    await grant(server, "10", "k1", "/v1/accounts/ann/grants?user=ann")
    assert await read(server) == {**NOTHING, "credits": "10"}


async def test_a_live_chat_is_shown_as_it_is_at_this_instant(server: TestServer) -> None:
    client = await chat(server)
    advance(server, 10_000)
    free = await read(server)
    assert (free["state"], free["credits"], free["isPaidTime"]) == ("active", "10", False)
    assert 10 <= free["duration"] < 20
    assert free["duration"] + free["freeTimeRemaining"] == 60
    advance(server, 50_000)
    await client.ask("ping")
    advance(server, 30_000)
    paid = await read(server)
    assert (paid["freeTimeRemaining"], paid["isPaidTime"]) == (0, True)
    assert 90 <= paid["duration"] < 100
    assert 9 < float(paid["credits"]) <= 9.5


async def test_a_chat_of_another_process_is_the_same(start_server: StartServer) -> None:
    there, here = await start_server(), await start_server()
    await chat(there)
    for server in (there, here):
        advance(server, 10_000)
    mine, theirs = await read(there), await read(here)
    assert abs(mine.pop("duration") - theirs.pop("duration")) <= 1
    assert abs(mine.pop("freeTimeRemaining") - theirs.pop("freeTimeRemaining")) <= 1
    assert mine == theirs


async def test_time_stands_still_in_a_pause(server: TestServer) -> None:
    client = await chat(server)
    advance(server, 20_000)
    await client.ask("pause", session_id="c1")
    paused = await read(server)
    advance(server, 5_000)
    assert await read(server) == paused
    assert paused["state"] == "paused"


@pytest.mark.parametrize("forgotten", [False, True])
async def test_an_ended_chat_is_shown_as_it_was_recorded(
    server: TestServer, forgotten: bool
) -> None:
    client = await chat(server)
    advance(server, 90_000)
    stopped = await client.ask("stop", session_id="c1")
    await server.flush()
    if forgotten:
        await grow_cold(server.process.redis)
    found = await read(server)
    assert found["duration"] == stopped["receipt"]["elapsed_ms"] // 1000
    assert (
        found["credits"]
        == (await ask(server, "GET", "/v1/accounts/ann?user=ann")).json()["credits"]
    )
    assert (found["state"], found["freeTimeRemaining"], found["isPaidTime"]) == ("ended", 0, True)


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_chat_that_ended_in_its_free_time_never_cost(
    server: TestServer, forgotten: bool
) -> None:
    client = await chat(server)
    advance(server, 20_000)
    await client.ask("stop", session_id="c1")
    await server.flush()
    if forgotten:
        await grow_cold(server.process.redis)
    found = await read(server)
    assert found["duration"] + found["freeTimeRemaining"] == 60
    assert (found["credits"], found["isPaidTime"]) == ("10", False)


async def test_what_costs_nothing_is_never_paid_time(server: TestServer) -> None:
    await chat(server, "recording")
    advance(server, 5_000)
    found = await read(server)
    assert (found["isPaidTime"], found["freeTimeRemaining"]) == (False, 0)


async def test_a_prepared_chat_shows_its_free_time(server: TestServer) -> None:
    terms = msgspec.structs.replace(server.process.rates.terms("chat"), free_ms=90_000)
    prepared = SessionPrepared("user:ann", "c1", "ann", None, "ann", None, "chat", terms, 2**52)
    await server.process.records.prepare_session(prepared, 0)
    assert await read(server) == {
        "duration": 0,
        "freeTimeRemaining": 90,
        "credits": "0",
        "isPaidTime": False,
        "state": "prepared",
    }


async def test_a_chat_lost_by_redis_comes_from_the_record(server: TestServer) -> None:
    client = await chat(server)
    advance(server, 61_000)
    await client.ask("ping")
    await client.until("minute")
    await server.flush()
    await grow_cold(server.process.redis)
    other = await ask(server, "GET", PATH + "?user=ann", API_KEY)
    assert other.status_code == 200
    assert other.json()["duration"] >= 60


# --- Proof of life -------------------------------------------------------------------


async def beat(
    server: TestServer, bearer: str | None = None, path: str = BEAT, **body: Any
) -> httpx.Response:
    return await ask(server, "POST", path, bearer or server.token(), json=body)


async def test_a_heartbeat_keeps_a_chat_alive(server: TestServer) -> None:
    await grant(server, "10", "k1", "/v1/accounts/ann/grants?user=ann")
    started = await beat(server, kind="chat", advisorId="eva")
    assert started.status_code == 200
    assert started.headers["cache-control"] == "no-store"
    assert started.json()["state"] == "active"
    row = await server.process.live.attach("user:ann", "c1", read_only=True)
    assert row is not None
    assert row.session.identity.counterpart_id == "eva"
    for _ in range(3):
        advance(server, server_limits.HEARTBEAT_PROOF_MS - 5_000)
        alive = (await beat(server)).json()
        assert alive["state"] == "active"
    assert alive["duration"] >= 120
    assert alive["isPaidTime"] is True
    assert (await read(server))["duration"] >= alive["duration"]
    advance(server, server_limits.HEARTBEAT_PROOF_MS + 1_000)
    await settled(server)
    assert (await read(server))["state"] == "suspended"


async def test_a_heartbeat_of_no_chat_is_no_error(server: TestServer) -> None:
    assert (await beat(server)).json() == NOTHING
    client = await chat(server)
    await client.ask("stop", session_id="c1")
    ended = await beat(server, kind="chat")
    assert ended.status_code == 200
    assert ended.json()["state"] == "ended"


async def test_a_heartbeat_that_starts_what_cannot_is_one(server: TestServer) -> None:
    assert_problem(await beat(server, kind="calls"), 422, "unknown_kind")
    assert_problem(await beat(server, kind="a b"), 400, "bad_message")
    limit = {"monthly_hours_limit": 0}
    assert (await ask(server, "PUT", "/v1/orgs/acme", json=limit)).status_code == 200
    bearer = server.token("ann", org="acme")
    assert_problem(await beat(server, bearer, kind="recording"), 402, "limit_reached")


async def test_heartbeats_are_a_users_own(server: TestServer) -> None:
    await chat(server)
    for bearer in ("wrong", server.token("ann") + "x"):
        assert_problem(await beat(server, bearer), 401, "unauthenticated")
    assert_problem(await beat(server, API_KEY), 403, "forbidden")
    assert_problem(await beat(server, server.token("ann", sessions=["c2"])), 403, "forbidden")
    # Another tenant's chat of this id is another chat, and another member may not use this one.
    assert (await beat(server, server.token("ben"))).json() == NOTHING
    client = await server.login("ann", org="acme")
    await client.ask("start", kind="recording", session_id="c1")
    assert_problem(await beat(server, server.token("ben", org="acme")), 403, "forbidden")


# --- Who may -----------------------------------------------------------------------


async def test_another_users_chat_is_as_if_it_were_not_there(server: TestServer) -> None:
    await chat(server)
    assert await read(server, bearer=server.token("ben")) == NOTHING
    client = await server.login("ann", org="acme")
    await client.ask("start", kind="recording", session_id="c1")
    advance(server, 5_000)
    assert await read(server, bearer=server.token("ben", org="acme")) == NOTHING
    mine = await read(server, bearer=server.token("ann", org="acme"))
    assert mine["state"] == "active"


async def test_only_good_tokens_read_and_only_their_own(server: TestServer) -> None:
    for bearer in (None, "wrong"):
        assert_problem(await ask(server, "GET", PATH, bearer), 401, "unauthenticated")
    for query in ("?user=ben", "?org=acme"):
        response = await ask(server, "GET", PATH + query, server.token())
        assert_problem(response, 403, "forbidden")
    assert_problem(await ask(server, "GET", PATH, API_KEY), 400, "bad_message")
    response = await ask(server, "GET", "/api/time-tracking/a b", server.token())
    assert_problem(response, 400, "bad_message")


async def test_backend_sees_any_chat(server: TestServer) -> None:
    await chat(server)
    assert (await read(server, f"{PATH}?user=ann", API_KEY))["state"] == "active"
