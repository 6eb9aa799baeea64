"""Accounts over HTTP: what they have, their ledgers, and grants."""

import asyncio
from typing import Any

import pytest

from storage.live import LiveError
from storage.records import UnavailableError
from tests.fixtures.database import Connection
from tests.fixtures.server import TestServer
from tests.server.api import advance, ask, assert_problem, grant

GRANTS = "/v1/accounts/ann/grants"


async def balance(server: TestServer, path: str = "/v1/accounts/ann") -> str:
    response = await ask(server, "GET", path)
    assert response.status_code == 200, response.text
    return str(response.json()["credits"])


async def ledger(server: TestServer, account_id: str = "ann") -> list[dict[str, Any]]:
    response = await ask(server, "GET", f"/v1/accounts/{account_id}/ledger")
    assert response.status_code == 200, response.text
    entries: list[dict[str, Any]] = response.json()["entries"]
    return entries


# --- Grants ------------------------------------------------------------------------


async def test_a_grant_is_an_entry_and_a_balance(server: TestServer) -> None:
    before_at = server.process.clock.now()
    response = await grant(server, "12.5", "k1", priority=7, expires_at=before_at + 60_000)
    assert response.status_code == 201
    made = response.json()
    assert made["account_id"] == "ann"
    assert made["amount"] == "12.5"
    assert made["credits"] == "12.5"
    assert made["reason"] == "bought"
    assert made["priority"] == 7
    assert made["expires_at"] == before_at + 60_000
    assert before_at <= made["created_at"] <= server.process.clock.now()
    assert "idempotent-replayed" not in response.headers
    assert await balance(server) == "12.5"
    (entry,) = await ledger(server)
    assert entry == {
        "entry_id": made["entry_id"],
        "kind": "grant",
        "amount": "12.5",
        "created_at": made["created_at"],
        "reason": "bought",
        "priority": 7,
        "expires_at": before_at + 60_000,
    }


async def test_a_grant_has_a_priority_and_lasts_unless_it_says_otherwise(
    server: TestServer,
) -> None:
    made = (await grant(server, "1", "k1")).json()
    assert made["priority"] == 100
    assert made["expires_at"] is None


async def test_the_same_key_and_body_give_the_stored_answer_again(server: TestServer) -> None:
    first = await grant(server, "2", "k1")
    await grant(server, "3", "k2")
    again = await grant(server, "2", "k1")
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["content-type"] == "application/json"
    assert await balance(server) == "5"


async def test_the_order_of_a_bodys_fields_says_nothing(server: TestServer) -> None:
    headers = {"Idempotency-Key": "k1", "Content-Type": "application/json"}
    one = b'{"amount": "1", "reason": "bought"}'
    other = b'{"reason":"bought","amount":"1"}'
    first = await ask(server, "POST", GRANTS, headers=headers, content=one)
    again = await ask(server, "POST", GRANTS, headers=headers, content=other)
    assert first.status_code == again.status_code == 201
    assert again.headers["idempotent-replayed"] == "true"


async def test_the_same_key_for_another_request_is_a_mistake(server: TestServer) -> None:
    assert (await grant(server, "2", "k1")).status_code == 201
    assert_problem(await grant(server, "3", "k1"), 422, "idempotency_mismatch")
    assert await balance(server) == "2"


async def test_the_same_key_for_another_account_of_the_organisation_is_a_mistake(
    server: TestServer,
) -> None:
    assert (await grant(server, "2", "k1", f"{GRANTS}?org=acme")).status_code == 201
    other = await grant(server, "2", "k1", "/v1/accounts/ben/grants?org=acme")
    assert_problem(other, 422, "idempotency_mismatch")
    assert await balance(server, "/v1/accounts/ann?org=acme") == "2"
    assert await balance(server, "/v1/accounts/ben?org=acme") == "0"


async def test_keys_of_a_backend_and_of_an_operator_are_not_the_same(server: TestServer) -> None:
    operator = server.token("olga", scope="ops")
    first = (await grant(server, "2", "k1")).json()
    second = (await grant(server, "2", "k1", bearer=operator)).json()
    assert first["entry_id"] != second["entry_id"]
    assert second["credits"] == "4"


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": ""}])
async def test_a_grant_without_a_key_is_refused(
    server: TestServer, headers: dict[str, str]
) -> None:
    body = {"amount": "1", "reason": "bought"}
    response = await ask(server, "POST", GRANTS, headers=headers, json=body)
    assert_problem(response, 400, "idempotency_key_required")
    assert await ledger(server) == []


@pytest.mark.parametrize("key", ["x" * 256, "tab\there"])
async def test_a_key_that_is_none_is_refused(server: TestServer, key: str) -> None:
    assert_problem(await grant(server, "1", key), 400, "bad_message")
    assert await ledger(server) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"amount": "0"}, "amount"),
        ({"amount": "-1"}, "amount"),
        ({"amount": "1.0000001"}, "amount"),
        ({"amount": "1e3"}, "amount"),
        ({"amount": 5}, "amount"),
        ({"amount": "9999999999"}, "amount"),
        ({"reason": ""}, "reason"),
        ({"reason": "x" * 257}, "reason"),
        ({"reason": None}, "reason"),
        ({"priority": 256}, "priority"),
        ({"priority": -1}, "priority"),
        ({"expires_at": -1}, "expires_at"),
        ({"expires_at": 10**30}, "expires_at"),
        ({"expires_at": 1_000}, "expires_at"),
    ],
)
async def test_a_bad_grant_is_refused_by_the_name_of_its_field(
    server: TestServer, fields: dict[str, Any], named: str
) -> None:
    body = {"amount": "1", "reason": "bought", **fields}
    response = await ask(server, "POST", GRANTS, headers={"Idempotency-Key": "k1"}, json=body)
    assert named in assert_problem(response, 400, "bad_message")["detail"]
    assert await ledger(server) == []


async def test_a_request_that_was_no_grant_leaves_its_key_free(server: TestServer) -> None:
    assert_problem(await grant(server, "nothing", "k1"), 400, "bad_message")
    assert (await grant(server, "1", "k1")).status_code == 201


async def test_what_the_work_refuses_stays_refused(server: TestServer) -> None:
    first = await grant(server, "1", "k1", expires_at=1_000)
    again = await grant(server, "1", "k1", expires_at=1_000)
    assert_problem(first, 400, "bad_message")
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["content-type"] == "application/problem+json"


async def test_no_account_grows_beyond_what_is_counted_exactly(server: TestServer) -> None:
    assert (await grant(server, "999999999", "k1")).status_code == 201
    assert (await grant(server, "1", "k2")).status_code == 201
    assert_problem(await grant(server, "0.000001", "k3"), 422, "balance_too_high")
    # What is there already is repeated all the same.
    assert (await grant(server, "1", "k2")).headers["idempotent-replayed"] == "true"
    assert await balance(server) == "1000000000"


async def test_twenty_at_once_under_one_key_make_one_entry(server: TestServer) -> None:
    responses = await asyncio.gather(*(grant(server, "1", "k1") for _ in range(20)))
    made = [response for response in responses if response.status_code == 201]
    waiting = [response for response in responses if response.status_code != 201]
    assert made
    for response in waiting:
        assert_problem(response, 409, "idempotency_under_way")
        assert response.headers["retry-after"] == "1"
    assert len({response.content for response in made}) == 1
    assert len(await ledger(server)) == 1
    assert await balance(server) == "1"


async def test_twenty_at_once_under_keys_of_their_own_make_twenty(server: TestServer) -> None:
    responses = await asyncio.gather(*(grant(server, "1", f"k{n}") for n in range(20)))
    assert {response.status_code for response in responses} == {201}
    assert len(await ledger(server)) == 20
    assert await balance(server) == "20"


# --- Grants and what breaks between ---------------------------------------------------


async def test_a_failure_before_the_entry_frees_the_key(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: Any) -> bool:
        raise UnavailableError("the database is away")

    with monkeypatch.context() as broken:
        broken.setattr(server.process.records, "post_entry", down)
        failed = await grant(server, "1", "k1")
        assert_problem(failed, 503, "unavailable")
        assert failed.headers["retry-after"] == "1"
    assert (await grant(server, "1", "k1")).status_code == 201
    assert await balance(server) == "1"


async def test_a_failure_after_the_entry_does_not_make_a_second_one(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: Any) -> None:
        raise UnavailableError("the database is away")

    with monkeypatch.context() as broken:
        broken.setattr(server.process.records, "finish_idempotent", down)
        assert_problem(await grant(server, "1", "k1"), 503, "unavailable")
    (entry,) = await ledger(server)
    again = await grant(server, "1", "k1")
    assert again.status_code == 201
    assert again.json()["entry_id"] == entry["entry_id"]
    assert again.json()["created_at"] == entry["created_at"]
    assert again.json()["credits"] == "1"
    assert len(await ledger(server)) == 1


async def test_a_grant_that_redis_did_not_hear_of_is_applied_by_the_next_attempt(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await balance(server) == "0"

    async def down(*_: Any) -> bool:
        raise LiveError("the store is away")

    with monkeypatch.context() as broken:
        broken.setattr(server.process.live, "credit", down)
        broken.setattr(server.process.records, "finish_idempotent", down)
        assert_problem(await grant(server, "1", "k1"), 503, "unavailable")
    assert await balance(server) == "0"
    assert (await grant(server, "1", "k1")).json()["credits"] == "1"
    assert len(await ledger(server)) == 1


async def test_work_whose_process_died_is_under_way_for_a_while(
    server: TestServer, connection: Connection
) -> None:
    assert (await grant(server, "1", "k1")).status_code == 201
    await connection.execute("UPDATE idempotency_keys SET status = NULL, response = NULL")
    assert_problem(await grant(server, "1", "k1"), 409, "idempotency_under_way")
    await connection.execute(
        "UPDATE idempotency_keys SET created_at = now() - interval '61 seconds'"
    )
    again = await grant(server, "1", "k1")
    assert again.status_code == 201
    assert "idempotent-replayed" not in again.headers
    assert again.json()["credits"] == "1"
    assert len(await ledger(server)) == 1


async def test_the_ledger_knows_a_key_longer_than_its_answer_is_kept(
    server: TestServer, connection: Connection
) -> None:
    first = await grant(server, "1", "k1")
    await connection.execute("DELETE FROM idempotency_keys")
    again = await grant(server, "1", "k1")
    assert again.json() == first.json()
    await connection.execute("DELETE FROM idempotency_keys")
    assert_problem(await grant(server, "2", "k1"), 422, "idempotency_mismatch")
    assert await balance(server) == "1"


# --- Grants and live sessions ----------------------------------------------------------


async def test_a_grant_reaches_every_socket_of_the_account(server: TestServer) -> None:
    first, second, other = (
        await server.login("ann"),
        await server.login("ann"),
        await server.login("ben"),
    )
    made = (await grant(server, "2.5", "k1")).json()
    for client in (first, second):
        credit = await client.until("credit")
        assert credit["credits"] == "2.5"
        assert credit["delta"] == "2.5"
        assert credit["reason"] == "grant"
        assert credit["entry_id"] == made["entry_id"]
    # Somebody else's socket hears nothing of it before it hears of its own.
    await grant(server, "1", "k1", "/v1/accounts/ben/grants")
    assert (await other.until("credit"))["account_id"] == "ben"


async def test_a_grant_lifts_a_live_sessions_limit(server: TestServer) -> None:
    await grant(server, "0.5", "k1")
    client = await server.login()
    started = await client.ask("start", kind="chat", session_id="s1", tick_ms=250)
    assert started["limit"] == "credits"
    warning = await client.until("limit_warning")
    assert warning["limit"] == "credits"
    assert warning["threshold_ms"] == 300_000
    await grant(server, "100", "k2")
    cleared = await client.until("limit_cleared")
    assert (await client.until("credit"))["credits"] == "100.5"
    assert cleared["limit"] == "credits"
    assert cleared["remaining_ms"] > 100 * 60_000


async def test_a_grant_within_the_grace_lets_the_session_go_on(server: TestServer) -> None:
    await grant(server, "0.5", "k1")
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    # Until the grant is final: the client's next proof of life settles the minute.
    advance(server, 61_000)
    await client.ask("ping")
    advance(server, 40_000)
    await client.until("limit_reached")
    await grant(server, "1", "k2")
    await client.until("credit")
    resumed = await client.ask("resume", session_id="s1")
    assert resumed["type"] == "session"
    assert resumed["state"] == "active"


# --- Reading -----------------------------------------------------------------------


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
    await server.process.redis.flushdb()
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


async def test_a_minute_is_in_the_ledger_once_it_is_written_down(server: TestServer) -> None:
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
