"""Usage at the paths of existing applications: the limit and the month."""

import datetime
from zoneinfo import ZoneInfo

import pytest

from tests.fixtures.database import Connection
from tests.fixtures.server import API_KEY, TestServer
from tests.server.api import advance, ask, assert_problem
from tests.server.minutes import (
    CHECK,
    MONTH,
    ann,
    limit_member,
    limit_org,
    minute_at,
    read,
    recording,
    rows,
    track,
)

# --- The limit ---------------------------------------------------------------------


async def test_without_a_limit_anybody_may_record(server: TestServer) -> None:
    assert await read(server, CHECK) == {
        "can_record": True,
        "minutes_used": 0,
        "minutes_limit": None,
        "minutes_remaining": None,
        "percentage_used": 0.0,
        "binding": None,
    }


async def test_unflushed_minutes_of_a_live_session_count(
    server: TestServer, connection: Connection
) -> None:
    await limit_org(server, 10)
    client = await recording(server)
    advance(server, 61_000)
    await client.ask("ping")
    await client.until("minute")
    assert await rows(connection) == []
    found = await read(server, CHECK)
    assert found == {
        "can_record": True,
        "minutes_used": 2,
        "minutes_limit": 10,
        "minutes_remaining": 8,
        "percentage_used": 20.0,
        "binding": "org_minutes",
    }
    await client.ask("stop", session_id="r1")
    await server.flush()
    assert await read(server, CHECK) == found
    # A cold counter has the figures of Postgres.
    await server.process.redis.flushdb()
    assert await read(server, CHECK) == found


async def test_the_more_restrictive_limit_decides(server: TestServer) -> None:
    await limit_org(server, 10)
    await limit_member(server, 6)
    assert (await read(server, CHECK))["binding"] == "member_minutes"
    for minutes_ago in range(5):
        response = await track(server, minutes_ago, server.token("ben", org="acme"))
        assert response.json()["minutes_used"] == minutes_ago + 1
    mine = await read(server, CHECK)
    assert (mine["binding"], mine["minutes_used"]) == ("org_minutes", 5)
    assert (mine["minutes_limit"], mine["minutes_remaining"]) == (10, 5)


async def test_an_exhausted_month_forbids_recording_unless_overage_is_allowed(
    server: TestServer,
) -> None:
    await limit_org(server, 1)
    await track(server)
    found = await read(server, CHECK)
    assert (found["can_record"], found["minutes_remaining"]) == (False, 0)
    assert found["percentage_used"] == 100.0
    await limit_org(server, 1, allow_overage=True)
    found = await read(server, CHECK)
    assert (found["can_record"], found["minutes_limit"]) == (True, 1)
    assert found["binding"] is None
    assert (await track(server, 1)).status_code == 200
    assert (await read(server, CHECK))["minutes_used"] == 2


async def test_the_limit_is_the_one_that_postgres_would_decide(
    server: TestServer, connection: Connection
) -> None:
    await limit_org(server, 7)
    await limit_member(server, 5)
    for minutes_ago in range(3):
        await track(server, minutes_ago)
    now = datetime.datetime.fromtimestamp(server.process.clock.now() / 1000, datetime.UTC)
    row = await connection.fetchrow("SELECT * FROM check_usage_limit('ann', 'acme', $1)", now)
    assert row is not None
    decided = dict(row)
    decided["percentage_used"] = float(decided["percentage_used"])
    assert await read(server, CHECK) == decided


# --- The month ---------------------------------------------------------------------


async def test_a_month_without_usage_has_all_its_days(server: TestServer) -> None:
    month = await read(server, f"{MONTH}?daily=true")
    today = datetime.datetime.fromtimestamp(server.process.clock.now() / 1000, datetime.UTC).date()
    assert month["month"] == today.replace(day=1).isoformat()
    assert month["timezone"] == "UTC"
    days = [
        {"date": today.replace(day=n + 1).isoformat(), "minutes": 0, "seconds": 0, "sessions": 0}
        for n in range(today.day)
    ]
    assert month["daily"] == days
    for name in ("total_minutes", "total_hours", "total_seconds", "total_sessions"):
        assert month[name] == 0
    assert month["minutes_remaining"] is None
    assert month["projection"]["projected_minutes"] == 0
    assert "assumes" in month["projection"]


async def test_a_month_adds_up(server: TestServer) -> None:
    await limit_org(server, 600)
    for minutes_ago in range(3):
        await track(server, minutes_ago, seconds_recorded=60 - minutes_ago)
    await track(server, session_id="rec-2", seconds_recorded=1)
    await track(server, 1, server.token("ben", org="acme"), session_id="bens")
    month = await read(server, MONTH)
    assert "daily" not in month
    assert month["total_minutes"] == 4
    assert month["total_hours"] == 0.07
    assert month["total_seconds"] == 60 + 59 + 58 + 1
    assert month["total_sessions"] == 2
    # The organisation's limit decides, and ben's minute counts against it.
    assert (month["minutes_used"], month["minutes_remaining"]) == (5, 595)
    assert month["projection"]["projected_minutes"] >= 4
    daily = (await read(server, f"{MONTH}?daily=true"))["daily"]
    assert sum(day["minutes"] for day in daily) == 4
    assert sum(day["seconds"] for day in daily) == 178


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Niue", "America/New_York"])
async def test_days_are_those_of_the_organisation(server: TestServer, zone: str) -> None:
    await limit_org(server, None, timezone=zone)
    await track(server)
    month = await read(server, f"{MONTH}?daily=true")
    at = datetime.datetime.fromtimestamp(minute_at(server) / 1000, ZoneInfo(zone))
    assert month["timezone"] == zone
    days = {day["date"]: day["minutes"] for day in month["daily"]}
    assert days[at.date().isoformat()] == 1
    assert month["total_minutes"] == 1


async def test_unflushed_minutes_are_in_the_total(server: TestServer) -> None:
    client = await recording(server)
    advance(server, 61_000)
    await client.ask("ping")
    await client.until("minute")
    month = await read(server, MONTH)
    assert (month["total_minutes"], month["total_seconds"]) == (2, 0)


@pytest.mark.parametrize("value", ["yes", "", "2"])
async def test_a_flag_is_true_or_false(server: TestServer, value: str) -> None:
    response = await ask(server, "GET", f"{MONTH}?daily={value}", ann(server))
    assert "daily" in assert_problem(response, 400, "bad_message")["detail"]


# --- Who may -----------------------------------------------------------------------

READS = [CHECK, MONTH, "/api/users/stats-v2", "/api/usage/stats"]


@pytest.mark.parametrize("path", READS)
async def test_nobody_reads_without_a_good_token(server: TestServer, path: str) -> None:
    for bearer in (None, "wrong", ann(server) + "x"):
        assert_problem(await ask(server, "GET", path, bearer), 401, "unauthenticated")


@pytest.mark.parametrize("path", READS)
async def test_a_users_token_reads_that_user_alone(server: TestServer, path: str) -> None:
    for query in ("user=ben", "org=other", "org=other&user=ann", "org=acme&user=ben"):
        response = await ask(server, "GET", f"{path}?{query}", ann(server))
        assert_problem(response, 403, "forbidden")
    assert (await ask(server, "GET", f"{path}?org=acme&user=ann", ann(server))).status_code == 200


@pytest.mark.parametrize("path", READS)
async def test_backends_name_the_user(server: TestServer, path: str) -> None:
    named = await ask(server, "GET", f"{path}?org=acme&user=ann", API_KEY)
    assert named.status_code == 200
    for query in ("?org=acme", ""):
        unnamed = await ask(server, "GET", path + query, API_KEY)
        assert_problem(unnamed, 400, "bad_message")


async def test_users_of_one_name_are_another_in_each_tenant(server: TestServer) -> None:
    await track(server)
    assert (await read(server, CHECK))["minutes_used"] == 1
    for bearer in (server.token("ann"), ann(server, org="other")):
        assert (await read(server, CHECK, bearer))["minutes_used"] == 0
    response = await ask(server, "GET", f"{CHECK}?org=acme&user=ann")
    assert response.json()["minutes_used"] == 1
