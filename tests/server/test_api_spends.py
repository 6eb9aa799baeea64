"""Spends over HTTP: charges, refusals with their reasons, and keys."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import limits as server_limits
from server.runtime.clock import ClusterClock
from storage.audit import audit_live, audit_record
from storage.postgres.records import UnavailableError
from tests.fixtures.database import Connection
from tests.fixtures.server import API_KEY, TIMEOUT_S, StartServer, TestServer
from tests.server.api import advance, ask, assert_problem, balance, grant, ledger
from tests.server.charging import card, spend

CAN_PERFORM = "/v1/accounts/ann/can-perform"


@pytest.fixture
async def server(start_server: StartServer, tmp_path: Path) -> TestServer:
    """A server with operations on its rate card.

    An account has ten credits.
    """
    server = await start_server(rates=card(tmp_path))
    assert (await grant(server, "10", "g1")).status_code == 201
    return server


async def audited(server: TestServer) -> None:
    """Everything adds up: the record by itself, and Redis with the record."""
    assert await audit_record(server.process.records) == ()
    found = await audit_live(server.process.live, server.process.records)
    assert (found.findings, found.restless) == ((), 0)


# --- What is charged -------------------------------------------------------------------


async def test_an_operation_is_charged_at_its_price(
    server: TestServer, connection: Connection
) -> None:
    metadata = {"service": "gemini", "tokens_used": 812, "response_time_ms": 940, "pages": [1, 2]}
    response = await spend(server, "k1", operation="voice_creation", metadata=metadata)
    assert response.status_code == 201
    made = response.json()
    assert made.pop("entry_id").startswith("spend:")
    assert made == {
        "account_id": "ann",
        "operation": "voice_creation",
        "amount": "5",
        "credits": "5",
    }
    entry = (await ledger(server))[0]
    assert (entry["kind"], entry["amount"], entry["operation"]) == ("spend", "-5", "voice_creation")
    assert entry["metadata"] == metadata
    row = await connection.fetchrow("SELECT * FROM operations_usage")
    assert row is not None
    assert (row["service"], row["tokens_used"], row["response_time_ms"]) == ("gemini", 812, 940)
    assert (row["user_id"], row["success"], row["amount_micros"]) == ("ann", True, 5_000_000)
    await audited(server)


async def test_a_backend_charges_an_amount(server: TestServer) -> None:
    made = (await spend(server, "k1", amount="2.500001", metadata={"order": 17})).json()
    assert (made["amount"], made["operation"], made["credits"]) == ("2.500001", None, "7.499999")
    assert (await ledger(server))[0]["metadata"] == {"order": 17}


async def test_a_user_charges_their_own_operation(
    server: TestServer, connection: Connection
) -> None:
    response = await spend(server, "k1", bearer=server.token(), operation="voice_creation")
    assert response.json()["credits"] == "5"
    assert await connection.fetchval("SELECT user_id FROM operations_usage") == "ann"


async def test_users_share_the_wallet_of_their_organisation(
    server: TestServer, connection: Connection
) -> None:
    path = "/v1/accounts/team/spend"
    await grant(server, "10", "k1", "/v1/accounts/team/grants?org=acme")
    for user_id in ("ann", "ben"):
        token = server.token(user_id, org="acme", account="team")
        # The same key of another user is another key.
        assert (
            await spend(server, "k1", path, token, operation="script_generation")
        ).status_code == 201
    made = await spend(
        server, "k1", f"{path}?org=acme", operation="script_generation", user_id="mia"
    )
    assert made.json()["credits"] == "7"
    rows = await connection.fetch("SELECT user_id FROM operations_usage ORDER BY user_id")
    assert [row["user_id"] for row in rows] == ["ann", "ben", "mia"]
    # All users of a wallet share the tier's monthly number of operations.
    token = server.token("ann", org="acme", account="team")
    refused = await spend(server, "k2", path, token, operation="script_generation")
    assert_problem(refused, 429, "operation_limit")


async def test_what_failed_is_kept_and_costs_nothing(
    server: TestServer, connection: Connection
) -> None:
    for key in ("k1", "k2", "k3", "k4"):
        failed = await spend(
            server, key, operation="script_generation", metadata={"success": False}
        )
        assert failed.status_code == 201
        assert failed.json()["amount"] == "0"
    assert await balance(server) == "10"
    assert (
        await connection.fetchval(
            "SELECT count(*) FROM operations_usage WHERE NOT success AND amount_micros = 0"
        )
        == 4
    )
    # Nor does it count in the month, which has three.
    made = await spend(server, "k5", operation="script_generation", metadata={"success": True})
    assert made.json()["amount"] == "1"


async def test_an_operation_that_costs_nothing_is_kept_too(
    server: TestServer, connection: Connection
) -> None:
    made = await spend(server, "k1", operation="greeting")
    assert (made.status_code, made.json()["amount"]) == (201, "0")
    assert await connection.fetchval("SELECT operation FROM operations_usage") == "greeting"


# --- What is refused -------------------------------------------------------------------


async def test_a_refusal_says_what_is_missing_and_stays(server: TestServer) -> None:
    first = await spend(server, "k1", amount="12.5")
    problem = assert_problem(first, 402, "insufficient_credits")
    assert {name: problem[name] for name in ("cost", "missing", "credits")} == {
        "cost": "12.5",
        "missing": "2.5",
        "credits": "10",
    }
    await grant(server, "100", "g2")
    again = await spend(server, "k1", amount="12.5")
    assert (again.status_code, again.content) == (402, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert (await spend(server, "k2", amount="12.5")).status_code == 201


async def test_a_tier_may_do_an_operation_so_often_a_month(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("k1", "k2", "k3"):
        assert (await spend(server, key, operation="script_generation")).status_code == 201
    first = await spend(server, "k4", operation="script_generation")
    problem = assert_problem(first, 429, "operation_limit")
    assert (problem["operation"], problem["limit"], problem["used"]) == ("script_generation", 3, 3)
    left_ms = problem["resets_at"] - server.process.clock.now()
    assert 0 < left_ms <= 31 * 86_400_000
    # The month's end is in the document; no client waits in its request for longer than an hour.
    wait_ms = min(left_ms, server_limits.RETRY_AFTER_S_MAX * 1000)
    assert abs(int(first.headers["retry-after"]) * 1000 - wait_ms) < 60_000
    await server.flush()
    # A refusal is an answer like any other: the key stays refused, also in another month.
    monkeypatch.setattr(ClusterClock, "now", lambda _: problem["resets_at"])
    again = await spend(server, "k4", operation="script_generation")
    assert again.content == first.content
    assert (await spend(server, "k5", operation="script_generation")).status_code == 201


async def test_an_operation_that_the_card_does_not_have(server: TestServer) -> None:
    refused = await spend(server, "k1", operation="voice_creatio")
    detail = assert_problem(refused, 422, "unknown_operation")["detail"]
    assert "did you mean 'voice_creation'?" in detail
    asked = await ask(server, "POST", CAN_PERFORM, json={"operation": "nothing"})
    assert_problem(asked, 422, "unknown_operation")
    # The failure was no decision, and the key is free.
    assert (await spend(server, "k1", operation="voice_creation")).status_code == 201


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "operation"),
        ({"operation": "voice_creation", "amount": "1"}, "operation"),
        ({"operation": 5}, "operation"),
        ({"operation": ""}, "operation"),
        ({"amount": "0"}, "amount"),
        ({"amount": "-1"}, "amount"),
        ({"amount": "1e3"}, "amount"),
        ({"amount": 5}, "amount"),
        ({"amount": "1", "user_id": "a/b"}, "user_id"),
        ({"amount": "1", "metadata": "x"}, "metadata"),
        ({"amount": "1", "metadata": {"text": "x" * 2_048}}, "metadata"),
        ({"amount": "1", "metadata": {"text": "\0"}}, "metadata"),
        ({"operation": "voice_creation", "metadata": {"success": "no"}}, "metadata.success"),
        ({"amount": "1", "metadata": {"success": False}}, "metadata.success"),
    ],
)
async def test_the_refusal_of_a_bad_spend_names_the_field(
    server: TestServer, body: dict[str, Any], named: str
) -> None:
    refused = await spend(server, "k1", **body)
    assert named in assert_problem(refused, 400, "bad_message")["detail"]
    assert await balance(server) == "10"


@pytest.mark.parametrize(
    "body",
    [
        {"amount": "1"},
        {"operation": "voice_creation", "metadata": {"success": False}},
        {"operation": "voice_creation", "user_id": "ben"},
    ],
)
async def test_what_a_user_cannot_say(server: TestServer, body: dict[str, Any]) -> None:
    assert_problem(await spend(server, "k1", bearer=server.token(), **body), 403, "forbidden")
    assert await balance(server) == "10"


@pytest.mark.parametrize("path", ["spend", "can-perform"])
async def test_a_users_token_reaches_that_users_account_alone(
    server: TestServer, path: str
) -> None:
    for token, account, query in (
        (server.token("ben"), "ann", ""),
        (server.token("ben"), "ann", "?user=ann"),
        (server.token("ann", org="acme"), "ann", "?org=other"),
        (server.token("ann", account="team"), "ann", ""),
        # An operator may read every account, and charge only their own.
        (server.token("olga", scope="ops"), "ann", ""),
        (server.token("olga", scope="ops"), "ann", "?user=ann"),
    ):
        refused = await spend(
            server, "k1", f"/v1/accounts/{account}/{path}{query}", token, operation="greeting"
        )
        assert_problem(refused, 403, "forbidden")
    anybody = await spend(server, "k1", f"/v1/accounts/ann/{path}", None, operation="greeting")
    assert_problem(anybody, 401, "unauthenticated")


# --- Once for each key -------------------------------------------------------------------


async def test_the_same_key_charges_once(server: TestServer) -> None:
    first = await spend(server, "k1", amount="3")
    again = await spend(server, "k1", amount="3")
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert_problem(await spend(server, "k1", amount="4"), 422, "idempotency_mismatch")
    assert await balance(server) == "7"
    without = await ask(server, "POST", "/v1/accounts/ann/spend", json={"amount": "1"})
    assert_problem(without, 400, "idempotency_key_required")


@pytest.mark.usefixtures("patience")
async def test_five_hundred_at_once_under_one_key_make_one_entry(
    start_server: StartServer, server: TestServer
) -> None:
    other = await start_server(rates=server.process.settings.rates)
    headers = {"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": "k1"}
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=one.url, timeout=6 * TIMEOUT_S, trust_env=False)
            )
            for one in (server, other)
        ]
        responses = await asyncio.gather(
            *(
                clients[number % 2].post(
                    "/v1/accounts/ann/spend", headers=headers, json={"amount": "1"}
                )
                for number in range(500)
            )
        )
    made = [response for response in responses if response.status_code == 201]
    assert made
    assert len({response.content for response in made}) == 1
    for response in responses:
        if response.status_code != 201:
            assert_problem(response, 409, "idempotency_under_way")
    assert [entry["kind"] for entry in await ledger(server)] == ["spend", "grant"]
    assert await balance(server) == "9"
    await audited(server)


async def test_the_next_attempt_gives_the_lost_answer(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: Any) -> None:
        raise UnavailableError("the database is away")

    with monkeypatch.context() as broken:
        broken.setattr(server.process.records, "finish_idempotent", down)
        assert_problem(await spend(server, "k1", amount="3"), 503, "unavailable")
    assert await balance(server) == "7"
    again = await spend(server, "k1", amount="3")
    assert (again.status_code, again.json()["credits"]) == (201, "7")
    assert len(await ledger(server)) == 2


async def test_the_ledger_knows_a_key_longer_than_its_answer_is_kept(
    server: TestServer, connection: Connection
) -> None:
    first = await spend(server, "k1", operation="voice_creation")
    await connection.execute("DELETE FROM idempotency_keys")
    assert (await spend(server, "k1", operation="voice_creation")).json() == first.json()
    for body in ({"operation": "script_generation"}, {"amount": "5"}):
        await connection.execute("DELETE FROM idempotency_keys")
        assert_problem(await spend(server, "k1", **body), 422, "idempotency_mismatch")
    assert await balance(server) == "5"


# --- Beforehand, and beside sessions ---------------------------------------------------


async def test_whether_an_operation_could_be_done(server: TestServer) -> None:
    async def asked(operation: str) -> dict[str, Any]:
        response = await ask(
            server, "POST", CAN_PERFORM, server.token(), json={"operation": operation}
        )
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    assert await asked("voice_creation") == {
        "can_perform": True,
        "reason": None,
        "cost": "5",
        "credits": "10",
    }
    await spend(server, "k1", amount="7")
    poor = await asked("voice_creation")
    assert (poor["can_perform"], poor["reason"]) == (False, "insufficient_credits")
    for key in ("k2", "k3", "k4"):
        await spend(server, key, operation="script_generation")
    assert (await asked("script_generation"))["reason"] == "operation_limit"


@pytest.mark.parametrize("call", ["spend", "holds"])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_a_running_session_merely_holds_is_spent(
    start_server: StartServer, server: TestServer, call: str, elsewhere: bool
) -> None:
    await grant(server, "1000", "g2")
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1", tick_ms=60_000)
    account = (await ask(server, "GET", "/v1/accounts/ann")).json()
    # At a credit a second it holds a minute and more, and needs little of that to run on.
    held = float(account["held"])
    assert held > 60
    wanted = round(float(account["credits"]) - held / 2)
    asked = await start_server(rates=server.process.settings.rates) if elsewhere else server
    made = await spend(asked, "k1", f"/v1/accounts/ann/{call}", amount=str(wanted))
    assert made.status_code == 201, made.text
    told = await client.until("credit")
    id_name = {"spend": "entry_id", "holds": "hold_id"}[call]
    assert told["entry_id"] == made.json()[id_name]
    # The part that is really gone is missing, and the session runs on with the rest.
    refused = await spend(asked, "k2", f"/v1/accounts/ann/{call}", amount=str(wanted))
    assert_problem(refused, 402, "insufficient_credits")
    stopped = await client.ask("stop", session_id="s1")
    assert stopped["receipt"]["reason"] == "client"
    await server.flush()
    await audited(server)


async def test_a_spend_reaches_the_limit_of_a_running_session(server: TestServer) -> None:
    await grant(server, "1000", "g2")
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1", tick_ms=60_000)
    assert (await spend(server, "k1", amount="1000")).status_code == 201
    warning = await client.until("limit_warning")
    assert warning["limit"] == "credits"
    advance(server, 60_000)
    reached = await client.until("limit_reached")
    assert reached["limit"] == "credits"
