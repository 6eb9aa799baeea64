"""Grants over HTTP are made once per key and reach sessions immediately.

Failures change nothing in that.
"""

import asyncio
from typing import Any

import pytest

from storage.postgres.records import UnavailableError
from storage.redis.live import LiveError
from tests.fixtures.database import Connection
from tests.fixtures.server import TestServer
from tests.server.api import advance, ask, assert_problem, balance, grant, ledger

GRANTS = "/v1/accounts/ann/grants"


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


async def test_the_same_key_for_another_account_is_a_mistake(
    server: TestServer,
) -> None:
    assert (await grant(server, "2", "k1", f"{GRANTS}?org=acme")).status_code == 201
    other = await grant(server, "2", "k1", "/v1/accounts/ben/grants?org=acme")
    assert_problem(other, 422, "idempotency_mismatch")
    assert await balance(server, "/v1/accounts/ann?org=acme") == "2"
    assert await balance(server, "/v1/accounts/ben?org=acme") == "0"


async def test_keys_of_backend_and_operator_are_separate(server: TestServer) -> None:
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
async def test_the_refusal_of_a_bad_grant_names_the_field(
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
    # An existing grant is repeated all the same.
    assert (await grant(server, "1", "k2")).headers["idempotent-replayed"] == "true"
    assert await balance(server) == "1000000000"


async def test_refused_grant_is_not_written_late(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first statement comes after the second request's refusal."""
    late: list[Any] = []
    records = server.process.records

    async def lost(*arguments: Any) -> bool:
        late.append(arguments)
        raise UnavailableError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(records, "post_entry", lost)
        assert_problem(await grant(server, "1", "k1"), 503, "unavailable")
    assert (await grant(server, "1000000000", "k2")).status_code == 201
    assert_problem(await grant(server, "1", "k1"), 422, "balance_too_high")
    spent = {"amount": "10"}
    headers = {"Idempotency-Key": "k3"}
    path = "/v1/accounts/ann/spend"
    assert (await ask(server, "POST", path, headers=headers, json=spent)).status_code == 201
    (arguments,) = late
    assert not await records.post_entry(*arguments)
    assert await balance(server) == "999999990"
    assert_problem(await grant(server, "1", "k1"), 422, "balance_too_high")


async def test_grant_whose_key_was_taken_over_is_under_way(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt that holds the key now decides."""
    records = server.process.records
    real = records.post_entry

    async def late(*arguments: Any) -> bool:
        claim = arguments[-1]
        key = ("user:ann", claim.scope, claim.key)
        digest = "SELECT fingerprint FROM idempotency_keys WHERE key = $1"
        fingerprint = await records._run(lambda one: one.fetchval(digest, claim.key))
        await records.begin_idempotent(*key, fingerprint, takeover_ms=0)
        return await real(*arguments)

    monkeypatch.setattr(records, "post_entry", late)
    assert_problem(await grant(server, "1", "k1"), 409, "idempotency_under_way")
    assert await ledger(server) == []


@pytest.mark.usefixtures("patience")
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


@pytest.mark.usefixtures("patience")
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


async def test_the_next_attempt_applies_a_grant_that_redis_missed(
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
    # A message about ann's account would reach ben's socket before the one about his own.
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
    cleared, credit = await client.until_each("limit_cleared", "credit")
    assert credit["credits"] == "100.5"
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
