"""Live sessions of all processes, by HTTP."""

import asyncio
import csv
import io
from typing import Any

import pytest

from server.ops.live_answers import LiveSessionRow
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask, assert_problem

OPERATOR = {"scope": "ops:read"}


async def live(server: TestServer, **query: Any) -> dict[str, Any]:
    """A page of live sessions, as an operator gets it."""
    token = server.token("olga", **OPERATOR)
    answer = await ask(server, "GET", "/v1/ops/sessions", token, params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def names(page: dict[str, Any]) -> list[str]:
    """The ids of a page's sessions."""
    return [row["session_id"] for row in page["items"]]


async def begin(server: TestServer, user_id: str, session_id: str, **more: Any) -> Any:
    """A socket of a user with a session."""
    org = more.pop("org", None)
    client = await server.login(user_id, **({"org": org} if org else {}))
    answer = await client.ask("start", session_id=session_id, **{"kind": "chat", **more})
    assert answer["type"] == "session", answer
    return client


async def shown(server: TestServer, wanted: int, **query: Any) -> dict[str, Any]:
    """The page once it has this many sessions."""
    async with asyncio.timeout(10):
        while True:
            page = await live(server, **query)
            if page["total"] == wanted:
                return page
            await asyncio.sleep(0.05)


async def test_an_operator_sees_the_sessions_of_all_tenants_and_processes(
    server: TestServer, start_server: StartServer
) -> None:
    other = await start_server()
    await server.grant(60_000_000)
    await begin(server, "ann", "chat-1", metadata={"room": "blue", "tags": ["test"]})
    await begin(other, "ben", "chat-1", org="acme")
    page = await shown(server, 2)
    rows = {row["user_id"]: row for row in page["items"]}
    assert set(rows["ann"]) == set(LiveSessionRow.__struct_fields__)
    assert rows["ann"]["nodes"] == [server.process.node]
    assert rows["ann"]["metadata"] == {"room": "blue", "tags": ["test"]}
    assert rows["ben"]["nodes"] == [other.process.node]
    assert rows["ben"]["org_id"] == "acme"
    assert names(await live(server, q="user:ann")) == ["chat-1"]
    assert names(await live(other, q="-org:acme state:active")) == ["chat-1"]
    assert (await live(server, q="tag:test"))["total"] == 1
    assert (await live(server, q="user:eve"))["items"] == []


async def test_an_ended_session_goes(server: TestServer) -> None:
    client = await begin(server, "ann", "chat-1")
    await begin(server, "ben", "chat-2")
    await shown(server, 2)
    await client.ask("stop", session_id="chat-1")
    assert names(await shown(server, 1)) == ["chat-2"]


async def test_a_paused_session_is_shown_as_paused(server: TestServer) -> None:
    client = await begin(server, "ann", "chat-1")
    await shown(server, 1)
    await client.ask("pause", session_id="chat-1")
    page = await shown(server, 1, q="state:paused")
    assert page["items"][0]["pace"] == 0


async def test_pages_have_every_session_once_at_one_instant(server: TestServer) -> None:
    client = await server.login("ann")
    for number in range(5):
        await client.ask("start", session_id=f"s{number}", kind="chat")
    await shown(server, 5)
    for sort in ("elapsed_ms", "-credits", "-started_at", "limit"):
        page = await live(server, sort=sort, limit=2)
        found, instants = names(page), {row["as_of_at"] for row in page["items"]}
        while page["next_cursor"]:
            page = await live(server, sort=sort, limit=2, cursor=page["next_cursor"])
            found += names(page)
            instants |= {row["as_of_at"] for row in page["items"]}
        assert sorted(found) == [f"s{number}" for number in range(5)], sort
        assert len(instants) == 1


async def test_a_filter_that_cannot_be_read_is_named(server: TestServer) -> None:
    token = server.token("olga", **OPERATOR)
    path = "/v1/ops/sessions"
    answer = await ask(server, "GET", path, token, params={"q": "user:ann colour:red"})
    assert_problem(answer, 400, "bad_filter")
    assert (answer.json()["token"], answer.json()["at"]) == ("colour:red", 9)


@pytest.mark.parametrize("cursor", ["", "x", "WzFd"])
async def test_a_foreign_cursor_is_refused(server: TestServer, cursor: str) -> None:
    token = server.token("olga", **OPERATOR)
    answer = await ask(server, "GET", "/v1/ops/sessions", token, params={"cursor": cursor})
    assert_problem(answer, 400, "bad_message")


async def test_a_cursor_of_another_sort_is_refused(server: TestServer) -> None:
    client = await server.login("ann")
    for number in range(2):
        await client.ask("start", session_id=f"s{number}", kind="chat")
    await shown(server, 2)
    cursor = (await live(server, limit=1))["next_cursor"]
    token = server.token("olga", **OPERATOR)
    query = {"cursor": cursor, "sort": "credits"}
    answer = await ask(server, "GET", "/v1/ops/sessions", token, params=query)
    assert_problem(answer, 400, "bad_message")


async def test_csv_has_the_rows_of_the_list(server: TestServer) -> None:
    await begin(server, "ann", "chat-1", metadata={"note": "=1+1"})
    await shown(server, 1)
    token = server.token("olga", **OPERATOR)
    answer = await ask(server, "GET", "/v1/ops/sessions.csv", token, params={"q": "user:ann"})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["session_id"] for row in rows] == ["chat-1"]
    assert rows[0]["metadata"] == '{"note":"=1+1"}'
    assert rows[0]["as_of_at"].endswith("Z")


async def test_the_summary_adds_up_the_processes(
    server: TestServer, start_server: StartServer
) -> None:
    other = await start_server()
    await begin(server, "ann", "chat-1")
    await begin(other, "ben", "chat-2")
    token = server.token("olga", **OPERATOR)
    for one in (server, other):
        await one.app.state.feed.sampler.sample()
    async with asyncio.timeout(10):
        while True:
            found = (await ask(server, "GET", "/v1/ops/summary", token)).json()
            if found["now"]["sessions"] == {"chat": {"active": 2}}:
                break
            await asyncio.sleep(0.05)
    assert found["now"]["nodes"] == 2
    assert found["now"]["sockets"] == 2
    assert found["history"][-1]["at"] >= found["history"][0]["at"]


async def test_processes_are_listed_with_their_figures(server: TestServer) -> None:
    await server.app.state.feed.sampler.sample()
    token = server.token("olga", **OPERATOR)
    found = (await ask(server, "GET", "/v1/ops/nodes", token)).json()
    (row,) = found["items"]
    assert row["node"] == server.process.node
    assert row["silent_ms"] < 5_000
    assert row["figures"]["nodes"] == 1
