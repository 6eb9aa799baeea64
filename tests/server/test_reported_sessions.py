"""Sessions from reported minutes: their end, their contents, and their return."""

import asyncio
import datetime
import json
from typing import Any

import msgspec
import pytest

from protocol import limits
from protocol.metering.steps import minute_record
from server import limits as server_limits
from storage.postgres.records import UnavailableError
from storage.redis.live import LiveError
from storage.redis.reported_minutes import MinuteReporter
from storage.rows.sessions import SessionPrepared
from tests.fixtures.database import Connection
from tests.fixtures.engines import grow_cold
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.server.api import advance, ask, assert_problem, settled
from tests.server.minutes import (
    CHECK,
    MINUTE_MS,
    MONTH,
    TRACK,
    ann,
    keep_off_month_ends,
    limit_org,
    minute_at,
    read,
    rows,
    track,
)


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


async def test_a_reported_session_ends_without_further_reports(
    server: TestServer, connection: Connection
) -> None:
    await track(server, 1)
    path = "/v1/sessions/rec-1"
    snapshot = (await ask(server, "GET", path, ann(server))).json()
    assert (snapshot["state"], snapshot["elapsed_ms"]) == ("paused", 60_000)
    advance(server, server_limits.REPORTED_SILENCE_MS_MAX // 2)
    last_at = minute_at(server) + server_limits.REPORTED_SILENCE_MS_MAX // 2 - MINUTE_MS
    answer = await track(server, minute_timestamp=last_at, seconds_recorded=5)
    assert answer.json()["minute"] == 1
    # The timer of the first minute fires, and is set again for the second.
    advance(server, server_limits.REPORTED_SILENCE_MS_MAX // 2 + 2 * MINUTE_MS)
    await settled(server)
    assert (await ask(server, "GET", path, ann(server))).json()["state"] == "paused"
    advance(server, server_limits.REPORTED_SILENCE_MS_MAX // 2)
    async with asyncio.timeout(10):
        while "state" in (found := (await ask(server, "GET", path, ann(server))).json()):
            pass
    assert (found["reason"], found["ended_at"]) == ("disconnected", last_at + 5_000)
    assert (found["elapsed_ms"], found["minutes"], found["credits"]) == (65_000, 2, "0")
    response = await track(server, minute_timestamp=server.process.clock.now())
    assert_problem(response, 409, "session_ended")
    await server.flush()
    row = await connection.fetchrow("SELECT state, minutes, metadata, is_reported FROM sessions")
    assert row is not None
    assert tuple(row) == ("ended", 2, None, True)
    # No session uses the counters any more, so they may leave Redis.
    keys, redis = server.process.live.keys, server.process.redis
    for key in (
        keys.account("org:acme", "ann"),
        keys.member("org:acme", "ann"),
        keys.organization("org:acme"),
    ):
        assert await redis.hget(key, "live") == b"0"
        assert await redis.pttl(key) > 0


async def test_a_reported_session_that_was_stopped_is_left_alone(server: TestServer) -> None:
    await track(server)
    stopped = await ask(server, "POST", "/v1/sessions/rec-1/stop", ann(server))
    assert stopped.json()["minutes"] == 1
    advance(server, server_limits.REPORTED_SILENCE_MS_MAX + MINUTE_MS)
    found = (await ask(server, "GET", "/v1/sessions/rec-1", ann(server))).json()
    assert found == stopped.json()


async def test_a_user_without_an_organisation_counts_too(
    server: TestServer, connection: Connection
) -> None:
    ann_alone = server.token("ann")
    assert (await track(server, 0, ann_alone)).json()["minutes_used"] == 1
    month = await read(server, f"{MONTH}?daily=true", ann_alone)
    assert (month["total_minutes"], month["timezone"]) == (1, "UTC")
    assert sum(day["minutes"] for day in month["daily"]) == 1
    assert await connection.fetchval("SELECT tenant FROM usage_tracking") == "user:ann"


async def test_without_redis_a_minute_is_to_be_sent_again(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise LiveError("away")

    with monkeypatch.context() as patched:
        patched.setattr(MinuteReporter, "track", away)
        assert_problem(await track(server), 503, "unavailable")
    assert (await track(server)).json()["duplicate"] is False


async def test_after_everything_left_redis_the_record_goes_on(
    server: TestServer, connection: Connection
) -> None:
    await limit_org(server, 10)
    await track(server, 2)
    await track(server, 1, seconds_recorded=10)
    await grow_cold(server.process.redis)
    assert (await track(server, 2)).json()["duplicate"] is True
    answer = (await track(server)).json()
    assert (answer["duplicate"], answer["minute"], answer["minutes_used"]) == (False, 2, 3)
    await server.flush()
    assert [row[1:3] for row in await rows(connection)] == [(0, 60), (1, 10), (2, 60)]


@pytest.mark.parametrize("is_lost", [False, True], ids=["a replica", "an empty Redis"])
async def test_a_gap_in_the_recorded_minutes_is_waited_for(
    server: TestServer, connection: Connection, is_lost: bool
) -> None:
    """A new minute waits while recorded minutes have a gap.

    The record has a later minute that Redis lacks, and the minute before is on its way: the next
    minute must get the number of neither.
    """
    process = server.process
    await limit_org(server, 10)
    await track(server, 4)
    found = await process.live.attach("org:acme", "rec-1", read_only=True)
    assert found is not None
    identity = found.session.identity

    async def write(number: int, minutes_ago: int) -> None:
        at = minute_at(server, minutes_ago)
        month = datetime.datetime.fromtimestamp(at / 1000, datetime.UTC).strftime("%Y-%m-01")
        minute = minute_record(
            identity, number, seconds=60, started_at=at, month=month, counts=True,
            credits_micros=0, free_ms=0,
        )  # fmt: skip
        await process.records.write([minute])

    await write(2, 2)
    if is_lost:
        await grow_cold(process.redis)
    assert_problem(await track(server, 1), 503, "unavailable")
    process.recovery.suspect_loss()
    await process.recovery.idle()  # nor does it put back what is not complete
    assert_problem(await track(server, 1), 503, "unavailable")
    assert [row[1] for row in await rows(connection)] == [0, 2]
    await write(1, 3)
    answer = (await track(server, 1)).json()
    assert (answer["duplicate"], answer["minute"], answer["minutes_used"]) == (False, 3, 4)
    assert [row[1] for row in await rows(connection)] == [0, 1, 2, 3]


@pytest.mark.parametrize("tracked", [True, "true", 1])
async def test_metadata_makes_no_session_reported(
    server: TestServer, connection: Connection, tracked: object
) -> None:
    keep_off_month_ends(server)
    client, metadata = await server.login(org="acme"), {"tracked": tracked, "is_reported": True}
    await client.ask("start", kind="recording", session_id="rec-1", metadata=metadata)
    await server.flush()
    row = await connection.fetchrow("SELECT metadata::text, is_reported FROM sessions")
    assert row is not None
    assert (json.loads(row["metadata"]), row["is_reported"]) == (metadata, False)
    # Redis has lost the session: its process asserts it, and no client's request does.
    await grow_cold(server.process.redis)
    assert_problem(await track(server), 503, "unavailable")


async def test_reported_session_keeps_its_metadata(
    start_server: StartServer, connection: Connection
) -> None:
    server = await start_server()
    keep_off_month_ends(server)
    preparation = {"session_id": "rec-1", "kind": "recording", "user_id": "ann"}
    metadata = {"tracked": False, "room": 7}
    body = {**preparation, "metadata": metadata}
    assert (await ask(server, "POST", "/v1/sessions?org=acme", json=body)).status_code == 201
    assert (await track(server, 1)).status_code == 200
    row = await connection.fetchrow("SELECT metadata::text, is_reported FROM sessions")
    assert row is not None
    assert (json.loads(row["metadata"]), row["is_reported"]) == (metadata, True)
    await grow_cold(server.process.redis)
    assert (await track(server)).json()["minute"] == 1


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
            expires_at=limits.SAFE_INTEGER_MAX,
            metadata={"room": 7},
        ),
        0,
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
