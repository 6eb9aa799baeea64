"""Tiers allot once a month despite changes of tier; reads allot nothing."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.runtime.clock import ClusterClock
from storage.postgres.records import UnavailableError
from tests.fixtures.database import Connection
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.server.api import ask, balance
from tests.server.charging import CARD, card, post, spend
from tests.server.route_examples import EXAMPLES
from tests.server.test_api_packages import TEAM, put_tier
from tests.server.test_api_spends import audited

TIERS = """
[tiers.business]
allotment = "500"

[tiers.starter]
allotment = "0.1"
"""
SPEND = "/v1/accounts/team/spend?org=acme"


@pytest.fixture
async def server(start_server: StartServer, tmp_path: Path) -> TestServer:
    """A server with tiers that give 0.1, 100 and 500."""
    return await start_server(rates=card(tmp_path, CARD + TIERS))


async def use(server: TestServer, key: str) -> None:
    """Uses the account at almost no cost."""
    assert (await spend(server, key, SPEND, amount="0.000001")).status_code == 201


async def given(connection: Connection) -> list[int]:
    """The credits given to all accounts, in the order of the ledger."""
    rows = await connection.fetch(
        "SELECT amount_micros FROM credit_ledger WHERE entry_kind = 'grant' ORDER BY position"
    )
    return [row["amount_micros"] / 1_000_000 for row in rows]


async def test_an_upgrade_adds_the_difference_and_a_downgrade_takes_nothing_back(
    server: TestServer, connection: Connection
) -> None:
    steps = [
        ("pro", [100]), ("business", [100, 400]), ("pro", [100, 400]), ("starter", [100, 400]),
        ("free", [100, 400]), ("business", [100, 400]), ("pro", [100, 400]),
    ]  # fmt: skip
    for number, (tier, expected) in enumerate(steps):
        await put_tier(server, tier)
        # Before the first step there is no account.
        due = "400" if number == 1 else None
        assert (await ask(server, "GET", TEAM)).json().get("due") == due
        await use(server, f"k{number}")
        assert await given(connection) == expected
        assert "due" not in (await ask(server, "GET", TEAM)).json()
    assert await balance(server, TEAM) == "499.999993"
    await audited(server)


async def test_a_card_that_gives_more_adds_the_difference(
    start_server: StartServer, server: TestServer, connection: Connection, tmp_path: Path
) -> None:
    await put_tier(server, "pro")
    await use(server, "k1")
    path = tmp_path / "more"
    path.mkdir()
    more = CARD.replace('allotment = "100"', 'allotment = "120"') + TIERS
    other = await start_server(rates=card(path, more))
    for number in range(3):
        await use(other, f"k{number + 2}")
        await use(server, f"j{number}")
    assert await given(connection) == [100, 20]
    await audited(other)


async def test_many_at_once_with_different_tiers_give_the_highest(
    start_server: StartServer, server: TestServer, connection: Connection
) -> None:
    """Each process uses an outdated tier for a while."""
    other = await start_server(rates=server.process.settings.rates)
    account = ("org:acme", "team")

    async def give(one: TestServer, tier: str, micros: int) -> Any:
        return await one.process.records.post_allotment(
            account, tier, "2026-11", micros, at=0, priority=100, expires_at=2_000_000_000_000
        )

    tiers = [("pro", 100_000_000), ("business", 500_000_000), ("starter", 100_000)]
    await asyncio.gather(
        *(give((server, other)[number % 2], *tiers[number % 3]) for number in range(24))
    )
    assert sum(await given(connection)) == 500
    assert len(await given(connection)) <= 3
    await server.process.ledger.apply_inbox()
    assert await balance(server, TEAM) == "500"


@pytest.mark.usefixtures("patience")
async def test_twelve_that_begin_at_once_are_given_it_once(
    start_server: StartServer, server: TestServer, connection: Connection
) -> None:
    await put_tier(server, "pro")
    other = await start_server(rates=server.process.settings.rates)
    calls: list[Any] = [use((server, other)[number % 2], f"k{number}") for number in range(6)]
    calls += [
        post(other, "/v1/accounts/team/holds?org=acme", f"h{number}", {"amount": "1"})
        for number in range(6)
    ]
    await asyncio.gather(*calls)
    assert await given(connection) == [100]
    await audited(server)


async def test_an_allotment_survives_a_death_before_redis(
    server: TestServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_tier(server, "pro")
    await use_refused(server)
    with monkeypatch.context() as broken:

        async def dies(*_: Any) -> None:
            raise UnavailableError("killed between two lines")

        broken.setattr(server.process.live, "credit", dies)
        assert (await spend(server, "k1", SPEND, amount="1")).status_code == 402
    server.process.ledger.forget_allotments("org:acme")
    assert (await spend(server, "k2", SPEND, amount="1")).status_code == 201
    assert await given(connection) == [100]
    assert await balance(server, TEAM) == "99"
    await audited(server)


async def use_refused(server: TestServer) -> None:
    """Loads the account into Redis without its allotment, as refused uses do."""
    await server.process.loader.account("org:acme", "team")


async def test_the_next_month_gives_whole_after_an_upgrade(
    server: TestServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, tier in enumerate(("pro", "business")):
        await put_tier(server, tier)
        await use(server, f"k{number}")
    (row,) = await connection.fetch("SELECT epoch_ms(max(expires_at)) AS at FROM credit_grants")
    await server.flush()
    monkeypatch.setattr(ClusterClock, "now", lambda _: row["at"] + 1)
    assert (await ask(server, "GET", TEAM)).json()["due"] == "500"
    await use(server, "k9")
    assert await given(connection) == [100, 400, 500]


# --- Reading ----------------------------------------------------------------------------


async def ledger(connection: Connection) -> list[Any]:
    """All records of money, and all that make an account."""
    tables = ("credit_accounts", "credit_ledger", "credit_grants", "account_inbox")
    return [await connection.fetch(f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables]


async def nothing() -> None:
    """Does nothing."""


async def test_no_get_makes_money(
    server: TestServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GET makes money.

    Every bearer reads every route of the application, for existing accounts and others.
    """
    assert (
        await post(server, "/v1/accounts/ann/grants?org=acme", "g1", {"amount": "5", "reason": "x"})
    ).is_success
    hold = await post(server, "/v1/accounts/ann/holds?org=acme", "h1", {"amount": "1"})
    client = await server.login("ann", org="acme")
    await client.ask("start", kind="chat", session_id="chat-1")
    # Connected users get a new tier's allotment without asking: not here.
    monkeypatch.setattr(server.process.ledger, "ensure_served_allotments", nothing)
    await put_tier(server, "business")
    before = await ledger(connection)
    asked, operator = 0, server.token("olga", org="acme", scope="ops")
    bearers = {"key": API_KEY, "ops": operator, "user": server.token("ann", org="acme")}
    bearers["stranger"] = server.token("eve", org="acme")
    for name, example in EXAMPLES.items():
        if not name.startswith("GET ") or name == "GET /v1/stream":  # its answer has no end
            continue
        path = example.path.replace("{hold}", hold.json()["hold_id"])
        for bearer in bearers.values():
            for one in (path, path.replace("ann", "nobody"), path.replace("ann", "eve")):
                for again in (one, one.replace("chat-1", "no-chat")):
                    response: httpx.Response = await ask(server, "GET", again, bearer)
                    assert response.status_code < 500, (again, response.text)
                    asked += response.status_code == 200
    assert asked > 40
    assert await ledger(connection) == before
    # An account that does not exist shows an empty balance.
    assert await balance(server, "/v1/accounts/nobody?org=acme") == "0"
    account = (await ask(server, "GET", "/v1/accounts/ann?org=acme")).json()
    assert account["due"] == "500"


@pytest.mark.parametrize("way", ["watch", "heartbeat", "legacy"])
async def test_who_only_looks_on_makes_no_money(
    server: TestServer, connection: Connection, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(server.process.ledger, "ensure_served_allotments", nothing)
    assert (
        await post(
            server, "/v1/accounts/team/grants?org=acme", "g1", {"amount": "5", "reason": "x"}
        )
    ).is_success
    client = await server.login("ann", org="acme", account="team")
    await client.ask("start", kind="chat", session_id="s1")
    token = server.token("ann", org="acme", account="team")
    await put_tier(server, "business")
    before = await ledger(connection)
    match way:
        case "watch":
            await client.ask("watch", session_id="s1")
        case "heartbeat":
            response = await ask(server, "POST", "/v1/sessions/s1/heartbeat", token, json={})
            assert response.status_code == 200, response.text
        case "legacy":
            response = await ask(server, "POST", "/api/time-tracking/s1/heartbeat", token, json={})
            assert response.status_code == 200, response.text
    assert await ledger(connection) == before


@pytest.mark.parametrize("way", ["auth", "start", "heartbeat", "spend", "hold", "can-perform"])
async def test_every_use_of_an_account_gives_the_allotment(
    server: TestServer, connection: Connection, way: str
) -> None:
    token = server.token("ann", org="acme", account="team")
    client = await server.connect()
    if way == "start":
        await client.ask("auth", token=token)
    await put_tier(server, "pro")
    path = "/v1/accounts/team"
    match way:
        case "auth":
            assert (await client.ask("auth", token=token))["credits"] == "100"
        case "start":
            started = await client.ask("start", kind="chat", session_id="s1")
            # The first increment is charged once it has begun, a millisecond after the start.
            assert started["state"] == "active"
            assert started["credits"] in {"100", "99"}
        case "heartbeat":
            body = {"kind": "chat"}
            response = await ask(server, "POST", "/v1/sessions/s1/heartbeat", token, json=body)
            assert response.json()["state"] == "active"
        case "spend":
            await use(server, "k1")
        case "hold":
            assert (await post(server, f"{path}/holds?org=acme", "h1", {"amount": "1"})).is_success
        case "can-perform":
            body = {"operation": "voice_creation"}
            response = await ask(server, "POST", f"{path}/can-perform", token, json=body)
            assert response.json()["can_perform"]
    assert await given(connection) == [100]
