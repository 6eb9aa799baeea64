"""Prepared sessions: the backend's price, which the browser cannot change."""

from typing import Any, Literal

import httpx
import pytest

from server import limits as server_limits
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import advance, ask, assert_problem
from tests.server.minutes import keep_off_month_ends, track

BODY = {
    "session_id": "chat-1",
    "kind": "chat",
    "user_id": "ann",
    "counterpart_id": "advisor-7",
    "credits_per_minute": "3.5",
    "free_seconds": 0,
    "max_session_seconds": 600,
}


async def test_the_browser_takes_the_backends_terms(server: TestServer) -> None:
    await server.grant(10_000_000)
    prepared = await ask(server, "POST", "/v1/sessions", json=BODY)
    assert prepared.status_code == 201, prepared.text
    assert prepared.json()["credits_per_minute"] == "3.5"
    again = await ask(server, "POST", "/v1/sessions", json=BODY)
    assert (again.status_code, again.json()) == (200, prepared.json())

    client = await server.login()
    session = await client.ask(
        "start", kind="recording", session_id="chat-1", counterpart_id="somebody-else"
    )
    assert session["kind"] == "chat"
    assert session["credits_per_minute"] == "3.5"
    assert session["free_remaining_ms"] == 0
    assert {part["limit"] for part in session["limits"]} == {"credits", "session_cap"}
    stopped = await client.ask("stop", session_id="chat-1")
    assert stopped["receipt"]["counterpart_id"] == "advisor-7"


async def test_only_the_named_user_may_start_a_prepared_session(server: TestServer) -> None:
    await ask(server, "POST", "/v1/sessions", json=BODY)
    # Another user's sessions have their own names: without an organisation, a tenant each.
    ben = await server.login("ben")
    own = await ben.ask("start", kind="chat", session_id="chat-1")
    assert own["credits_per_minute"] == "1"
    org = {**BODY, "session_id": "chat-2", "free_seconds": 60}
    await ask(server, "POST", "/v1/sessions?org=acme", json=org)
    ben = await server.login("ben", org="acme")
    refused = await ben.ask("start", kind="chat", session_id="chat-2")
    assert refused["code"] == "forbidden"
    ann = await server.login("ann", org="acme")
    assert (await ann.ask("start", kind="chat", session_id="chat-2"))["state"] == "active"


async def test_what_cannot_be_prepared(server: TestServer) -> None:
    await ask(server, "POST", "/v1/sessions", json=BODY)
    other = {**BODY, "credits_per_minute": "1"}
    assert_problem(await ask(server, "POST", "/v1/sessions", json=other), 409, "session_exists")
    for change in (
        {"kind": "nothing"},
        {"credits_per_minute": "-1"},
        {"credits_per_minute": "10000.1"},
        {"free_seconds": "x"},
        {"free_seconds": 0.5},
        {"free_seconds": 1e300},
        {"free_seconds": -1},
        {"session_id": "a/b"},
        {"user_id": ""},
        {"metadata": {"much": "x" * 3000}},
    ):
        response = await ask(server, "POST", "/v1/sessions", json={**BODY, **change})
        assert response.status_code in (400, 422), change
    assert_problem(
        await ask(server, "POST", "/v1/sessions", server.token(), json=BODY), 403, "forbidden"
    )


async def test_a_whole_number_may_be_written_with_a_point(server: TestServer) -> None:
    body = {**BODY, "session_id": "chat-3", "free_seconds": 60.0}
    response = await ask(server, "POST", "/v1/sessions", json=body)
    assert response.status_code == 201, response.text
    assert response.json()["free_seconds"] == 60


async def test_only_prepared_sessions_start_where_that_is_set(start_server: StartServer) -> None:
    server = await start_server(start="prepared")
    await server.grant(10_000_000)
    client = await server.login()
    refused = await client.ask("start", kind="chat", session_id="chat-1")
    assert refused["code"] == "forbidden"
    await ask(server, "POST", "/v1/sessions", json=BODY)
    assert (await client.ask("start", kind="chat", session_id="chat-1"))["state"] == "active"


@pytest.mark.parametrize(
    "path", ["/v1/sessions/chat-1/heartbeat", "/api/time-tracking/chat-1/heartbeat"]
)
async def test_no_other_way_leads_past_a_preparation(start_server: StartServer, path: str) -> None:
    server = await start_server(start="prepared")
    await server.grant(10_000_000)
    token = server.token()
    # The server does not even read the browser's price.
    wanted = {"kind": "recording", "credits_per_minute": "0", "free_seconds": 9_999}
    assert_problem(await ask(server, "POST", path, token, json=wanted), 403, "forbidden")
    minute = {
        "session_id": "rec-1",
        "seconds_recorded": 60,
        "minute_timestamp": server.process.clock.now(),
    }
    response = await ask(server, "POST", "/api/usage/track-minute", token, json=minute)
    assert_problem(response, 403, "forbidden")
    await ask(server, "POST", "/v1/sessions", json=BODY)
    assert (await ask(server, "POST", path, token, json=wanted)).status_code == 200
    advance(server, 40_000)
    session = (await ask(server, "GET", "/v1/sessions/chat-1", token)).json()
    assert (session["kind"], session["credits_per_minute"]) == ("chat", "3.5")
    assert (session["free_remaining_ms"], session["paid"]) == (0, True)
    # Nor can another user of the organisation, or another start, change it later.
    client = await server.login()
    joined = await client.ask("start", kind="recording", session_id="chat-1")
    assert joined["credits_per_minute"] == "3.5"
    other = {**BODY, "credits_per_minute": "0.1"}
    assert_problem(await ask(server, "POST", "/v1/sessions", json=other), 409, "session_exists")
    receipt = (await client.ask("stop", session_id="chat-1"))["receipt"]
    assert float(receipt["credits"]) >= 3.5 * 40 / 60


async def test_a_prepared_session_ends_at_its_cap(server: TestServer) -> None:
    await server.grant(100_000_000)
    await ask(server, "POST", "/v1/sessions", json={**BODY, "max_session_seconds": 30})
    client = await server.login()
    session = await client.ask("start", kind="chat", session_id="chat-1")
    assert session["limit"] == "session_cap"
    assert 20_000 < session["remaining_ms"] <= 30_000
    advance(server, 31_000)
    reached = await client.until("limit_reached")
    assert reached["limit"] == "session_cap"
    assert (await client.ask("resume", session_id="chat-1"))["code"] == "limit_reached"
    advance(server, 16_000)
    receipt = (await client.until("stopped"))["receipt"]
    assert (receipt["elapsed_ms"], receipt["credits"]) == (30_000, "1.75")


# --- Its end ---------------------------------------------------------------------------


async def prepare(server: TestServer, **changes: Any) -> httpx.Response:
    return await ask(server, "POST", "/v1/sessions", json={**BODY, **changes})


async def test_a_preparation_expires_after_a_day(server: TestServer) -> None:
    now_ms = server.process.clock.now()
    expires_at = (await prepare(server)).json()["expires_at"]
    assert 0 <= expires_at - now_ms - server_limits.PREPARED_SESSION_KEPT_MS < 60_000
    # The same preparation again is the first one, if it names no end or the same end.
    for changes in ({}, {"expires_at": expires_at}):
        again = await prepare(server, **changes)
        assert (again.status_code, again.json()["expires_at"]) == (200, expires_at)
    other = await prepare(server, expires_at=expires_at + 1)
    assert_problem(other, 409, "session_exists")


@pytest.mark.parametrize("expires_at", [0, -1, "soon", 1.5, True, 2**60])
async def test_an_end_that_is_none(server: TestServer, expires_at: object) -> None:
    refused = await prepare(server, expires_at=expires_at)
    assert "expires_at" in assert_problem(refused, 400, "bad_message")["detail"]
    now_ms = server.process.clock.now()
    for late_at in (now_ms - 1, now_ms + server_limits.PREPARED_SESSION_KEPT_MS_MAX + 60_000):
        refused = await prepare(server, expires_at=late_at)
        assert "expires_at" in assert_problem(refused, 400, "bad_message")["detail"]


@pytest.mark.parametrize("start", ["open", "prepared"])
async def test_an_expired_preparation_starts_nothing(
    start_server: StartServer, start: Literal["open", "prepared"]
) -> None:
    server = await start_server(start=start)
    keep_off_month_ends(server)
    await server.grant(10_000_000)
    now_ms = server.process.clock.now()
    await prepare(server, expires_at=now_ms + 60_000)
    await prepare(server, session_id="rec-1", kind="recording", expires_at=now_ms + 60_000)
    advance(server, 60_001)
    client, token = await server.login(), server.token()
    refused = await client.ask("start", kind="chat", session_id="chat-1")
    assert (refused["code"], refused["retryable"]) == ("forbidden", False)
    assert "expired" in refused["message"]
    for path in ("/v1/sessions/chat-1/heartbeat", "/api/time-tracking/chat-1/heartbeat"):
        response = await ask(server, "POST", path, token, json={"kind": "chat"})
        assert_problem(response, 403, "forbidden")
    assert_problem(await track(server, bearer=token), 403, "forbidden")
    shown = await ask(server, "GET", "/api/time-tracking/chat-1", token)
    assert shown.json()["state"] == "none"
    # The session may be prepared again as another one, and not twice.
    again = await prepare(server, credits_per_minute="5")
    assert (again.status_code, again.json()["credits_per_minute"]) == (201, "5")
    assert_problem(await prepare(server), 409, "session_exists")
    started = await client.ask("start", kind="chat", session_id="chat-1")
    assert started["credits_per_minute"] == "5"


async def test_a_session_outlives_its_preparation(server: TestServer) -> None:
    await server.grant(10_000_000)
    await prepare(server, expires_at=server.process.clock.now() + 60_000)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    await server.flush()
    advance(server, 60_001)
    await client.ask("ping")
    assert_problem(await prepare(server), 409, "session_exists")
    joined = await (await server.login()).ask("start", kind="chat", session_id="chat-1")
    assert joined["credits_per_minute"] == "3.5"
