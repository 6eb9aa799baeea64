"""Minutes that clients count themselves, and the sessions that they make."""

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from protocol import limits
from server import limits as server_limits
from tests.fixtures.database import Connection
from tests.fixtures.engines import grow_cold
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.server.api import advance, ask, assert_problem
from tests.server.minutes import (
    CHECK,
    MINUTE_MS,
    TRACK,
    ann,
    keep_off_month_ends,
    limit_member,
    limit_org,
    minute_at,
    read,
    recording,
    rows,
    track,
)

# --- Counted once -------------------------------------------------------------------


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


@pytest.mark.parametrize("limit", [limit_member, limit_org])
async def test_a_metered_session_gives_back_the_minute_that_is_reported(
    server: TestServer, limit: Callable[[TestServer, int], Awaitable[object]]
) -> None:
    """A metered session gives back the minute that a client reports.

    The metered session holds the whole rest of the month, of which it needs one minute.
    """
    await limit(server, 2)
    await recording(server, "live-1")
    assert (await track(server, 1)).status_code == 200
    refused = assert_problem(await track(server, 2), 402, "limit_reached")
    assert refused["limit"] in {"member_minutes", "org_minutes"}


@pytest.mark.parametrize("limit", [limit_member, limit_org])
async def test_minutes_of_sessions_that_do_not_answer_are_unavailable(
    server: TestServer, limit: Callable[[TestServer, int], Awaitable[object]]
) -> None:
    """As with credits, there may be minutes once the sessions answer."""
    await limit(server, 2)
    await recording(server, "live-1")
    tenants = server.process.registry.tenants
    listeners, tenants.listeners = tenants.listeners, []
    assert_problem(await track(server, 1), 503, "unavailable")
    client = await server.login("ann", org="acme")
    error = await client.ask("start", kind="recording", session_id="live-2")
    assert (error["type"], error["code"]) == ("error", "unavailable")
    tenants.listeners = listeners
    assert (await track(server, 1)).status_code == 200


async def consistent(server: TestServer, minutes: int) -> None:
    """Stops the session; checks the receipt against its segments."""
    await ask(server, "POST", "/v1/sessions/rec-1/stop", ann(server))
    for _ in range(2):  # from Redis, and from the record
        receipt = (await ask(server, "GET", "/v1/sessions/rec-1", ann(server))).json()
        instants = [part[at] for part in receipt["segments"] for at in ("from_at", "to_at")]
        instants = [receipt["started_at"], *instants, receipt["ended_at"]]
        assert instants == sorted(instants), receipt
        assert receipt["minutes"] == minutes
        await server.flush()
        await grow_cold(server.process.redis)


async def test_the_receipt_of_minutes_dated_ahead_is_in_order(server: TestServer) -> None:
    """The session was stopped before it had begun."""
    for minutes_ago in (-4, -2):
        assert (await track(server, minutes_ago)).status_code == 200
    await consistent(server, 2)


async def test_a_session_begins_with_its_earliest_minute(server: TestServer) -> None:
    for minutes_ago in (1, 3):
        assert (await track(server, minutes_ago)).status_code == 200
    await consistent(server, 2)


async def test_a_socket_goes_on_before_a_minute_dated_ahead(server: TestServer) -> None:
    """The segment of the counted minute ended before it began."""
    assert (await track(server, -4)).status_code == 200
    client = await server.login("ann", org="acme")
    await client.ask("start", kind="recording", session_id="rec-1")
    await client.ask("resume", session_id="rec-1")
    advance(server, 2_000)
    await client.ask("pause", session_id="rec-1")
    await consistent(server, 2)


async def test_an_exhausted_month_refuses_the_minute(
    server: TestServer, connection: Connection
) -> None:
    await limit_member(server, 2)
    for minutes_ago in (3, 2):
        assert (await track(server, minutes_ago)).status_code == 200
    problem = assert_problem(await track(server, 1), 402, "limit_reached")
    assert problem["limit"] == "member_minutes"
    # Counted minutes stay so, and a raised limit takes the minute at the next attempt.
    assert (await track(server, 2)).json()["duplicate"] is True
    await limit_member(server, 3)
    assert (await track(server, 1)).json()["duplicate"] is False
    await server.flush()
    assert len(await rows(connection)) == 3


async def test_what_a_live_session_needs_is_not_given_away(server: TestServer) -> None:
    await limit_org(server, 1)
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
    await grow_cold(server.process.redis)
    assert (await track(server)).json()["metered"] is True
    assert_problem(await track(server, 5), 409, "session_ended")


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
    keep_off_month_ends(server)
    now_ms = server.process.clock.now()
    taken = [
        now_ms - server_limits.REPORTED_MINUTE_LATE_MS_MAX + 2 * MINUTE_MS,
        now_ms + server_limits.REPORTED_MINUTE_AHEAD_MS_MAX - MINUTE_MS,
    ]
    for at in taken:
        assert (await track(server, minute_timestamp=at)).status_code == 200
    for at in (
        now_ms - server_limits.REPORTED_MINUTE_LATE_MS_MAX - MINUTE_MS,
        now_ms + server_limits.REPORTED_MINUTE_AHEAD_MS_MAX + 2 * MINUTE_MS,
    ):
        assert_problem(await track(server, minute_timestamp=at), 400, "bad_message")


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
    # The session is ann's, live or in the record.
    assert_problem(await track(server, 0, ben), 403, "forbidden")
    await grow_cold(server.process.redis)
    assert_problem(await track(server, 0, ben), 403, "forbidden")
    listed = ann(server, sessions=["rec-9"])
    assert_problem(await track(server, 0, listed), 403, "forbidden")
    assert (await track(server, 0, listed, session_id="rec-9")).status_code == 200
