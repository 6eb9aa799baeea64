"""The list of sessions: owners, order, figures, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from protocol.rate_card import RateCard
from server import limits as server_limits
from storage.redis.live import LiveError
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import advance, ask, assert_problem, grant, settled

CARD = """
[kinds.chat]
credits_per_minute = "1"
increment_seconds = [1, 1]

[kinds.recording]
credits_per_minute = "0"
counts_minutes = true
increment_seconds = [60, 60]
gap = "bill"
"""


@pytest.fixture
async def server(start_server: StartServer, tmp_path: Path) -> TestServer:
    rates = tmp_path / "rates.toml"
    rates.write_text(CARD)
    return await start_server(rates=rates)


async def ran(server: TestServer, session_id: str, ms: int = 30_000, **fields: Any) -> None:
    """A session of ann of acme, which ran and has ended."""
    client = await server.login("ann", org="acme")
    started = await client.ask("start", session_id=session_id, **{"kind": "chat", **fields})
    assert started["type"] == "session", started
    advance(server, ms)
    await client.ask("ping")
    assert (await client.ask("stop", session_id=session_id))["type"] == "stopped"
    await client.close()


async def listed(server: TestServer, query: str = "", bearer: str | None = None) -> Any:
    token = bearer or server.token("ann", org="acme")
    response = await ask(server, "GET", f"/v1/sessions{query}", token)
    assert response.status_code == 200, response.text
    return response.json()


async def ids(server: TestServer, query: str = "", bearer: str | None = None) -> list[str]:
    return [one["session_id"] for one in (await listed(server, query, bearer))["items"]]


async def test_past_and_live_sessions_come_newest_first_with_their_figures(
    server: TestServer,
) -> None:
    assert (await grant(server, "10", "g", "/v1/accounts/ann/grants?org=acme")).status_code == 201
    await ran(server, "first", counterpart_id="advisor", metadata={"topic": "stars"})
    advance(server, 5_000)
    client = await server.login("ann", org="acme")
    await client.ask("start", kind="chat", session_id="second", metadata={"topic": "moon"})
    advance(server, 90_000)
    await client.ask("ping")
    await settled(server)
    await server.flush()
    second, first = (await listed(server))["items"]
    receipt = (await ask(server, "GET", "/v1/sessions/first?org=acme")).json()
    assert first["receipt"] == receipt
    assert (first["state"], first["counterpart_id"], first["limit"]) == ("ended", "advisor", None)
    assert (first["elapsed_ms"], first["credits"]) == (receipt["elapsed_ms"], receipt["credits"])
    assert first["ended_at"] == receipt["ended_at"]
    live = (await ask(server, "GET", "/v1/sessions/second?org=acme")).json()
    assert (second["state"], second["receipt"], second["ended_at"]) == ("active", None, None)
    assert second["started_at"] == live["started_at"]
    assert 90_000 <= second["elapsed_ms"] <= live["elapsed_ms"]
    assert float(second["credits"]) == pytest.approx(1.5, abs=0.1)
    # A backend's metadata is no word for the browser.
    assert "metadata" not in second
    (found,) = (await listed(server, "?org=acme&user=ann&limit=1", "key-of-a-backend-in-tests"))[
        "items"
    ]
    assert (found["metadata"], found["account_id"]) == ({"topic": "moon"}, "ann")


async def test_end_that_is_on_its_way_to_the_record_shows_its_receipt(server: TestServer) -> None:
    await grant(server, "10", "g", "/v1/accounts/ann/grants?org=acme")
    client = await server.login("ann", org="acme")
    await client.ask("start", kind="chat", session_id="s1")
    await server.flush()
    stopped = await client.ask("stop", session_id="s1")
    (found,) = (await listed(server))["items"]
    assert (found["state"], found["receipt"]) == ("ended", stopped["receipt"])


async def test_record_answers_while_redis_is_away(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grant(server, "10", "g", "/v1/accounts/ann/grants?org=acme")
    await ran(server, "past")
    advance(server, 1_000)
    client = await server.login("ann", org="acme")
    await client.ask("start", kind="chat", session_id="now")
    await server.flush()

    async def away(*_: object) -> None:
        raise LiveError("away")

    monkeypatch.setattr(server.process.live, "sessions", away)
    now, past = (await listed(server))["items"]
    assert (now["state"], now["elapsed_ms"], now["credits"]) == (None, None, None)
    assert past["receipt"]["session_id"] == "past"


async def test_filters_and_pages_fit_together(server: TestServer) -> None:
    await grant(server, "10", "g", "/v1/accounts/ann/grants?org=acme")
    began = []
    for number in range(5):
        began.append(server.process.clock.now())
        kind = "recording" if number == 2 else "chat"
        counterpart_id = "advisor" if number % 2 else None
        await ran(server, f"s{number}", kind=kind, counterpart_id=counterpart_id)
        advance(server, 1_000)
    await server.flush()
    assert await ids(server) == ["s4", "s3", "s2", "s1", "s0"]
    assert await ids(server, "?kind=recording") == ["s2"]
    assert await ids(server, "?counterpart=advisor") == ["s3", "s1"]
    assert await ids(server, "?counterpart=advisor&kind=recording") == []
    assert await ids(server, f"?from={began[1]}&to={began[3]}") == ["s2", "s1"]
    seen: list[str] = []
    query: str | None = "?limit=2"
    while query is not None:
        page = await listed(server, query)
        assert len(page["items"]) <= 2
        seen += [one["session_id"] for one in page["items"]]
        cursor = page["next_cursor"]
        query = f"?limit=2&cursor={cursor}" if cursor else None
    assert seen == ["s4", "s3", "s2", "s1", "s0"]


async def test_users_see_their_own_and_backends_whom_they_name(server: TestServer) -> None:
    for user, claims in (("ann", {"org": "acme"}), ("ben", {"org": "acme"}), ("ann", {})):
        owner = f"{user}-{claims.get('org', 'alone')}"
        account = f"/v1/accounts/{user}/grants?{'org=acme' if claims else f'user={user}'}"
        await grant(server, "10", owner, account)
        client = await server.login(user, **claims)
        assert (await client.ask("start", kind="chat", session_id=owner))["type"] == "session"
        advance(server, 10)
    await server.flush()
    assert await ids(server) == ["ann-acme"]
    assert await ids(server, "?org=acme&user=ann") == ["ann-acme"]
    assert await ids(server, "", server.token("ann")) == ["ann-alone"]
    key = "key-of-a-backend-in-tests"
    operator = server.token("olga", scope="ops")
    for bearer in (key, operator):
        assert await ids(server, "?org=acme", bearer) == ["ben-acme", "ann-acme"]
        assert await ids(server, "?org=acme&user=ben", bearer) == ["ben-acme"]
        assert await ids(server, "?user=ann", bearer) == ["ann-alone"]
    assert_problem(await ask(server, "GET", "/v1/sessions"), 400, "bad_message")
    token = server.token("ann", org="acme")
    for query in ("?user=ben", "?org=other", "?org=acme&user=ben"):
        assert_problem(await ask(server, "GET", f"/v1/sessions{query}", token), 403, "forbidden")
    assert_problem(await ask(server, "GET", "/v1/sessions", None), 401, "unauthenticated")


@pytest.mark.parametrize(
    "query",
    [
        "kind=a/b", "kind=", "counterpart=a%20b", "user=%00", "from=x", "from=-1", "from=1.5",
        "from=", "to=2026-11-30", "from=9999999999999999", "from=2&to=1", "from=2&to=2",
        "limit=0", f"limit={server_limits.SESSIONS_PER_PAGE_MAX + 1}", "cursor=", "cursor=x",
        "cursor=WzEsInMiXQ%3D%3D", "cursor=WzFd", "org=%7B",
    ],
)  # fmt: skip
async def test_bad_filters_have_a_stable_code(server: TestServer, query: str) -> None:
    response = await ask(server, "GET", f"/v1/sessions?{query}", server.token("ann", org="acme"))
    problem = assert_problem(response, 400, "bad_message")
    assert query.partition("=")[0] in problem["detail"] or query == "from=2&to=1"


async def test_kind_that_left_the_rate_card_still_has_its_sessions(server: TestServer) -> None:
    await ran(server, "old", kind="recording")
    await server.flush()
    kinds = {"chat": server.process.rates.kinds["chat"]}
    server.process.rates = RateCard(kinds=kinds, operations={}, tiers={})
    assert await ids(server, "?kind=recording") == ["old"]
