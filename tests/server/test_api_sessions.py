"""Sessions over HTTP: the snapshot, the receipt, and the stop from outside."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol import limits
from protocol.metering.assertion import minute_again
from protocol.rate_card import RateCard
from protocol.wire.money import parse_credits
from server.runtime.rate_card_file import load_rate_card
from storage.redis.live import LiveError
from storage.rows.sessions import SessionPrepared
from tests.fixtures.engines import grow_cold
from tests.fixtures.server import API_KEY, SocketClient, StartServer, TestServer
from tests.server.api import advance, ask, assert_problem, grant, settled
from tests.server.minutes import keep_off_month_ends

S1 = "/v1/sessions/s1"
STOP = f"{S1}/stop"
ANN = "?user=ann"

FAST = """
[kinds.chat]
credits_per_minute = "1"
increment_seconds = [1, 1]
speed = 100
"""


async def chat(server: TestServer, session_id: str = "s1", **claims: Any) -> SocketClient:
    """A socket of ann's with a chat."""
    path = f"/v1/accounts/ann/grants?{'org=acme' if 'org' in claims else 'user=ann'}"
    assert (await grant(server, "10", f"for-{session_id}", path)).status_code == 201
    client = await server.login("ann", **claims)
    started = await client.ask("start", kind="chat", session_id=session_id, tick_ms=250)
    assert started["state"] == "active", started
    return client


# --- Reading -----------------------------------------------------------------------


async def test_a_live_session_shows_its_snapshot(server: TestServer) -> None:
    await chat(server)
    advance(server, 30_000)
    response = await ask(server, "GET", S1, server.token())
    assert response.status_code == 200
    found = response.json()
    assert found["type"] == "session"
    assert found["session_id"] == "s1"
    assert found["state"] == "active"
    assert 30_000 <= found["elapsed_ms"] < 60_000
    assert found["credits"] == "10"
    assert found["limit"] == "credits"


async def test_the_minutes_of_a_session_are_those_on_the_record(server: TestServer) -> None:
    client = await chat(server)
    path = f"{S1}/minutes"
    assert (await ask(server, "GET", path, server.token())).json() == {
        "session_id": "s1",
        "minutes": [],
    }
    advance(server, 120_500)
    await client.ask("stop", session_id="s1")
    # The same before Postgres has them, and afterwards.
    response = await ask(server, "GET", path, server.token())
    await server.flush()
    assert (await ask(server, "GET", path, server.token())).json() == response.json()
    receipt = (await ask(server, "GET", S1, server.token())).json()
    rows = response.json()["minutes"]
    assert [row["minute"] for row in rows] == [0, 1, 2]
    assert [row["seconds"] for row in rows[:2]] == [60, 60]
    assert sum(parse_credits(row["credits"]) for row in rows) == parse_credits(receipt["credits"])
    assert response.headers["Cache-Control"] == "no-store"
    stranger = server.token("eve")
    assert_problem(await ask(server, "GET", path, stranger), 404, "unknown_session")
    assert_problem(
        await ask(server, "GET", "/v1/sessions/s9/minutes", stranger), 404, "unknown_session"
    )


async def test_minutes_of_a_receipt_are_those_of_its_session(server: TestServer) -> None:
    """Postgres has minutes of lost steps, and gets the end later."""
    client = await chat(server)
    advance(server, 90_500)
    await client.ask("stop", session_id="s1")
    local = await server.process.live.attach("user:ann", "s1", read_only=True)
    assert local is not None
    lost = [minute_again(local.session, number, lambda _: "2026-11-01") for number in (0, 1)]
    more = [msgspec.structs.replace(lost[1], minute=number, seconds=60) for number in (1, 2)]
    await server.process.records.write([lost[0], *more])
    for _ in range(2):
        rows = (await ask(server, "GET", f"{S1}/minutes", server.token())).json()["minutes"]
        assert [row["minute"] for row in rows] == [0, 1]
        assert rows[1]["seconds"] < 60
        receipt = (await ask(server, "GET", S1, server.token())).json()
        shown = sum(parse_credits(row["credits"]) for row in rows)
        assert shown == parse_credits(receipt["credits"])
        await server.flush()
    assert await server.process.records.audit() == ()


async def test_a_session_of_another_process_shows_the_same(start_server: StartServer) -> None:
    there, here = await start_server(), await start_server()
    await chat(there)
    mine = (await ask(there, "GET", S1 + ANN)).json()
    theirs = (await ask(here, "GET", S1 + ANN)).json()
    moving = {"elapsed_ms", "free_remaining_ms", "remaining_ms", "limits", "server_time_at"}
    fixed = mine.keys() - moving
    assert {name: mine[name] for name in fixed - {"ends_at"}} == {
        name: theirs[name] for name in fixed - {"ends_at"}
    }
    assert abs(mine["ends_at"] - theirs["ends_at"]) <= 1_000
    passed_ms = theirs["server_time_at"] - mine["server_time_at"]
    assert abs(theirs["elapsed_ms"] - mine["elapsed_ms"] - passed_ms) <= 1_000
    # A read makes no local session.
    assert not here.process.registry.local_sessions


async def test_a_recording_of_another_process_shows_the_months_limit(
    start_server: StartServer,
) -> None:
    there, here = await start_server(), await start_server()
    for server in (there, here):
        keep_off_month_ends(server)
    body = {"monthly_hours_limit": 2}
    await ask(here, "PUT", "/v1/orgs/acme", json={"timezone": "Asia/Tokyo"})
    await ask(here, "PUT", "/v1/orgs/acme/members/ann", json=body)
    client = await there.login("ann", org="acme")
    await client.ask("start", kind="recording", session_id="s1")
    found = (await ask(here, "GET", f"{S1}?org=acme")).json()
    assert found["limit"] == "member_minutes"
    assert 119 * 60_000 <= found["remaining_ms"] <= 120 * 60_000


async def test_a_paused_session_of_another_process_stands_still(
    start_server: StartServer,
) -> None:
    there, here = await start_server(), await start_server()
    client = await chat(there)
    paused = await client.ask("pause", session_id="s1")
    found = (await ask(here, "GET", S1 + ANN)).json()
    assert found["state"] == "paused"
    assert found["elapsed_ms"] == paused["elapsed_ms"]


async def test_an_ended_session_shows_its_receipt_for_ever(server: TestServer) -> None:
    client = await chat(server)
    advance(server, 90_000)
    stopped = await client.ask("stop", session_id="s1")
    kept = await ask(server, "GET", S1, server.token())
    assert kept.json() == stopped["receipt"]
    await server.flush()
    await grow_cold(server.process.redis)
    recorded = await ask(server, "GET", S1, server.token())
    assert recorded.status_code == 200
    assert recorded.json() == stopped["receipt"]


async def test_a_session_that_redis_lost_is_not_denied(server: TestServer) -> None:
    await chat(server)
    await server.flush()
    await settled(server)
    server.process.registry.local_sessions.clear()
    await grow_cold(server.process.redis)
    for method, path in (("GET", S1 + ANN), ("POST", STOP + ANN)):
        assert_problem(await ask(server, method, path), 503, "unavailable")


async def test_what_is_unknown_or_only_prepared_is_not_there(server: TestServer) -> None:
    rates: RateCard = load_rate_card()
    await server.process.records.prepare_session(
        SessionPrepared(
            "user:ann", "s1", "ann", None, "ann", None, "chat", rates.kinds["chat"], 2**52
        ),
        0,
    )
    for path in (S1, "/v1/sessions/nothing"):
        for method, suffix in (("GET", ""), ("POST", "/stop")):
            response = await ask(server, method, path + suffix, server.token())
            assert_problem(response, 404, "unknown_session")


# --- Stopping ------------------------------------------------------------------------


async def test_a_user_stops_their_session(server: TestServer) -> None:
    client = await chat(server)
    response = await ask(server, "POST", STOP, server.token())
    assert response.status_code == 200
    receipt = response.json()
    assert receipt["reason"] == "client"
    stopped = await client.until("stopped")
    assert stopped["receipt"] == receipt


@pytest.mark.parametrize("role", ["key", "ops"])
async def test_a_backend_stops_as_the_client_and_an_operator_as_one(
    server: TestServer, role: str
) -> None:
    client = await chat(server, org="acme")
    bearer = server.token("olga", scope="ops") if role == "ops" else API_KEY
    response = await ask(server, "POST", f"{STOP}?org=acme", bearer)
    reason = "operator" if role == "ops" else "client"
    assert response.json()["reason"] == reason
    assert (await client.until("stopped"))["reason"] == reason


async def test_a_session_that_has_ended_answers_its_receipt_again(server: TestServer) -> None:
    await chat(server)
    first = await ask(server, "POST", STOP, server.token())
    again = await ask(server, "POST", STOP + ANN, server.token("olga", scope="ops"))
    assert again.status_code == 200
    assert again.json() == first.json()
    assert again.json()["reason"] == "client"


@pytest.mark.usefixtures("patience")
async def test_stops_at_once_all_get_the_one_receipt(server: TestServer) -> None:
    await chat(server)
    responses = await asyncio.gather(*(ask(server, "POST", STOP, server.token()) for _ in range(5)))
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1


async def test_a_stop_by_another_process_reaches_the_socket(start_server: StartServer) -> None:
    there, here = await start_server(), await start_server()
    client = await chat(there)
    response = await ask(here, "POST", STOP, here.token())
    assert response.status_code == 200
    stopped = await client.until("stopped")
    assert stopped["receipt"] == response.json()
    await settled(here)
    await settled(there)
    assert not here.process.registry.local_sessions
    assert not there.process.registry.local_sessions


async def test_an_operators_stop_by_another_process_bills_what_was_used(
    start_server: StartServer, tmp_path: Path
) -> None:
    card = tmp_path / "rates.toml"
    card.write_text(FAST)
    there, here = await start_server(rates=card), await start_server(rates=card)
    here.process.clock._offset_ms = there.process.clock._offset_ms
    client = await chat(there)
    tick = await client.until("tick", lambda tick: tick["elapsed_ms"] > 10_000)
    await there.process.membership.beat()
    await here.process.membership.beat()
    response = await ask(here, "POST", STOP + ANN, here.token("olga", scope="ops"))
    receipt = response.json()
    assert receipt["reason"] == "operator"
    assert receipt["elapsed_ms"] >= tick["elapsed_ms"]
    assert float(receipt["credits"]) > 0
    assert (await client.until("stopped"))["receipt"] == receipt


async def test_a_suspended_session_can_be_stopped(server: TestServer) -> None:
    client = await chat(server)
    await client.close()
    await settled(server)
    response = await ask(server, "POST", STOP + ANN)
    assert response.status_code == 200
    assert response.json()["reason"] == "client"


async def test_a_stop_that_the_store_does_not_answer_is_unavailable(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await chat(server)

    async def away(*_: Any) -> Any:
        raise LiveError("the store is away")

    with monkeypatch.context() as broken:
        broken.setattr(server.process.live, "commit", away)
        assert_problem(await ask(server, "POST", STOP, server.token()), 503, "unavailable")
    # The stop is not lost: the session ends when its store answers.
    assert (await client.until("stopped"))["reason"] == "client"


# --- Who may -----------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [("GET", S1), ("POST", STOP)])
async def test_a_users_token_reaches_that_users_sessions_alone(
    server: TestServer, method: str, path: str
) -> None:
    client = await chat(server, org="acme")
    for bearer in (None, "wrong"):
        assert_problem(await ask(server, method, path, bearer), 401, "unauthenticated")
    # For users of the same organisation, of another and of none, the session does not exist.
    for token in (
        server.token("ben", org="acme"),
        server.token("ann", org="other"),
        server.token("ann"),
    ):
        assert_problem(await ask(server, method, path, token), 404, "unknown_session")
    token = server.token("ann", org="acme")
    for query in ("?org=other", "?user=ben"):
        assert_problem(await ask(server, method, path + query, token), 403, "forbidden")
    # The same holds after the session's end, in Redis and in the record.
    await client.ask("stop", session_id="s1")
    other = server.token("ben", org="acme")
    assert_problem(await ask(server, method, path, other), 404, "unknown_session")
    await server.flush()
    await grow_cold(server.process.redis)
    assert_problem(await ask(server, method, path, other), 404, "unknown_session")
    assert (await ask(server, method, path + "?org=acme", token)).status_code == 200


@pytest.mark.parametrize(("method", "path"), [("GET", S1), ("POST", STOP)])
async def test_a_backend_says_whose_session_it_means(
    server: TestServer, method: str, path: str
) -> None:
    problem = assert_problem(await ask(server, method, path), 400, "bad_message")
    assert "org" in problem["detail"]
    assert "user" in problem["detail"]
    for query in ("?org=acme", "?user=ann"):
        assert_problem(await ask(server, method, path + query), 404, "unknown_session")


async def test_an_id_that_is_none_is_refused(server: TestServer) -> None:
    too_long = "x" * (limits.ID_CHARACTERS_MAX + 1)
    for path in ("/v1/sessions/a b", f"/v1/sessions/{too_long}", f"{S1}?user=a/b"):
        assert_problem(await ask(server, "GET", path), 400, "bad_message")
