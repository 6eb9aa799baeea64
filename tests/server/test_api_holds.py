"""Holds over HTTP: opened once a key, then posted, voided or expired."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from server import limits as server_limits
from storage import limits as storage_limits
from storage.postgres.records import UnavailableError
from tests.fixtures.database import Connection
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import advance, ask, assert_problem, balance, grant, ledger
from tests.server.charging import card, post, spend
from tests.server.test_api_spends import audited

HOLDS = "/v1/accounts/ann/holds"


@pytest.fixture
async def server(start_server: StartServer, tmp_path: Path) -> TestServer:
    """A server with operations on its rate card.

    An account has ten credits.
    """
    server = await start_server(rates=card(tmp_path))
    assert (await grant(server, "10", "g1")).status_code == 201
    return server


async def opened(server: TestServer, key: str = "h1", path: str = HOLDS, **body: Any) -> Any:
    """A hold that was just opened."""
    response = await post(server, path, key, body)
    assert response.status_code == 201, response.text
    return response.json()


async def reserved(server: TestServer) -> str:
    """What is held for operations."""
    return str((await ask(server, "GET", "/v1/accounts/ann")).json()["reserved"])


async def test_a_hold_is_posted_in_part(server: TestServer, connection: Connection) -> None:
    before_at = server.process.clock.now()
    hold = await opened(
        server, operation="voice_creation", ttl_ms=60_000, metadata={"service": "openai"}
    )
    assert hold["created_at"] >= before_at
    assert hold["expires_at"] == hold["created_at"] + 60_000
    assert hold == {
        "hold_id": hold["hold_id"],
        "account_id": "ann",
        "state": "open",
        "amount": "5",
        "posted": "0",
        "operation": "voice_creation",
        "user_id": "ann",
        "created_at": hold["created_at"],
        "expires_at": hold["expires_at"],
        "metadata": {"service": "openai"},
        "credits": "10",
    }
    # Held credits are still in the balance, and reserved for this hold.
    assert (await balance(server), await reserved(server)) == ("10", "5")
    refused = await spend(server, "k1", amount="5.5")
    assert assert_problem(refused, 402, "insufficient_credits")["missing"] == "0.5"

    path = f"/v1/holds/{hold['hold_id']}"
    assert (await ask(server, "GET", path)).json() == hold
    body = {"amount": "3.25", "metadata": {"tokens_used": 4_000}}
    posted = await post(server, f"{path}/post", "p1", body)
    assert posted.status_code == 200
    metadata = {"service": "openai", "tokens_used": 4_000}
    closed = {"state": "posted", "posted": "3.25", "metadata": metadata, "credits": "6.75"}
    assert posted.json() == {**hold, **closed}
    assert (await ask(server, "GET", path)).json() == posted.json()
    assert await reserved(server) == "0"
    entry = (await ledger(server))[0]
    assert entry["entry_id"] == f"post:{hold['hold_id']}"
    assert (entry["kind"], entry["amount"], entry["metadata"]) == ("post", "-3.25", metadata)
    # Redis forgets a hold some time after its end; the record keeps it.
    async for key in server.process.live.redis.scan_iter(f"*{hold['hold_id']}*"):
        await server.process.live.redis.delete(key)
    assert (await ask(server, "GET", path)).json() == posted.json()
    row = await connection.fetchrow("SELECT * FROM operations_usage")
    assert row is not None
    assert (row["service"], row["tokens_used"], row["amount_micros"]) == (
        "openai",
        4_000,
        3_250_000,
    )
    await audited(server)


@pytest.mark.parametrize("body", [None, {}, {"amount": None}, {"metadata": {"n": 1}}])
async def test_hold_is_posted_only_with_amount(
    server: TestServer, body: dict[str, Any] | None
) -> None:
    hold = await opened(server, amount="4")
    refused = await post(server, f"/v1/holds/{hold['hold_id']}/post", "p1", body)
    assert_problem(refused, 400, "bad_message")
    assert (await balance(server), await reserved(server)) == ("10", "4")


async def test_a_hold_is_voided(server: TestServer) -> None:
    for key in ("h1", "h2", "h3"):
        last = await opened(server, key, operation="script_generation")
    limited = await post(server, HOLDS, "h4", {"operation": "script_generation"})
    problem = assert_problem(limited, 429, "operation_limit")
    assert (problem["limit"], problem["used"]) == (3, 3)
    path = f"/v1/holds/{last['hold_id']}"
    voided = await post(server, f"{path}/void", "v1", {})
    assert (voided.status_code, voided.json()["state"]) == (200, "voided")
    # The operation was not done, so it counts in no month.
    assert (await spend(server, "k1", operation="script_generation")).status_code == 201
    assert await reserved(server) == "2"
    again = await post(server, f"{path}/void", "v2")
    assert (again.status_code, again.json()["state"]) == (200, "voided")
    refused = await post(server, f"{path}/post", "p1", {"amount": "1"})
    assert assert_problem(refused, 409, "hold_closed")["state"] == "voided"
    await audited(server)


async def test_more_than_is_held_is_not_charged(server: TestServer) -> None:
    hold = await opened(server, amount="4")
    path = f"/v1/holds/{hold['hold_id']}/post"
    refused = await post(server, path, "p1", {"amount": "4.000001"})
    assert assert_problem(refused, 422, "hold_exceeded")["amount"] == "4"
    assert (await post(server, path, "p2", {"amount": "4"})).status_code == 200


async def test_a_hold_is_posted_once(server: TestServer) -> None:
    hold = await opened(server, amount="4")
    path = f"/v1/holds/{hold['hold_id']}"
    first = await post(server, f"{path}/post", "p1", {"amount": "3"})
    again = await post(server, f"{path}/post", "p1", {"amount": "3"})
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    # Under another key, too, the request equals what was done, or it is refused.
    assert (await post(server, f"{path}/post", "p2", {"amount": "3"})).json() == first.json()
    for key, body in (("p3", {"amount": "2"}), ("p4", {"amount": "4"})):
        refused = await post(server, f"{path}/post", key, body)
        assert assert_problem(refused, 409, "hold_closed")["state"] == "posted"
    voided = await post(server, f"{path}/void", "v1")
    assert assert_problem(voided, 409, "hold_closed")["state"] == "posted"
    assert await balance(server) == "7"


async def test_a_hold_expires_by_itself(server: TestServer) -> None:
    hold, other = [await opened(server, key, amount="4", ttl_ms=60_000) for key in ("h1", "h2")]
    client = await server.login()
    advance(server, 60_001)
    # Whether the process has looked yet or not.
    refused = await post(server, f"/v1/holds/{hold['hold_id']}/post", "p1", {"amount": "4"})
    assert_problem(refused, 409, "hold_expired")
    told = {(await client.until("credit"))["entry_id"] for _ in range(2)}
    assert told == {hold["hold_id"], other["hold_id"]}
    path = f"/v1/holds/{other['hold_id']}"
    assert (await ask(server, "GET", path)).json()["state"] == "expired"
    assert (await post(server, f"{path}/void", "v1")).json()["state"] == "expired"
    assert (await balance(server), await reserved(server)) == ("10", "0")
    await audited(server)


async def test_a_hold_lasts_a_day_at_most(server: TestServer) -> None:
    hold = await opened(server, amount="1")
    assert hold["expires_at"] == hold["created_at"] + server_limits.HOLD_MS_DEFAULT
    await opened(server, "h2", amount="1", ttl_ms=24 * 3_600_000)
    for ttl_ms in (24 * 3_600_000 + 1, 0, -1, "60000", 1.5):
        refused = await post(server, HOLDS, "h3", {"amount": "1", "ttl_ms": ttl_ms})
        assert "ttl_ms" in assert_problem(refused, 400, "bad_message")["detail"]


@pytest.mark.parametrize("call", ["post", "void"])
async def test_a_hold_that_nobody_knows(server: TestServer, call: str) -> None:
    hold = await opened(server, path=f"{HOLDS}?org=acme", operation="greeting")
    for path in ("none", "none?user=ann", "none?org=acme", f"{hold['hold_id']}?org=other"):
        hold_id, _, query = path.partition("?")
        refused = await post(server, f"/v1/holds/{hold_id}/{call}?{query}", "k1", {"amount": "0"})
        assert_problem(refused, 404, "unknown_hold")
        assert_problem(await ask(server, "GET", f"/v1/holds/{path}"), 404, "unknown_hold")
    # With the tenant or without it: there is no other of this id.
    for key, query in (("k2", ""), ("k3", "?org=acme")):
        path = f"/v1/holds/{hold['hold_id']}/{call}{query}"
        closed = await post(server, path, key, {"amount": "0"})
        assert closed.status_code == 200, closed.text


@pytest.mark.parametrize("call", ["", "/post", "/void"])
async def test_holds_are_a_backends_alone(server: TestServer, call: str) -> None:
    hold = await opened(server, amount="1")
    path = f"/v1/holds/{hold['hold_id']}{call}"
    method = "POST" if call else "GET"
    for token in (server.token(), server.token("olga", scope="ops")):
        headers = {"Idempotency-Key": "k1"}
        refused = await ask(server, method, path, token, headers=headers)
        assert_problem(refused, 403, "forbidden")
        assert_problem(await post(server, HOLDS, "h2", {"amount": "1"}, token), 403, "forbidden")
    assert_problem(await ask(server, method, path, None), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "operation"),
        ({"amount": "1", "operation": "greeting"}, "operation"),
        ({"amount": "0"}, "amount"),
        ({"amount": "1", "metadata": {"success": False}}, "metadata.success"),
    ],
)
async def test_the_refusal_of_a_bad_hold_names_the_field(
    server: TestServer, body: dict[str, Any], named: str
) -> None:
    refused = await post(server, HOLDS, "h1", body)
    assert named in assert_problem(refused, 400, "bad_message")["detail"]
    refused = await post(server, HOLDS, "h1", {"operation": "nothing"})
    assert_problem(refused, 422, "unknown_operation")


async def test_a_hold_that_is_not_there_to_hold_stays_refused(server: TestServer) -> None:
    first = await post(server, HOLDS, "h1", {"amount": "12"})
    assert assert_problem(first, 402, "insufficient_credits")["missing"] == "2"
    await grant(server, "100", "g2")
    assert (await post(server, HOLDS, "h1", {"amount": "12"})).content == first.content


@pytest.mark.usefixtures("patience")
async def test_many_at_once_under_one_key_make_one_hold(server: TestServer) -> None:
    responses = await asyncio.gather(
        *(post(server, HOLDS, "h1", {"amount": "4"}) for _ in range(20))
    )
    made = [response for response in responses if response.status_code == 201]
    assert len({response.content for response in made}) == 1
    assert {response.status_code for response in responses} <= {201, 409}
    assert await reserved(server) == "4"
    await audited(server)


@pytest.mark.parametrize("call", ["holds", "post", "void"])
async def test_the_next_attempt_gives_the_lost_answer(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async def down(*_: Any) -> None:
        raise UnavailableError("the database is away")

    hold = await opened(server, "h0", amount="4")
    path, body = f"/v1/holds/{hold['hold_id']}/{call}", {"amount": "4"}
    if call == "holds":
        path, body = HOLDS, {"amount": "4"}
    with monkeypatch.context() as broken:
        broken.setattr(server.process.records, "finish_idempotent", down)
        assert_problem(await post(server, path, "k1", body), 503, "unavailable")
    left = await reserved(server)
    assert left == ("8" if call == "holds" else "0")
    again = await post(server, path, "k1", body)
    assert again.status_code in (200, 201), again.text
    assert await reserved(server) == left
    await audited(server)


async def test_a_hold_is_known_longer_than_its_answer_is_kept(
    server: TestServer, connection: Connection
) -> None:
    first = await opened(server, amount="4")
    await connection.execute("DELETE FROM idempotency_keys")
    assert await opened(server, amount="4") == first
    for body in ({"amount": "5"}, {"operation": "greeting"}):
        await connection.execute("DELETE FROM idempotency_keys")
        assert_problem(await post(server, HOLDS, "h1", body), 422, "idempotency_mismatch")


async def test_an_account_has_a_bounded_number_of_holds(server: TestServer) -> None:
    with pytest.MonkeyPatch.context() as small:
        small.setattr(storage_limits, "HOLDS_PER_ACCOUNT_MAX", 1)
        hold = await opened(server, amount="1")
        refused = await post(server, HOLDS, "h2", {"amount": "1"})
        assert_problem(refused, 429, "rate_limited")
        await post(server, f"/v1/holds/{hold['hold_id']}/void", "v1")
        # The failure was no decision, and the key is free.
        await opened(server, "h2", amount="1")
