"""Packages that a backend grants, and monthly allotments of a tier."""

from pathlib import Path
from typing import Any

import pytest

from server.runtime.clock import ClusterClock
from storage.postgres.records import UnavailableError
from tests.fixtures.database import Connection
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask, assert_problem, balance, grant, ledger
from tests.server.charging import card, post, spend
from tests.server.test_api_spends import audited

GRANTS = "/v1/accounts/ann/grants"
TEAM = "/v1/accounts/team?org=acme"
DAY_MS = 86_400_000


@pytest.fixture
async def server(start_server: StartServer, tmp_path: Path) -> TestServer:
    """A server with packages on its rate card.

    One of its tiers gives something.
    """
    return await start_server(rates=card(tmp_path))


async def put_tier(server: TestServer, tier: str) -> None:
    """Sets the organisation's tier."""
    response = await ask(server, "PUT", "/v1/orgs/acme", json={"tier": tier})
    assert response.status_code == 200, response.text


async def grants(server: TestServer, path: str = GRANTS) -> list[dict[str, Any]]:
    """The grants of an account."""
    response = await ask(server, "GET", path)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["grants"]
    return found


# --- Packages --------------------------------------------------------------------------


async def test_a_package_is_granted_under_its_name(server: TestServer) -> None:
    first = await post(server, GRANTS, "g1", {"package": "starter"})
    assert first.status_code == 201
    made = first.json()
    assert (made["amount"], made["package"], made["credits"]) == ("50", "starter", "50")
    assert (made["reason"], made["priority"]) == ("Starter", 100)
    assert made["expires_at"] == made["created_at"] + 30 * DAY_MS
    assert (await post(server, GRANTS, "g1", {"package": "starter"})).content == first.content
    body = {"package": "endless", "reason": "order 17", "priority": 5}
    other = (await post(server, GRANTS, "g2", body)).json()
    assert (other["amount"], other["expires_at"], other["reason"]) == ("7.5", None, "order 17")
    await spend(server, "k1", amount="8")
    # The grant with the lower priority is used up, and the rest comes from the other.
    (left,) = await grants(server)
    assert left == {
        "entry_id": made["entry_id"],
        "name": "package:starter",
        "amount": "50",
        "used": "0.5",
        "left": "49.5",
        "granted_at": made["created_at"],
        "expires_at": made["expires_at"],
        "priority": 100,
    }
    await audited(server)


async def test_a_package_that_the_card_does_not_have(server: TestServer) -> None:
    refused = await post(server, GRANTS, "g1", {"package": "startr"})
    assert "did you mean 'starter'?" in assert_problem(refused, 422, "unknown_package")["detail"]
    assert (await post(server, GRANTS, "g1", {"package": "starter"})).status_code == 201


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "amount"),
        ({"amount": "1", "package": "starter", "reason": "x"}, "amount"),
        ({"package": ""}, "package"),
        ({"package": "starter", "expires_at": 253_402_300_799_999}, "expires_at"),
    ],
)
async def test_the_refusal_of_a_bad_package_names_the_field(
    server: TestServer, body: dict[str, Any], named: str
) -> None:
    refused = await post(server, GRANTS, "g1", body)
    assert named in assert_problem(refused, 400, "bad_message")["detail"]


async def test_the_ledger_knows_a_package_longer_than_its_answer_is_kept(
    server: TestServer, connection: Connection
) -> None:
    first = await post(server, GRANTS, "g1", {"package": "starter"})
    await connection.execute("DELETE FROM idempotency_keys")
    assert (await post(server, GRANTS, "g1", {"package": "starter"})).json() == first.json()
    for body in ({"package": "endless"}, {"amount": "50", "reason": "x"}):
        await connection.execute("DELETE FROM idempotency_keys")
        assert_problem(await post(server, GRANTS, "g1", body), 422, "idempotency_mismatch")
    assert await balance(server) == "50"


async def test_an_entry_that_redis_has_forgotten_is_not_applied_again(
    server: TestServer, connection: Connection
) -> None:
    first = await post(server, GRANTS, "g1", {"package": "endless"})
    assert await balance(server) == "7.5"
    # The server remembers only the newest of a thousand.
    await server.process.redis.delete(server.process.live.keys.applied("user:ann", "ann"))
    await connection.execute("DELETE FROM idempotency_keys")
    assert (await post(server, GRANTS, "g1", {"package": "endless"})).json() == first.json()
    assert await balance(server) == "7.5"
    await audited(server)


# --- Allotments ------------------------------------------------------------------------


async def test_a_months_allotment_is_shown_before_it_is_given(server: TestServer) -> None:
    path = "/v1/accounts/team/grants?org=acme"
    assert (await grant(server, "1", "g1", path)).status_code == 201
    await put_tier(server, "pro")
    for _ in range(2):
        account = (await ask(server, "GET", TEAM)).json()
        assert (account["credits"], account["due"]) == ("101", "100")
        due, bought = await grants(server, path)
        assert (due["due"], due["amount"], due["left"]) == (True, "100", "100")
        assert "due" not in bought
    assert (await spend(server, "k1", "/v1/accounts/team/spend?org=acme", amount="1")).is_success
    account = (await ask(server, "GET", TEAM)).json()
    assert account["credits"] == "100"
    assert "due" not in account
    given, bought = await grants(server, path)
    assert given["name"] == given["entry_id"] == due["name"]
    assert given["name"].startswith("allotment:pro:20")
    assert given["expires_at"] == due["expires_at"] > server.process.clock.now()
    assert "due" not in given
    # A tier that gives nothing gives nothing.
    assert await balance(server) == "0"
    await audited(server)


async def test_the_first_use_in_a_month_gives_the_allotment(
    start_server: StartServer, server: TestServer
) -> None:
    await put_tier(server, "pro")
    other = await start_server(rates=server.process.settings.rates)
    path = "/v1/accounts/team/spend?org=acme"
    for one, key in ((server, "k1"), (other, "k2"), (server, "k3")):
        assert (await spend(one, key, path, amount="30")).status_code == 201
    refused = await spend(other, "k4", path, amount="30")
    assert assert_problem(refused, 402, "insufficient_credits")["missing"] == "20"
    hold = await post(other, "/v1/accounts/crew/holds?org=acme", "h1", {"amount": "100"})
    assert hold.status_code == 201, hold.text
    token = other.token("ann", org="acme")
    asked = await ask(
        other, "POST", "/v1/accounts/ann/can-perform", token, json={"operation": "voice_creation"}
    )
    assert (asked.json()["can_perform"], asked.json()["credits"]) == (True, "100")
    await audited(server)


async def test_a_socket_finds_what_the_month_gives(server: TestServer) -> None:
    await put_tier(server, "pro")
    client = await server.connect()
    welcome = await client.ask("auth", token=server.token("ann", org="acme", account="team"))
    assert welcome["credits"] == "100"
    started = await client.ask("start", kind="chat", session_id="s1")
    assert started["state"] == "active"


async def test_the_next_month_gives_again_to_whoever_is_connected(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_tier(server, "pro")
    client = await server.login("ann", org="acme", account="team")
    assert "due" not in (await ask(server, "GET", TEAM)).json()
    (first,) = await grants(server, "/v1/accounts/team/grants?org=acme")
    await server.process.ledger.ensure_served_allotments()
    assert len(await grants(server, "/v1/accounts/team/grants?org=acme")) == 1
    await server.flush()
    monkeypatch.setattr(ClusterClock, "now", lambda _: first["expires_at"])
    await server.process.ledger.ensure_served_allotments()
    told = await client.until("credit")
    assert (told["reason"], told["delta"], told["credits"]) == ("grant", "100", "200")
    assert told["entry_id"] > first["entry_id"]


@pytest.mark.parametrize("asked", ["before_operation", "allotments"])
async def test_without_postgres_an_account_works_without_its_allotment(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    assert (await grant(server, "1", "g1", "/v1/accounts/team/grants?org=acme")).is_success
    await put_tier(server, "pro")

    async def down(*_: Any) -> None:
        raise UnavailableError("the database is away")

    with monkeypatch.context() as broken:
        broken.setattr(server.process.records, asked, down)
        if asked == "allotments":
            assert await balance(server, TEAM) == "1"
        else:
            client = await server.connect()
            token = server.token("ann", org="acme", account="team")
            assert (await client.ask("auth", token=token))["credits"] == "1"
    assert await balance(server, TEAM) == "101"
    client = await server.connect()
    token = server.token("ann", org="acme", account="team")
    assert (await client.ask("auth", token=token))["credits"] == "101"
    response = await ask(server, "GET", "/v1/accounts/team/ledger?org=acme")
    assert [entry["amount"] for entry in response.json()["entries"]] == ["100", "1"]
    assert await ledger(server) == []
