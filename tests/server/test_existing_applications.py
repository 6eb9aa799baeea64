"""What existing applications read on each path, by their own documents.

The names, types and units are copied from these documents, not from our code. Each path is
asked about a user who has done nothing, and about one who has.
"""

from typing import Any, NamedTuple

import pytest

from tests.fixtures.server import TestServer
from tests.server.api import advance, ask, grant
from tests.server.minutes import minute_at

CHAT = "/api/time-tracking/chat-1"
NUMBER = (int, float)


class Fields(NamedTuple):
    """What a document says that a path answers."""

    path: str
    types: dict[str, tuple[type, ...]]
    nothing: dict[str, Any]
    """The values for a user who has done nothing, in a plan of 10 hours a month."""
    something: dict[str, Any]
    """The values after three minutes were recorded, one of them of 20 seconds, and two
    scripts were made of 10 credits."""


DOCUMENTED = [
    # "Returns: can_record, minutes_used, minutes_limit, minutes_remaining, percentage_used";
    # "Plans define limits in hours (e.g., 10 hours)", "10 hours = 600 minutes",
    # "Billing based on minutes used (rounded up)".
    Fields(
        "/api/usage/check-limit",
        {
            "can_record": (bool,),
            "minutes_used": (int,),
            "minutes_limit": (int,),
            "minutes_remaining": (int,),
            "percentage_used": NUMBER,
        },
        {
            "can_record": True,
            "minutes_used": 0,
            "minutes_limit": 600,
            "minutes_remaining": 600,
            "percentage_used": 0,
        },
        {
            "can_record": True,
            "minutes_used": 3,
            "minutes_limit": 600,
            "minutes_remaining": 597,
            "percentage_used": 0.5,
        },
    ),
    # "Returns comprehensive monthly usage stats"; "caches total minutes and seconds used".
    Fields(
        "/api/usage/current-month",
        {"total_minutes": (int,), "total_seconds": (int,), "projection": (dict,)},
        {"total_minutes": 0, "total_seconds": 0, "minutes_remaining": 600},
        {"total_minutes": 3, "total_seconds": 140, "minutes_remaining": 597},
    ),
    # "Enhanced stats endpoint with minute-level data", "Backward compatible with hour-based
    # stats", "Includes projections and recommendations".
    Fields(
        "/api/users/stats-v2",
        {
            "minutes_used": (int,),
            "hours_used": NUMBER,
            "hours_limit": NUMBER,
            "projections": (dict,),
            "recommendations": (list,),
        },
        {"minutes_used": 0, "hours_used": 0, "hours_limit": 10, "hours_remaining": 10},
        {"minutes_used": 3, "hours_used": 0.05, "hours_limit": 10, "hours_remaining": 9.95},
    ),
    # "const newCredits = updatedStats.creditsUsed", of which another is subtracted.
    Fields(
        "/api/usage/stats",
        {"creditsUsed": NUMBER, "creditsRemaining": NUMBER},
        {"creditsUsed": 0, "creditsRemaining": 0},
        {"creditsUsed": 2, "creditsRemaining": 8},
    ),
    # "duration: number; // Total seconds of chat", "freeTimeRemaining: number; // Seconds of
    # free time left", "credits: string; // Current credit balance", "isPaidTime: boolean".
    Fields(
        CHAT,
        {
            "duration": (int,),
            "freeTimeRemaining": (int,),
            "credits": (str,),
            "isPaidTime": (bool,),
        },
        {"duration": 0, "credits": "0", "isPaidTime": False, "state": "none"},
        {"duration": 0, "credits": "8", "isPaidTime": False, "state": "none"},
    ),
]


def check(found: dict[str, Any], fields: Fields, expected: dict[str, Any]) -> None:
    """The answer has every documented field, of its type and unit."""
    for name, types in fields.types.items():
        assert type(found[name]) in types, (fields.path, name, found[name])
    assert {name: found[name] for name in expected} == expected, fields.path


async def read(server: TestServer, path: str) -> dict[str, Any]:
    response = await ask(server, "GET", path, server.token("ann", org="acme"))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def track(server: TestServer, minutes_ago: int, seconds: int) -> dict[str, Any]:
    """ "Body: session_id, seconds_recorded, minute_timestamp"."""
    body = {
        "session_id": "rec-1",
        "seconds_recorded": seconds,
        "minute_timestamp": minute_at(server, minutes_ago),
    }
    bearer = server.token("ann", org="acme")
    response = await ask(server, "POST", "/api/usage/track-minute", bearer, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def spend(server: TestServer, key: str) -> None:
    response = await ask(
        server,
        "POST",
        "/v1/accounts/ann/spend",
        server.token("ann", org="acme"),
        headers={"Idempotency-Key": key},
        json={"operation": "script_generation"},
    )
    assert response.status_code == 201, response.text


@pytest.mark.parametrize("fields", DOCUMENTED, ids=lambda fields: fields.path)
async def test_the_documents_fields(server: TestServer, fields: Fields) -> None:
    await ask(server, "PUT", "/v1/orgs/acme", json={"monthly_hours_limit": 10})
    check(await read(server, fields.path), fields, fields.nothing)

    await grant(server, "10", "k1", "/v1/accounts/ann/grants?org=acme")
    for minutes_ago, seconds in ((2, 60), (1, 60), (0, 20)):
        await track(server, minutes_ago, seconds)
    for key in ("s1", "s2"):
        await spend(server, key)
    check(await read(server, fields.path), fields, fields.something)


async def test_a_minute_that_was_reported_before_is_said_to_be(server: TestServer) -> None:
    """ "Handles duplicate prevention": the second answer says so, and nothing is counted."""
    first, again = await track(server, 1, 60), await track(server, 1, 60)
    assert (first["success"], first["duplicate"]) == (True, False)
    assert (again["success"], again["duplicate"]) == (True, True)
    assert first["minutes_used"] == again["minutes_used"] == 1
    other = await track(server, 0, 60)
    assert (other["duplicate"], other["minutes_used"]) == (False, 2)


async def test_a_month_has_its_days_only_for_who_asks(server: TestServer) -> None:
    """ "Includes daily breakdown (optional)", "Provides usage projections"."""
    await track(server, 0, 60)
    assert "daily" not in await read(server, "/api/usage/current-month")
    found = await read(server, "/api/usage/current-month?daily=true")
    assert sum(day["minutes"] for day in found["daily"]) == 1
    assert found["daily"][-1].keys() >= {"date", "minutes", "seconds"}
    assert found["projection"]["projected_minutes"] >= 1


async def test_what_a_feature_is_used(server: TestServer) -> None:
    """A feature's statistics have the fields of ``FeatureUsageStats``.

    They are feature, dailyUsage, weeklyUsage, monthlyUsage and averageCreditsPerAction.
    """
    await grant(server, "10", "k1", "/v1/accounts/ann/grants?org=acme")
    for key in ("s1", "s2"):
        await spend(server, key)
    found = (await read(server, "/api/usage/stats"))["byOperation"]
    scripts = next(one for one in found if one["feature"] == "script_generation")
    assert {name: scripts[name] for name in ("dailyUsage", "weeklyUsage", "monthlyUsage")} == {
        "dailyUsage": 2,
        "weeklyUsage": 2,
        "monthlyUsage": 2,
    }
    assert scripts["averageCreditsPerAction"] == 1


async def test_a_chat_is_started_proven_and_read(server: TestServer) -> None:
    """``sendHeartbeat`` and ``getTimeData``, as the chat's page calls them."""
    bearer = server.token("ann", org="acme")
    await grant(server, "10", "k1", "/v1/accounts/ann/grants?org=acme")
    # A heartbeat of a chat that was never started was no error, and is none.
    response = await ask(server, "POST", f"{CHAT}/heartbeat", bearer, json={})
    assert (response.status_code, response.json()["state"]) == (200, "none")
    started = {"kind": "chat", "advisorId": "advisor-1"}
    await ask(server, "POST", f"{CHAT}/heartbeat", bearer, json=started)
    # "60 - freeTimeUsed": a minute is free, and the clock shows whole seconds.
    advance(server, 20_000)
    found = await read(server, CHAT)
    assert found["duration"] + found["freeTimeRemaining"] == 60
    assert (found["credits"], found["isPaidTime"]) == ("10", False)
    await ask(server, "POST", f"{CHAT}/heartbeat", bearer)
    advance(server, 44_000)
    found = await read(server, CHAT)
    assert 64 <= found["duration"] < 90
    assert (found["freeTimeRemaining"], found["isPaidTime"]) == (0, True)
    assert 9 < float(found["credits"]) < 10


async def test_the_documents_sql_works(server: TestServer) -> None:
    """ "SELECT * FROM check_usage_limit('user_id', 'org_id')", and the two tables."""
    await ask(server, "PUT", "/v1/orgs/acme", json={"monthly_hours_limit": 10})
    await track(server, 0, 42)
    await server.flush()
    pool = server.process.records._pool
    row = await pool.fetchrow("SELECT * FROM usage_tracking WHERE session_id = 'rec-1'")
    assert row is not None
    assert (row["user_id"], row["org_id"], row["seconds"]) == ("ann", "acme", 42)
    row = await pool.fetchrow("SELECT * FROM monthly_usage_cache WHERE user_id = 'ann'")
    assert row is not None
    assert (row["total_minutes"], row["total_seconds"]) == (1, 42)
    row = await pool.fetchrow("SELECT * FROM check_usage_limit('ann', 'acme')")
    assert row is not None
    assert row["minutes_limit"] == 600
    row = await pool.fetchrow("SELECT * FROM organization_members WHERE user_id = 'ann'")
    assert row is not None
    assert row["current_month_minutes_used"] == 1
