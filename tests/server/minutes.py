"""Helpers of usage tests: owners, limits, and minutes of the clock."""

import datetime
from typing import Any
from weakref import WeakKeyDictionary

import httpx

from tests.fixtures.database import Connection
from tests.fixtures.server import SocketClient, TestServer
from tests.server.api import advance, ask

CHECK = "/api/usage/check-limit"
TRACK = "/api/usage/track-minute"
MONTH = "/api/usage/current-month"
MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS


def keep_off_month_ends(server: TestServer) -> None:
    """Moves the clock until a test's minutes lie in one month.

    This holds on whatever day the test is run.
    """
    now_ms = server.process.clock.now()
    days = (now_ms - 2 * DAY_MS, now_ms + 2 * DAY_MS)
    months = {datetime.datetime.fromtimestamp(at / 1000, datetime.UTC).month for at in days}
    if len(months) > 1:
        advance(server, 5 * DAY_MS)


BEGUN_AT: WeakKeyDictionary[TestServer, int] = WeakKeyDictionary()


def minute_at(server: TestServer, minutes_ago: int = 0) -> int:
    """The beginning of a minute of the clock, constant within a test."""
    if server not in BEGUN_AT:
        keep_off_month_ends(server)
        BEGUN_AT[server] = server.process.clock.now() // MINUTE_MS * MINUTE_MS
    return BEGUN_AT[server] - minutes_ago * MINUTE_MS


async def put(server: TestServer, path: str, **body: Any) -> None:
    response = await ask(server, "PUT", path, json=body)
    assert response.status_code == 200, response.text


def hours_of(minutes: int | None) -> float | None:
    """Minutes as a limit in hours."""
    return None if minutes is None else minutes / 60


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


async def recording(
    server: TestServer, session_id: str = "r1", user_id: str = "ann"
) -> SocketClient:
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
