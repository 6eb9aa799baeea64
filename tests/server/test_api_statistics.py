"""Statistics of users and of credits, as existing applications read them."""

import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from protocol.metering.records import EntryPosted
from storage.postgres.records import UnavailableError
from storage.postgres.usage import Usage
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.server.api import advance, ask, assert_problem, grant
from tests.server.minutes import keep_off_month_ends, minute_at

STATS = "/api/usage/stats"
USER = "/api/users/stats-v2"
DAY_MS = 86_400_000


async def read(server: TestServer, path: str, bearer: str | None = None) -> Any:
    response = await ask(server, "GET", path, bearer or server.token("ann", org="acme"))
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return response.json()


async def spend(
    server: TestServer,
    entry_id: str,
    micros: int,
    operation: str | None,
    *,
    entry_kind: str = "spend",
    days_ago: int = 0,
) -> None:
    """A spend as the record stores it."""
    entry = EntryPosted(
        tenant="org:acme",
        account_id="ann",
        entry_id=entry_id,
        entry_kind=entry_kind,
        amount_micros=-micros,
        at=server.process.clock.now() - days_ago * DAY_MS,
        operation=operation,
    )
    await server.process.records.write([entry])


async def give(server: TestServer, amount: str, key: str = "k1") -> None:
    path = "/v1/accounts/ann/grants?org=acme"
    assert (await grant(server, amount, key, path)).status_code == 201


# --- Of a user -----------------------------------------------------------------------


async def test_statistics_of_a_user_who_has_done_nothing(server: TestServer) -> None:
    found = await read(server, USER)
    nothing = {"minutes": 0, "hours": 0.0, "seconds": 0, "sessions": 0}
    assert found["user_id"] == "ann"
    assert found["current_month"] == found["total"] == nothing
    assert found["hours_limit"] is None
    assert [advice["code"] for advice in found["recommendations"]] == ["ok"]
    assert found["projections"]["projected_minutes"] == 0


async def test_statistics_in_minutes_and_hours(server: TestServer) -> None:
    put = {"monthly_hours_limit": 0.55}
    assert (await ask(server, "PUT", "/v1/orgs/acme", json=put)).status_code == 200
    bearer = server.token("ann", org="acme")
    begun_at = minute_at(server)
    for minutes_ago in range(30):
        body = {
            "session_id": "rec-1",
            "seconds_recorded": 60,
            "minute_timestamp": begun_at - minutes_ago * 60_000,
        }
        assert (
            await ask(server, "POST", "/api/usage/track-minute", bearer, json=body)
        ).status_code == 200
    found = await read(server, USER)
    assert found["current_month"] == {"minutes": 30, "hours": 0.5, "seconds": 1800, "sessions": 1}
    assert found["total"] == found["current_month"]
    assert (found["minutes_limit"], found["hours_limit"]) == (33, 0.55)
    assert (found["minutes_used"], found["hours_used"]) == (30, 0.5)
    assert (found["minutes_remaining"], found["hours_remaining"]) == (3, 0.05)
    codes = [advice["code"] for advice in found["recommendations"]]
    assert codes[0] == "approaching_limit"


# --- Of credits ----------------------------------------------------------------------


async def test_credits_of_an_account_that_has_done_nothing(server: TestServer) -> None:
    found = await read(server, STATS)
    assert found["accountId"] == "ann"
    assert found["timezone"] == "UTC"
    assert found["creditsUsed"] == found["creditsRemaining"] == 0
    operations = {operation["feature"]: operation for operation in found["byOperation"]}
    assert set(operations) == set(server.process.rates.operations)
    assert operations["voice_creation"] == {
        "feature": "voice_creation",
        "dailyUsage": 0,
        "weeklyUsage": 0,
        "monthlyUsage": 0,
        "totalUsage": 0,
        "creditsUsed": 0.0,
        "averageCreditsPerAction": 0.0,
    }


async def test_credits_by_operation_and_period(server: TestServer) -> None:
    keep_off_month_ends(server)
    await give(server, "100")
    await spend(server, "e1", 5_000_000, "voice_creation")
    await spend(server, "e2", 1_000_000, "script_generation")
    await spend(server, "e3", 1_500_000, "script_generation", entry_kind="post")
    await spend(server, "e4", 2_000_000, None)
    await spend(server, "e5", 3_000_000, "long_gone", days_ago=40)
    found = await read(server, STATS)
    operations = {operation["feature"]: operation for operation in found["byOperation"]}
    scripts = operations["script_generation"]
    assert (scripts["dailyUsage"], scripts["weeklyUsage"], scripts["monthlyUsage"]) == (2, 2, 2)
    assert (scripts["creditsUsed"], scripts["averageCreditsPerAction"]) == (2.5, 1.25)
    assert (operations["long_gone"]["monthlyUsage"], operations["long_gone"]["totalUsage"]) == (
        0,
        1,
    )
    assert operations[None]["creditsUsed"] == 2.0
    assert found["day"]["creditsOnOperations"] == 9.5
    assert found["day"]["actions"] == 4
    assert found["day"]["averageCreditsPerAction"] == 2.375
    assert found["total"]["creditsOnOperations"] == 12.5
    assert found["total"]["fromAt"] is None
    assert found["creditsUsed"] == found["total"]["creditsUsed"]


async def test_periods_begin_where_the_organisations_days_do(server: TestServer) -> None:
    put = {"timezone": "America/New_York"}
    assert (await ask(server, "PUT", "/v1/orgs/acme", json=put)).status_code == 200
    found = await read(server, STATS)
    assert found["timezone"] == "America/New_York"
    zone = ZoneInfo("America/New_York")
    local = {
        name: datetime.datetime.fromtimestamp(found[name]["fromAt"] / 1000, zone)
        for name in ("day", "week", "month")
    }
    assert {(at.hour, at.minute) for at in local.values()} == {(0, 0)}
    assert local["week"].weekday() == 0
    assert local["month"].day == 1


async def test_what_a_live_session_burns_is_used_at_once(server: TestServer) -> None:
    await give(server, "10")
    client = await server.login("ann", org="acme")
    await client.ask("start", kind="chat", session_id="s1")
    advance(server, 90_000)
    await client.ask("ping")
    live = await read(server, STATS)
    assert 0.5 <= live["creditsUsed"] < 1
    assert live["day"]["creditsOnTime"] == live["creditsUsed"]
    assert live["creditsUsed"] + live["creditsRemaining"] == pytest.approx(10)
    stopped = await client.ask("stop", session_id="s1")
    await server.flush()
    ended = await read(server, STATS)
    assert ended["creditsUsed"] == float(stopped["receipt"]["credits"])
    assert ended["total"]["creditsOnTime"] == ended["creditsUsed"]
    assert ended["total"]["actions"] == 0


async def test_the_account_is_the_tokens_own(server: TestServer) -> None:
    await give(server, "10")
    shared = server.token("ben", org="acme", account="ann")
    assert (await read(server, STATS, shared))["creditsRemaining"] == 10
    assert (await read(server, STATS, server.token("ben", org="acme")))["accountId"] == "ben"
    response = await ask(server, "GET", f"{STATS}?account=ann", server.token("ben", org="acme"))
    assert_problem(response, 403, "forbidden")
    path = f"{STATS}?org=acme&user=ben&account=ann"
    assert (await read(server, path, API_KEY))["creditsRemaining"] == 10


async def test_without_postgres_statistics_are_unavailable(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server()

    async def away(*_: Any) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(Usage, "spending", away)
    response = await ask(server, "GET", STATS, server.token())
    assert_problem(response, 503, "unavailable")
