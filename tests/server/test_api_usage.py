"""Usage at the paths of existing applications: the limit, the minute, the month."""

import asyncio
import datetime
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import msgspec
import pytest

from protocol import limits
from server.tracking import AHEAD_MS_MAX, LATE_MS_MAX, SILENCE_MS_MAX
from storage.records import UnavailableError
from storage.rows import SessionPrepared
from tests.fixtures.database import Connection
from tests.fixtures.server import API_KEY, Client, StartServer, TestServer
from tests.server.api import advance, ask, assert_problem
from tests.server.minutes import MINUTE_MS, keep_off_month_ends, minute_at

CHECK = "/api/usage/check-limit"
TRACK = "/api/usage/track-minute"
MONTH = "/api/usage/current-month"


async def put(server: TestServer, path: str, **body: Any) -> None:
    response = await ask(server, "PUT", path, json=body)
    assert response.status_code == 200, response.text


def hours_of(minutes: int | None) -> float | None:
    """A limit is in hours and enforced in whole minutes: a little more than they are."""
    return None if minutes is None else round(minutes / 60 + 0.001, 4)


async def limit_org(server: TestServer, minutes: int | None, **body: Any) -> None:
    await put(server, "/v1/orgs/acme", monthly_hours_limit=hours_of(minutes), **body)


async def limit_member(server: TestServer, minutes: int) -> None:
    await put(server, "/v1/orgs/acme/members/ann", monthly_hours_limit=hours_of(minutes))


def ann(server: TestServer, **claims: Any) -> str:
    return server.token("ann", **{"org": "acme", **claims})


async def read(server: TestServer, path: str, bearer: str | None = None) -> Any:
    response = await ask(server, "GET", path, bearer or ann(server))
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return response.json()


async def track(
    server: TestServer,
    minutes_ago: int = 0,
    bearer: str | None = None,
    path: str = TRACK,
    **changes: Any,
) -> httpx.Response:
    body = {
        "session_id": "rec-1",
        "seconds_recorded": 60,
        "minute_timestamp": minute_at(server, minutes_ago),
        **changes,
    }
    return await ask(server, "POST", path, bearer or ann(server), json=body)


async def recording(server: TestServer, session_id: str = "r1", user_id: str = "ann") -> Client:
    """A socket of a member who is recording."""
    keep_off_month_ends(server)
    client = await server.login(user_id, org="acme")
    started = await client.ask("start", kind="recording", session_id=session_id)
    assert started["state"] == "active", started
    return client


async def rows(connection: Connection) -> list[tuple[Any, ...]]:
    found = await connection.fetch(
        "SELECT session_id, minute, seconds, user_id, counts FROM usage_tracking ORDER BY 1, 2"
    )
    return [tuple(row) for row in found]


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


async def test_minutes_of_a_live_session_count_before_they_are_written_down(
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
    # A cold counter is as Postgres has it.
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


# --- A minute ----------------------------------------------------------------------


async def test_a_minute_is_counted_and_written_down(
    server: TestServer, connection: Connection
) -> None:
    await limit_org(server, 10)
    response = await track(server, seconds_recorded=42)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "success": True,
        "duplicate": False,
        "metered": False,
        "session_id": "rec-1",
        "minute": 0,
        "total_minutes_used": 1,
        "can_record": True,
        "minutes_used": 1,
        "minutes_limit": 10,
        "minutes_remaining": 9,
        "percentage_used": 10.0,
        "binding": "org_minutes",
    }
    assert await rows(connection) == [("rec-1", 0, 42, "ann", True)]
    await server.flush()
    assert await rows(connection) == [("rec-1", 0, 42, "ann", True)]
    assert await connection.fetchval("SELECT total_minutes FROM monthly_usage_cache") == 1


async def test_a_duplicate_is_answered_as_such_and_counted_once(
    server: TestServer, connection: Connection
) -> None:
    at = minute_at(server, 1)
    text = datetime.datetime.fromtimestamp(at / 1000 + 31, datetime.UTC).isoformat()
    first = (await track(server, minute_timestamp=at)).json()
    second = (await track(server, minute_timestamp=text.replace("+00:00", "Z"))).json()
    third = (await track(server, minute_timestamp=at, seconds_recorded=12)).json()
    assert (first["duplicate"], first["minute"]) == (False, 0)
    for again in (second, third):
        assert again["success"] is True
        assert (again["duplicate"], again["metered"], again["minute"]) == (True, False, 0)
        assert again["total_minutes_used"] == 1
    await server.flush()
    assert await rows(connection) == [("rec-1", 0, 60, "ann", True)]


async def test_the_same_minute_of_another_session_is_another(
    server: TestServer, connection: Connection
) -> None:
    await track(server)
    response = await track(server, session_id="rec-2")
    assert (response.json()["duplicate"], response.json()["minutes_used"]) == (False, 2)
    assert [row[:2] for row in await rows(connection)] == [("rec-1", 0), ("rec-2", 0)]


async def test_many_at_once_are_each_counted_once(
    start_server: StartServer, connection: Connection
) -> None:
    servers = [await start_server(), await start_server()]
    reports = [(server, ago) for ago in range(5) for server in servers for _ in range(2)]
    begun_at = min(minute_at(server) for server in servers)

    async def report(server: TestServer, ago: int) -> httpx.Response:
        while True:
            response = await track(server, minute_timestamp=begun_at - ago * MINUTE_MS)
            if response.status_code != 503:
                return response

    responses = await asyncio.gather(*(report(*asked) for asked in reports))
    assert {response.status_code for response in responses} == {200}
    assert sum(not response.json()["duplicate"] for response in responses) == 5
    await servers[0].flush()
    assert [row[1] for row in await rows(connection)] == [0, 1, 2, 3, 4]
    assert (await read(servers[0], CHECK))["minutes_used"] == 5


async def test_minutes_may_come_in_any_order(server: TestServer, connection: Connection) -> None:
    for minutes_ago in (3, 1, 2):
        assert (await track(server, minutes_ago)).status_code == 200
    stopped = await ask(server, "POST", "/v1/sessions/rec-1/stop", ann(server))
    receipt = stopped.json()
    assert receipt["minutes"] == 3
    assert receipt["segments"] == [{"from_at": minute_at(server, 3), "to_at": minute_at(server)}]
    assert [row[1] for row in await rows(connection)] == [0, 1, 2]


async def test_an_exhausted_month_refuses_the_minute(
    server: TestServer, connection: Connection
) -> None:
    await limit_member(server, 2)
    for minutes_ago in (3, 2):
        assert (await track(server, minutes_ago)).status_code == 200
    problem = assert_problem(await track(server, 1), 402, "limit_reached")
    assert problem["limit"] == "member_minutes"
    # What was counted stays so, and a raised limit takes the minute at the next attempt.
    assert (await track(server, 2)).json()["duplicate"] is True
    await limit_member(server, 3)
    assert (await track(server, 1)).json()["duplicate"] is False
    await server.flush()
    assert len(await rows(connection)) == 3


async def test_what_a_live_session_holds_is_not_given_away(server: TestServer) -> None:
    await limit_org(server, 2)
    await recording(server)
    problem = assert_problem(await track(server), 402, "limit_reached")
    assert problem["limit"] == "org_minutes"


async def test_a_metered_minute_is_not_counted_again(
    server: TestServer, connection: Connection
) -> None:
    client = await recording(server, "rec-1")
    answer = (await track(server)).json()
    assert (answer["success"], answer["duplicate"], answer["metered"]) == (True, True, True)
    assert answer["minute"] is None
    await client.ask("stop", session_id="rec-1")
    late = (await track(server)).json()
    assert (late["duplicate"], late["metered"]) == (True, True)
    await server.flush()
    assert [row[1] for row in await rows(connection)] == [0]
    # Redis forgets ended sessions, and the record knows them.
    await server.process.redis.flushdb()
    assert (await track(server)).json()["metered"] is True
    assert_problem(await track(server, 5), 409, "session_ended")


async def test_a_browser_that_learns_to_open_a_socket_goes_on(
    server: TestServer, connection: Connection
) -> None:
    await track(server, 2)
    await track(server, 1, seconds_recorded=30)
    client = await server.login("ann", org="acme")
    joined = await client.ask("start", kind="recording", session_id="rec-1")
    assert (joined["state"], joined["elapsed_ms"]) == ("paused", 90_000)
    assert (await track(server)).json()["metered"] is True
    resumed = await client.ask("resume", session_id="rec-1")
    assert resumed["state"] == "active"
    advance(server, 40_000)
    await client.ask("ping")
    stopped = await client.ask("stop", session_id="rec-1")
    assert stopped["receipt"]["minutes"] == 3
    await server.flush()
    assert [row[1] for row in await rows(connection)] == [0, 1, 2]
    assert (await read(server, CHECK))["minutes_used"] == 3


async def test_a_tracked_session_ends_when_nothing_more_is_heard_of_it(
    server: TestServer, connection: Connection
) -> None:
    await track(server, 1)
    path = "/v1/sessions/rec-1"
    snapshot = (await ask(server, "GET", path, ann(server))).json()
    assert (snapshot["state"], snapshot["elapsed_ms"]) == ("paused", 60_000)
    advance(server, SILENCE_MS_MAX // 2)
    last_at = minute_at(server) + SILENCE_MS_MAX // 2 - MINUTE_MS
    answer = await track(server, minute_timestamp=last_at, seconds_recorded=5)
    assert answer.json()["minute"] == 1
    # The timer of the first minute fires, and waits on for the second.
    advance(server, SILENCE_MS_MAX // 2 + 2 * MINUTE_MS)
    await server.process.hub.idle()
    assert (await ask(server, "GET", path, ann(server))).json()["state"] == "paused"
    advance(server, SILENCE_MS_MAX // 2)
    async with asyncio.timeout(10):
        while "state" in (found := (await ask(server, "GET", path, ann(server))).json()):
            pass
    assert (found["reason"], found["ended_at"]) == ("disconnected", last_at + 5_000)
    assert (found["elapsed_ms"], found["minutes"], found["credits"]) == (65_000, 2, "0")
    response = await track(server, minute_timestamp=server.process.clock.now())
    assert_problem(response, 409, "session_ended")
    await server.flush()
    row = await connection.fetchrow("SELECT state, minutes, metadata FROM sessions")
    assert row is not None
    assert tuple(row) == ("ended", 2, '{"tracked": true}')


async def test_after_redis_came_back_empty_the_record_goes_on(
    server: TestServer, connection: Connection
) -> None:
    await limit_org(server, 10)
    await track(server, 2)
    await track(server, 1, seconds_recorded=10)
    await server.process.redis.flushdb()
    assert (await track(server, 2)).json()["duplicate"] is True
    answer = (await track(server)).json()
    assert (answer["duplicate"], answer["minute"], answer["minutes_used"]) == (False, 2, 3)
    await server.flush()
    assert [row[1:3] for row in await rows(connection)] == [(0, 60), (1, 10), (2, 60)]


async def test_without_postgres_a_minute_is_on_its_way(
    server: TestServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await limit_org(server, 2, timezone="Europe/Berlin")
    await track(server, 2)

    async def away(*_: Any, **__: Any) -> None:
        raise UnavailableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(server.process.records, "_run", away)
        answer = await track(server, 1)
        assert answer.status_code == 200
        assert answer.json()["minutes_remaining"] == 0
        assert (await read(server, CHECK))["can_record"] is False
        assert_problem(await track(server), 402, "limit_reached")
        # Of whom nothing was asked before, nothing is known.
        ben = server.token("ben", org="acme")
        assert_problem(await ask(server, "GET", CHECK, ben), 503, "unavailable")
    assert len(await rows(connection)) == 1
    await server.flush()
    assert len(await rows(connection)) == 2


async def test_a_prepared_session_keeps_its_terms(
    start_server: StartServer, connection: Connection
) -> None:
    server = await start_server(start="prepared")
    assert_problem(await track(server), 403, "forbidden")
    terms = msgspec.structs.replace(server.process.rates.terms("recording"), session_cap_ms=90_000)
    await server.process.records.prepare_session(
        SessionPrepared(
            tenant="org:acme",
            session_id="rec-1",
            user_id="ann",
            org_id="acme",
            account_id="wallet",
            counterpart_id="advisor",
            kind="recording",
            terms=terms,
            metadata={"room": 7},
        )
    )
    assert_problem(await track(server, bearer=server.token("ben", org="acme")), 403, "forbidden")
    assert (await track(server, 1)).status_code == 200
    problem = assert_problem(await track(server), 402, "limit_reached")
    assert problem["limit"] == "session_cap"
    row = await connection.fetchrow(
        "SELECT account_id, counterpart_id, metadata::jsonb ->> 'room' FROM sessions"
    )
    assert row is not None
    assert tuple(row) == ("wallet", "advisor", "7")
    # A backend needs no preparation.
    path = f"{TRACK}?org=acme&user=ben"
    assert (await track(server, 0, API_KEY, path, session_id="rec-2")).status_code == 200


@pytest.mark.parametrize("kind", ["chat", "chat-demo"])
async def test_what_costs_credits_is_not_taken_on_a_clients_word(
    server: TestServer, kind: str, connection: Connection
) -> None:
    assert_problem(await track(server, kind=kind), 422, "metered_kind")
    assert_problem(await track(server, kind="calls"), 422, "unknown_kind")
    assert await rows(connection) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"session_id": "a b"}, "session_id"),
        ({"session_id": None}, "session_id"),
        ({"seconds_recorded": 0}, "seconds_recorded"),
        ({"seconds_recorded": 61}, "seconds_recorded"),
        ({"seconds_recorded": "60"}, "seconds_recorded"),
        ({"seconds_recorded": 1.5}, "seconds_recorded"),
        ({"minute_timestamp": "yesterday"}, "minute_timestamp"),
        ({"minute_timestamp": "2026-11-30T12:00:00"}, "minute_timestamp"),
        ({"minute_timestamp": "0001-01-01T00:00:00+14:00"}, "minute_timestamp"),
        ({"minute_timestamp": "9999-12-31T23:59:59-14:00"}, "minute_timestamp"),
        ({"minute_timestamp": "1" * 65}, "minute_timestamp"),
        ({"minute_timestamp": True}, "minute_timestamp"),
        ({"minute_timestamp": 0}, "minute_timestamp"),
        ({"minute_timestamp": limits.SAFE_INTEGER_MAX}, "minute_timestamp"),
        ({"kind": "a b"}, "kind"),
    ],
)
async def test_a_minute_that_is_none_is_refused(
    server: TestServer, changes: dict[str, Any], named: str
) -> None:
    problem = assert_problem(await track(server, **changes), 400, "bad_message")
    assert named in problem["detail"]


async def test_a_minute_may_be_a_day_late_and_a_little_ahead(server: TestServer) -> None:
    now_ms = server.process.clock.now()
    taken = [now_ms - LATE_MS_MAX + 2 * MINUTE_MS, now_ms + AHEAD_MS_MAX - MINUTE_MS]
    for at in taken:
        assert (await track(server, minute_timestamp=at)).status_code == 200
    for at in (now_ms - LATE_MS_MAX - MINUTE_MS, now_ms + AHEAD_MS_MAX + 2 * MINUTE_MS):
        assert_problem(await track(server, minute_timestamp=at), 400, "bad_message")


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


async def test_minutes_that_are_not_written_down_yet_are_in_the_total(server: TestServer) -> None:
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
async def test_backends_and_operators_name_the_user(server: TestServer, path: str) -> None:
    operator = server.token("olga", scope="ops")
    for bearer in (API_KEY, operator):
        named = await ask(server, "GET", f"{path}?org=acme&user=ann", bearer)
        assert named.status_code == 200
        unnamed = await ask(server, "GET", f"{path}?org=acme", bearer)
        assert_problem(unnamed, 400, "bad_message")
    assert_problem(await ask(server, "GET", path, API_KEY), 400, "bad_message")
    # An operator who names nobody is a user as well.
    assert (await ask(server, "GET", path, operator)).status_code == 200


async def test_users_of_one_name_are_another_in_each_tenant(server: TestServer) -> None:
    await track(server)
    assert (await read(server, CHECK))["minutes_used"] == 1
    for bearer in (server.token("ann"), ann(server, org="other")):
        assert (await read(server, CHECK, bearer))["minutes_used"] == 0
    response = await ask(server, "GET", f"{CHECK}?org=acme&user=ann")
    assert response.json()["minutes_used"] == 1


async def test_who_may_report_a_minute(server: TestServer) -> None:
    for bearer in (None, "wrong"):
        response = await ask(server, "POST", TRACK, bearer, json={})
        assert_problem(response, 401, "unauthenticated")
    path = f"{TRACK}?org=acme&user=ann"
    ben = server.token("ben", org="acme")
    assert_problem(await track(server, 0, ben, path), 403, "forbidden")
    assert_problem(await track(server, 0, ann(server), f"{TRACK}?org=other"), 403, "forbidden")
    assert (await track(server, 0, API_KEY, path)).json()["duplicate"] is False
    assert (await track(server)).json()["duplicate"] is True
    # The session is ann's, live or written down.
    assert_problem(await track(server, 0, ben), 403, "forbidden")
    await server.process.redis.flushdb()
    assert_problem(await track(server, 0, ben), 403, "forbidden")
    listed = ann(server, sessions=["rec-9"])
    assert_problem(await track(server, 0, listed), 403, "forbidden")
    assert (await track(server, 0, listed, session_id="rec-9")).status_code == 200
