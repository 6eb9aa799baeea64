"""Sessions for which no process speaks are read from Redis."""

import pytest

from server.ops import limits as ops_limits
from server.ops.live_table import REDIS, LiveTable
from server.ops.unattended import UnattendedSessions
from storage.redis.live_feed import LiveFeed
from tests.fixtures.server import TestServer
from tests.fixtures.socket_client import SocketClient
from tests.server.live_row_examples import live_row


@pytest.fixture
def table() -> LiveTable:
    return LiveTable()


@pytest.fixture
def unattended(server: TestServer, table: LiveTable) -> UnattendedSessions:
    process = server.process
    return UnattendedSessions(table, LiveFeed(process.live), process.clock)


async def begin(server: TestServer, count: int) -> SocketClient:
    client = await server.login()
    for number in range(count):
        await client.ask("start", kind="chat", session_id=f"s{number}")
    return client


async def test_redis_alone_fills_the_table(
    server: TestServer, table: LiveTable, unattended: UnattendedSessions
) -> None:
    await begin(server, 40)
    await unattended.look_at_all()
    assert set(table.rows) == set(server.process.registry.local_sessions)
    assert table.keys_of(REDIS) == set(table.rows)


async def test_a_session_that_redis_has_no_longer_goes(
    server: TestServer, table: LiveTable, unattended: UnattendedSessions
) -> None:
    client = await begin(server, 2)
    await unattended.look_at_all()
    await client.ask("stop", session_id="s0")
    await unattended.look()
    assert set(table.rows) == {"user:ann/s1"}


async def test_what_a_process_says_is_left_alone(
    server: TestServer, table: LiveTable, unattended: UnattendedSessions
) -> None:
    await begin(server, 1)
    row = live_row("s0", nodes=("web-1",))
    table.put("web-1", row)
    await unattended.look_at_all()
    assert table.rows == {row.key: row}


async def test_what_is_missing_has_a_bound(
    unattended: UnattendedSessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops_limits, "MISSING_MAX", 2)
    unattended.add(["user:a/1", "user:a/2", "user:a/3"])
    assert len(unattended._missing) == 2
    await unattended.look_at_all()
    assert unattended._missing == {}
