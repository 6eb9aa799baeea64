"""Organisations and members over HTTP, and the effect on live sessions."""

import asyncio
import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.counters.calendars import calendar
from server.counters.projections import Month
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import advance, ask, assert_problem

ORG = "/v1/orgs/acme"
MEMBER = "/v1/orgs/acme/members/ann"


def month_before(month: str) -> str:
    day = datetime.date.fromisoformat(month) - datetime.timedelta(days=1)
    return day.replace(day=1).isoformat()


async def put(
    server: TestServer, path: str, bearer: str | None = None, **body: Any
) -> httpx.Response:
    if bearer is not None:
        return await ask(server, "PUT", path, bearer, json=body)
    return await ask(server, "PUT", path, json=body)


async def recording(server: TestServer, session_id: str = "r1") -> Any:
    """A socket of a member who is recording."""
    client = await server.login("ann", org="acme")
    started = await client.ask("start", kind="recording", session_id=session_id)
    assert started["state"] == "active", started
    return client


# --- What is put ---------------------------------------------------------------------


async def test_an_organisation_that_is_put_with_nothing_has_the_defaults(
    server: TestServer,
) -> None:
    assert_problem(await ask(server, "GET", ORG), 404, "unknown_organization")
    response = await put(server, ORG)
    assert response.status_code == 200
    month = calendar("UTC").month(server.process.clock.now())
    assert response.json() == {
        "org_id": "acme",
        "monthly_hours_limit": None,
        "monthly_minutes_limit": None,
        "timezone": "UTC",
        "tier": "free",
        "allow_overage": False,
        "month": month,
        "minutes_used": 0,
        "overage_minutes": 0,
    }
    assert (await ask(server, "GET", ORG)).json() == response.json()


async def test_absent_fields_stay_and_null_removes_a_limit(server: TestServer) -> None:
    await put(server, ORG, monthly_hours_limit=10, timezone="Europe/Berlin", allow_overage=True)
    changed = (await put(server, ORG, monthly_hours_limit=0.99)).json()
    assert changed["monthly_hours_limit"] == 0.99
    assert changed["monthly_minutes_limit"] == 59
    assert changed["timezone"] == "Europe/Berlin"
    assert changed["allow_overage"] is True
    changed = (await put(server, ORG, monthly_hours_limit=None)).json()
    assert changed["monthly_hours_limit"] is None
    assert changed["monthly_minutes_limit"] is None
    assert changed["timezone"] == "Europe/Berlin"


async def test_a_member_has_a_limit_of_their_own(server: TestServer) -> None:
    assert_problem(await ask(server, "GET", MEMBER), 404, "unknown_member")
    await put(server, ORG, timezone="Pacific/Kiritimati")
    changed = (await put(server, MEMBER, monthly_hours_limit=1.5)).json()
    month = changed.pop("month")
    assert month.endswith("-01")
    assert changed == {
        "org_id": "acme",
        "user_id": "ann",
        "monthly_hours_limit": 1.5,
        "monthly_minutes_limit": 90,
        "minutes_used": 0,
        "overage_minutes": 0,
    }
    assert (await put(server, MEMBER)).json()["monthly_hours_limit"] == 1.5
    assert (await ask(server, "GET", MEMBER)).json()["monthly_minutes_limit"] == 90
    assert (await put(server, MEMBER, monthly_hours_limit=None)).json()[
        "monthly_minutes_limit"
    ] is None


async def test_a_member_shows_what_is_used_of_the_month(server: TestServer) -> None:
    client = await recording(server)
    advance(server, 70_000)
    await client.ask("stop", session_id="r1")
    await server.flush()
    found = (await ask(server, "GET", MEMBER)).json()
    assert found["minutes_used"] == 2
    assert found["monthly_hours_limit"] is None


async def test_what_is_beyond_the_limit_can_be_billed_apart(server: TestServer) -> None:
    earlier = month_before(calendar("UTC").month(server.process.clock.now()))
    await put(server, ORG, monthly_hours_limit=2 / 60, allow_overage=True)
    for user_id in ("ann", "ben"):
        for month in (earlier, None):
            await server.process.ledger.adjust_minutes(
                "org:acme",
                user_id,
                entry_id=f"{user_id}:{month}",
                minutes=3 if month else 2,
                reason="recorded elsewhere",
                month=month,
            )
    before = (await ask(server, "GET", f"{ORG}?month={earlier}")).json()
    assert (before["month"], before["minutes_used"]) == (earlier, 6)
    assert before["overage_minutes"] == 4
    now = (await ask(server, "GET", ORG)).json()
    assert (now["minutes_used"], now["overage_minutes"]) == (4, 2)
    bens = (await ask(server, "GET", f"/v1/orgs/acme/members/ben?month={earlier}")).json()
    assert (bens["minutes_used"], bens["overage_minutes"]) == (3, 3)
    anns = (await ask(server, "GET", MEMBER)).json()
    assert (anns["minutes_used"], anns["overage_minutes"]) == (2, 0)
    for path in ("/api/usage/current-month", "/api/users/stats-v2"):
        found = (await ask(server, "GET", path, server.token("ben", org="acme"))).json()
        assert (found["overage_minutes"], found["binding"]) == (2, None)
    for wrong in ("2026-11-02", "2026-11", "", "2026-13-01"):
        assert_problem(await ask(server, "GET", f"{ORG}?month={wrong}"), 400, "bad_message")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"monthly_hours_limit": -0.1}, "monthly_hours_limit"),
        ({"monthly_hours_limit": 1_000_001}, "monthly_hours_limit"),
        ({"monthly_hours_limit": "10"}, "monthly_hours_limit"),
        ({"timezone": "Europe/Berlin-Mitte"}, "timezone"),
        ({"timezone": "../../etc/passwd"}, "timezone"),
        ({"timezone": "Europe"}, "timezone"),
        ({"timezone": ""}, "timezone"),
        ({"timezone": None}, "timezone"),
        ({"tier": "fre"}, "tier"),
        ({"tier": "a b"}, "tier"),
        ({"tier": None}, "tier"),
        ({"allow_overage": 1}, "allow_overage"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    server: TestServer, body: dict[str, Any], named: str
) -> None:
    assert named in assert_problem(await put(server, ORG, **body), 400, "bad_message")["detail"]
    assert_problem(await ask(server, "GET", ORG), 404, "unknown_organization")


async def test_near_misses_of_zone_and_tier_get_suggestions(server: TestServer) -> None:
    zone = assert_problem(await put(server, ORG, timezone="Europe/Berln"), 400, "bad_message")
    assert "'Europe/Berlin'" in zone["detail"]
    tier = assert_problem(await put(server, ORG, tier="fre"), 400, "bad_message")
    assert "'free'" in tier["detail"]


async def test_a_zone_that_only_python_knows_is_refused(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = frozenset({"Middle-earth/Shire"})
    monkeypatch.setattr("server.api.organizations._timezones", lambda: known)
    response = await put(server, ORG, timezone="Middle-earth/Shire")
    assert "Middle-earth/Shire" in assert_problem(response, 400, "bad_message")["detail"]


async def test_a_card_without_tiers_takes_any(start_server: StartServer, tmp_path: Path) -> None:
    card = tmp_path / "rates.toml"
    card.write_text('[kinds.chat]\ncredits_per_minute = "1"\n')
    server = await start_server(rates=card)
    assert (await put(server, ORG, tier="gold")).json()["tier"] == "gold"


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"tier":"free","tier":"free"}'])
async def test_a_body_that_is_no_object_is_refused(server: TestServer, body: bytes) -> None:
    assert_problem(await ask(server, "PUT", ORG, content=body), 400, "bad_message")


# --- Live sessions -------------------------------------------------------------------


async def test_a_members_limit_is_lowered_and_raised_while_they_record(
    server: TestServer,
) -> None:
    client = await recording(server)
    await put(server, MEMBER, monthly_hours_limit=0)
    warning = await client.until("limit_warning")
    assert warning["limit"] == "member_minutes"
    # Time that was granted before is kept: the minute under way and the margin's.
    assert warning["remaining_ms"] <= 120_000
    tick = await client.until("tick")
    assert tick["limit"] == "member_minutes"
    await put(server, MEMBER, monthly_hours_limit=100)
    cleared = await client.until("limit_cleared")
    assert cleared["limit"] == "member_minutes"
    assert cleared["remaining_ms"] > 99 * 3_600_000
    await put(server, MEMBER, monthly_hours_limit=None)
    await client.until("tick", lambda tick: tick["limit"] is None)


async def test_a_lowered_limit_stops_the_recording(server: TestServer) -> None:
    client = await recording(server)
    await put(server, MEMBER, monthly_hours_limit=0)
    await client.until("limit_warning")
    advance(server, 130_000)
    reached = await client.until("limit_reached")
    assert reached["limit"] == "member_minutes"
    # A raised limit and a resume within the grace go on.
    await put(server, MEMBER, monthly_hours_limit=1)
    assert (await client.ask("resume", session_id="r1"))["state"] == "active"


async def test_an_organisations_limit_binds_every_member(server: TestServer) -> None:
    client = await recording(server)
    await put(server, ORG, monthly_hours_limit=0)
    assert (await client.until("limit_warning"))["limit"] == "org_minutes"
    # Overage lets them go on.
    await put(server, ORG, allow_overage=True)
    assert (await client.until("limit_cleared"))["limit"] == "org_minutes"
    refused = await server.login("ben", org="acme")
    await put(server, ORG, allow_overage=False)
    error = await refused.ask("start", kind="recording", session_id="r2")
    assert (error["type"], error["code"], error["limit"]) == (
        "error",
        "limit_reached",
        "org_minutes",
    )


async def test_a_limit_reaches_the_sessions_of_other_processes(
    start_server: StartServer,
) -> None:
    here, there = await start_server(), await start_server()
    client = await recording(there)
    await put(here, MEMBER, monthly_hours_limit=0)
    assert (await client.until("limit_warning"))["limit"] == "member_minutes"


async def test_a_time_zone_reaches_the_sessions_of_other_processes(
    start_server: StartServer,
) -> None:
    here, there = await start_server(), await start_server()
    await put(here, ORG, timezone="UTC")
    # The last hour of a month in Greenwich, which Berlin has begun without.
    now_ms = there.process.clock.now()
    month = Month(calendar("UTC"), now_ms + 1_800_000)
    for server in (here, there):
        advance(server, month.ends_at - 1_800_000 - now_ms)
    client = await recording(there)
    await put(here, MEMBER, monthly_hours_limit=1)
    tick = await client.until("tick", lambda tick: tick["limit"] == "member_minutes")
    # Half an hour more of this month, and an hour of the next one.
    assert 85 * 60_000 < tick["remaining_ms"] <= 91 * 60_000
    await put(here, ORG, timezone="Europe/Berlin")
    await client.until("tick", lambda tick: tick["remaining_ms"] <= 61 * 60_000)
    await put(here, ORG, timezone="UTC")
    await client.until("tick", lambda tick: tick["remaining_ms"] > 85 * 60_000)


async def test_changes_at_once_leave_redis_with_what_postgres_has(server: TestServer) -> None:
    await recording(server)
    responses = await asyncio.gather(
        *(put(server, MEMBER, monthly_hours_limit=hours) for hours in range(1, 21))
    )
    assert {response.status_code for response in responses} == {200}
    written = (await ask(server, "GET", MEMBER)).json()["monthly_minutes_limit"]
    key = server.process.live.keys.member("org:acme", "ann")
    assert int(await server.process.redis.hget(key, "limit")) == written  # type: ignore[arg-type]


# --- Who may -----------------------------------------------------------------------


@pytest.mark.parametrize("path", [ORG, MEMBER])
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_only_backends_and_operators_get_in(
    server: TestServer, method: str, path: str
) -> None:
    for bearer in (None, "wrong"):
        assert_problem(await ask(server, method, path, bearer, json={}), 401, "unauthenticated")
    for token in (server.token(), server.token("ann", org="acme")):
        assert_problem(await ask(server, method, path, token, json={}), 403, "forbidden")
    operator = server.token("olga", scope="ops")
    assert (await ask(server, "PUT", path, operator, json={})).status_code == 200
    assert (await ask(server, "GET", path, operator)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/orgs/a b", "/v1/orgs/acme/members/a b"])
async def test_an_id_that_is_none_is_refused(server: TestServer, path: str) -> None:
    assert_problem(await put(server, path), 400, "bad_message")
