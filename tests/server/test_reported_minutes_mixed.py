"""Reported minutes and sockets mixed on the same sessions: all adds up."""

import asyncio
import random
from collections import Counter

import pytest

from storage.audit import audit_live, audit_record
from storage.redis.outbox import text
from tests.fixtures.database import Connection
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask, settled
from tests.server.minutes import MINUTE_MS, ann, limit_org, minute_at, track

SESSIONS = [f"s{number}" for number in range(5)]
STEPS = 40


class Mix:
    """A seeded mix of reports, sockets and stops, on two processes."""

    def __init__(self, seed: int, servers: list[TestServer]) -> None:
        self.random = random.Random(seed)
        self.servers = servers
        self.begun_at = min(minute_at(server) for server in servers)

    async def step(self) -> None:
        """One random action of a client."""
        dice = self.random.random()
        if dice < 0.7:
            await asyncio.gather(*(self.report() for _ in range(3)))
        elif dice < 0.9:
            await self.open()
        else:
            await self.stop(self.random.choice(SESSIONS))

    async def report(self) -> None:
        """Reports a minute of the last half hour, perhaps twice."""
        at = self.begun_at - self.random.randrange(30) * MINUTE_MS
        response = await track(
            self.random.choice(self.servers),
            session_id=self.random.choice(SESSIONS),
            minute_timestamp=at,
            seconds_recorded=self.random.randrange(1, 61),
        )
        assert response.status_code in (200, 402, 409, 503), response.text

    async def open(self) -> None:
        """A socket joins or starts a session, perhaps resumes it, and closes."""
        server, session_id = self.random.choice(self.servers), self.random.choice(SESSIONS)
        client = await server.login("ann", org="acme")
        joined = await client.ask("start", kind="recording", session_id=session_id)
        if joined["type"] == "session" and self.random.random() < 0.7:
            await client.ask("resume", session_id=session_id)
        await client.close()
        server.clients.remove(client)

    async def stop(self, session_id: str) -> None:
        """Stops a session, if it has begun."""
        server = self.random.choice(self.servers)
        await ask(server, "POST", f"/v1/sessions/{session_id}/stop", ann(server))


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_is_mixed_adds_up(
    start_server: StartServer, connection: Connection, seed: int
) -> None:
    servers = [await start_server(), await start_server()]
    await limit_org(servers[0], 60)
    mix = Mix(seed, servers)
    process = servers[0].process
    for _ in range(STEPS):
        await mix.step()
    assert (await audit_live(process.live, process.records)).findings == ()
    for session_id in SESSIONS:
        await mix.stop(session_id)
    for server in servers:
        await settled(server)
    await servers[0].flush()

    found = await connection.fetch(
        "SELECT state, minutes, count(used.minute) AS rows, max(used.minute) AS last"
        " FROM sessions JOIN usage_tracking AS used USING (tenant, session_id)"
        " GROUP BY tenant, session_id"
    )
    assert found
    for row in found:
        assert tuple(row) == ("ended", row["rows"], row["rows"], row["rows"] - 1)
    written = await connection.fetchval("SELECT count(*) FROM usage_tracking")
    assert (
        await connection.fetchval("SELECT sum(total_minutes) FROM monthly_usage_cache") == written
    )
    assert await audit_record(process.records) == ()
    assert (await audit_live(process.live, process.records)).findings == ()
    counter = await process.redis.hgetall(process.live.keys.organization("org:acme"))
    figures = Counter[str]()
    for name, value in counter.items():
        kind = text(name).partition(":")[0]
        figures[kind] += int(value) if kind in ("used", "held", "live") else 0
    assert (figures["used"], figures["held"], figures["live"]) == (written, 0, 0)
    assert written <= 60
