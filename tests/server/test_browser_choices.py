"""What a browser may decide about its session, and only backends may.

Free time of the scope ``pair`` begins anew with each counterpart: a browser that names them
itself would have free time without end. The kind says the price: a token may list kinds.
"""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.server import StartServer, TestServer
from tests.server.api import advance, ask, assert_problem
from tests.server.minutes import minute_at

RATES = """
[kinds.advice]
credits_per_minute = "6"
free_seconds = 60
free_scope = "pair"

[kinds.cheap]
credits_per_minute = "1"

[kinds.recording]
credits_per_minute = "0"
counts_minutes = true

[kinds.dictation]
credits_per_minute = "0"
counts_minutes = true
"""
WAYS = ("socket", "heartbeat", "time-tracking")
"""All ways in which a user's token starts a session that the server meters."""


@pytest.fixture
async def server(start_server: StartServer, tmp_path: Path) -> TestServer:
    rates = tmp_path / "rates.toml"
    rates.write_text(RATES)
    server = await start_server(rates=rates)
    await server.grant(100_000_000)
    return server


async def start(
    server: TestServer,
    way: str,
    session_id: str,
    counterpart_id: str | None = None,
    kind: str = "advice",
    **claims: Any,
) -> httpx.Response:
    """Starts a session as a browser; returns the session or the error."""
    bearer, body = server.token(**claims), {"kind": kind}
    if way == "socket":
        client = await server.connect()
        await client.ask("auth", token=bearer)
        fields = {"counterpart_id": counterpart_id} if counterpart_id else {}
        said = await client.ask("start", session_id=session_id, **body, **fields)
        if said["type"] == "error":
            return httpx.Response(403, json=said)
    else:
        path = f"/v1/sessions/{session_id}/heartbeat"
        name = "counterpart_id"
        if way == "time-tracking":
            path, name = f"/api/time-tracking/{session_id}/heartbeat", "advisorId"
        body |= {name: counterpart_id} if counterpart_id else {}
        response = await ask(server, "POST", path, bearer, json=body)
        if response.status_code != 200:
            return response
    return await ask(server, "GET", f"/v1/sessions/{session_id}", bearer)


async def free_of(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    return int(response.json()["free_remaining_ms"])


async def prepare(server: TestServer, session_id: str, **fields: Any) -> httpx.Response:
    body = {"session_id": session_id, "kind": "advice", "user_id": "ann", **fields}
    return await ask(server, "POST", "/v1/sessions", json=body)


@pytest.mark.parametrize("way", WAYS)
async def test_invented_counterpart_gives_no_free_time(server: TestServer, way: str) -> None:
    for number, counterpart_id in enumerate((None, "bob", "bob", "bob2", "ann")):
        started = await start(server, way, f"s{number}", counterpart_id)
        assert await free_of(started) == 0
        assert started.json()["paid"] is True


@pytest.mark.parametrize("way", WAYS)
async def test_listed_counterpart_gives_its_free_time_once(server: TestServer, way: str) -> None:
    claims: dict[str, Any] = {"counterparts": ["bob", "eve"]}
    assert await free_of(await start(server, way, "s1", "bob", **claims)) > 50_000
    advance(server, 40_000)
    await ask(server, "POST", "/v1/sessions/s1/stop", server.token())
    assert 0 < await free_of(await start(server, way, "s2", "bob", **claims)) <= 20_000
    assert await free_of(await start(server, way, "s3", "eve", **claims)) > 50_000
    # A session without a counterpart has no free time.
    assert await free_of(await start(server, way, "s4", None, **claims)) == 0
    assert await free_of(await start(server, way, "s5", "bob", counterparts=["bob"])) <= 20_000
    refused = await start(server, way, "s6", "mallory", **claims)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    refused = await start(server, way, "s6", "bob", counterparts=[])
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("way", WAYS)
async def test_prepared_counterpart_gives_its_free_time(server: TestServer, way: str) -> None:
    assert (await prepare(server, "s1", counterpart_id="bob")).status_code == 201
    assert await free_of(await start(server, way, "s1", "mallory")) > 50_000
    # Without one there is nothing to share, and a browser adds none.
    refused = await prepare(server, "s2")
    assert "counterpart_id" in assert_problem(refused, 400, "bad_message")["detail"]
    assert (await prepare(server, "s2", free_seconds=0)).status_code == 201
    assert await free_of(await start(server, way, "s2", "mallory")) == 0
    # A token's lists also apply to prepared sessions.
    assert (await prepare(server, "s3", counterpart_id="bob")).status_code == 201
    refused = await start(server, way, "s3", counterparts=["eve"])
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("way", WAYS)
async def test_token_starts_only_its_kinds(server: TestServer, way: str) -> None:
    for kinds in (["advice"], []):
        refused = await start(server, way, "s1", kind="cheap", kinds=kinds)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await start(server, way, "s1", kind="advice", kinds=["advice"])).status_code == 200
    assert (await prepare(server, "s2", kind="cheap")).status_code == 201
    # A prepared session has its own kind, whatever the browser sends.
    refused = await start(server, way, "s2", kind="advice", kinds=["advice"])
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await start(server, way, "s2", kind="advice", kinds=["cheap"])).status_code == 200


async def test_token_reports_only_its_kinds(server: TestServer) -> None:
    minute = {"seconds_recorded": 60, "minute_timestamp": minute_at(server)}

    async def report(session_id: str, kind: str | None, kinds: list[str]) -> httpx.Response:
        body = {"session_id": session_id, **minute, **({"kind": kind} if kind else {})}
        return await ask(
            server, "POST", "/api/usage/track-minute", server.token(kinds=kinds), json=body
        )

    for kind in (None, "recording"):
        assert_problem(await report("r1", kind, ["dictation"]), 403, "forbidden")
    assert (await report("r1", "dictation", ["dictation"])).status_code == 200
    assert (await prepare(server, "r2", kind="recording")).status_code == 201
    assert_problem(await report("r2", "dictation", ["dictation"]), 403, "forbidden")
