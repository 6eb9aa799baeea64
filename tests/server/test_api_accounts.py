"""Accounts over HTTP: figures, ledgers, and the rights to see them."""

import pytest

from tests.fixtures.engines import grow_cold
from tests.fixtures.server import TestServer
from tests.server.api import advance, ask, assert_problem, balance, grant, ledger

GRANTS = "/v1/accounts/ann/grants"


async def test_an_account_that_nobody_has_written_to_has_nothing(server: TestServer) -> None:
    before_at = server.process.clock.now()
    found = (await ask(server, "GET", "/v1/accounts/nobody")).json()
    assert found.pop("server_time_at") >= before_at
    assert found == {
        "account_id": "nobody",
        "credits": "0",
        "held": "0",
        "reserved": "0",
        "credits_per_minute": "0",
        "ends_at": None,
        "sessions": 0,
    }


async def test_an_account_shows_what_its_sessions_burn_and_when_it_ends(
    server: TestServer,
) -> None:
    await grant(server, "10", "k1")
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    free = (await ask(server, "GET", "/v1/accounts/ann", server.token())).json()
    assert free["credits"] == "10"
    assert free["credits_per_minute"] == "0"
    assert free["sessions"] == 1
    assert float(free["held"]) > 0
    # A minute is free, ten more are paid for.
    assert 659_000 < free["ends_at"] - free["server_time_at"] <= 660_000
    advance(server, 60_500)
    paid = (await ask(server, "GET", "/v1/accounts/ann", server.token())).json()
    assert 9.9 < float(paid["credits"]) < 10
    assert paid["credits_per_minute"] == "1"
    assert abs(paid["ends_at"] - free["ends_at"]) < 1_000
    await client.ask("stop", session_id="s1")
    ended = (await ask(server, "GET", "/v1/accounts/ann", server.token())).json()
    assert ended["sessions"] == 0
    assert ended["held"] == "0"
    assert ended["ends_at"] is None


async def test_a_cold_account_comes_out_of_the_ledger(server: TestServer) -> None:
    await grant(server, "3", "k1")
    await grow_cold(server.process.redis)
    assert await balance(server) == "3"


async def test_a_ledger_is_read_page_by_page(server: TestServer) -> None:
    for number in range(5):
        await grant(server, str(number + 1), f"k{number}")
    pages, query = [], "?limit=2"
    while query:
        page = (await ask(server, "GET", f"/v1/accounts/ann/ledger{query}")).json()
        assert page["account_id"] == "ann"
        pages.append([entry["amount"] for entry in page["entries"]])
        cursor = page["next_cursor"]
        query = f"?limit=2&cursor={cursor}" if cursor else ""
    assert pages == [["5", "4"], ["3", "2"], ["1"]]


async def test_a_flushed_minute_is_in_the_ledger(server: TestServer) -> None:
    await grant(server, "10", "k1")
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    advance(server, 90_000)
    await client.ask("stop", session_id="s1")
    await server.flush()
    newest = (await ledger(server))[0]
    assert newest["kind"] == "burn"
    assert newest["session_id"] == "s1"
    assert newest["minute"] == 1
    assert newest["amount"].startswith("-0.5")
    assert "priority" not in newest


@pytest.mark.parametrize("query", ["cursor=", "cursor=x", "cursor=LTU", "cursor=MDU", "cursor=%00"])
async def test_a_cursor_that_we_did_not_make_is_refused(server: TestServer, query: str) -> None:
    response = await ask(server, "GET", f"/v1/accounts/ann/ledger?{query}")
    assert "cursor" in assert_problem(response, 400, "bad_message")["detail"]


@pytest.mark.parametrize("limit", ["0", "501", "-1", "ten", "1e3", "٣", ""])
async def test_a_page_has_a_size_that_is_one(server: TestServer, limit: str) -> None:
    response = await ask(server, "GET", f"/v1/accounts/ann/ledger?limit={limit}")
    assert "limit" in assert_problem(response, 400, "bad_message")["detail"]


# --- Who may -----------------------------------------------------------------------

CALLS = [
    ("GET", "/v1/accounts/ann"),
    ("GET", "/v1/accounts/ann/ledger"),
    ("POST", GRANTS),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_nobody_gets_in_without_a_good_token(
    server: TestServer, method: str, path: str
) -> None:
    for bearer in (None, "wrong", "a.b.c", server.token() + "x"):
        response = await ask(server, method, path, bearer)
        assert_problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/accounts/ann", "/v1/accounts/ann/ledger"])
async def test_a_users_token_reaches_that_users_account_alone(
    server: TestServer, path: str
) -> None:
    assert (await ask(server, "GET", path, server.token("ann"))).status_code == 200
    for bearer in (server.token("ben"), server.token("ann", account="other")):
        assert_problem(await ask(server, "GET", path, bearer), 403, "forbidden")
    for query in ("?org=acme", "?user=ben"):
        response = await ask(server, "GET", path + query, server.token("ann"))
        assert_problem(response, 403, "forbidden")


async def test_only_backends_and_operators_grant(server: TestServer) -> None:
    assert_problem(await grant(server, "1", "k1", bearer=server.token()), 403, "forbidden")
    operator = server.token("olga", scope="ops")
    assert (await grant(server, "1", "k1", bearer=operator)).status_code == 201


async def test_accounts_of_one_name_are_another_in_each_tenant(server: TestServer) -> None:
    await grant(server, "1", "k1")
    await grant(server, "2", "k1", f"{GRANTS}?org=acme")
    await grant(server, "3", "k1", f"{GRANTS}?user=ben")
    assert await balance(server) == "1"
    assert await balance(server, "/v1/accounts/ann?org=acme") == "2"
    assert await balance(server, "/v1/accounts/ann?user=ben") == "3"
    mine = await ask(server, "GET", "/v1/accounts/ann", server.token("ann", org="acme"))
    assert mine.json()["credits"] == "2"
    shared = await ask(server, "GET", "/v1/accounts/ann", server.token("ben", account="ann"))
    assert shared.json()["credits"] == "3"


@pytest.mark.parametrize(
    "path", ["/v1/accounts/a b", "/v1/accounts/ann?org=a b", "/v1/accounts/" + "x" * 129]
)
async def test_an_id_that_is_none_is_refused(server: TestServer, path: str) -> None:
    assert_problem(await ask(server, "GET", path), 400, "bad_message")
