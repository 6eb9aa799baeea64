"""Three real masters of Redis Cluster, of which some are killed.

Sessions are live on them meanwhile.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.exceptions import RedisError

from storage.redis.cluster import ClusterRedis
from storage.redis.keys import Keys
from storage.redis.outbox import connect
from tests.faults.processes import PARTITIONS, Installation, eventually, open_installation
from tests.fixtures.engines import program_of_run
from tests.fixtures.redis_cluster import RedisCluster
from tests.fixtures.redis_servers import RedisServer
from tests.fixtures.server import SocketClient

SPEED = 60
"""Counted milliseconds for each real one: a minute is over in a second."""
RATES = f"""
[kinds.talk]
credits_per_minute = "1"
increment_seconds = [1, 1]
reconnect_grace_seconds = 120
speed = {SPEED}
"""
KEYS = Keys(PARTITIONS)
USERS = [f"visitor-{number}" for number in range(8)]


class Deployment:
    """Two servers and a flusher on a cluster.

    Each user's session has a socket on both servers.
    """

    def __init__(
        self, installation: Installation, redis: ClusterRedis, cluster: RedisCluster
    ) -> None:
        self.installation = installation
        self.redis = redis
        self.cluster = cluster
        self.other = Installation(installation.data_dir, RATES)
        self.clients: dict[str, list[SocketClient]] = {}
        self.tokens: dict[str, str] = {}
        self.began_at = 0.0

    async def start(self) -> None:
        for installation in (self.installation, self.other):
            installation.environment["TAXIMETER_REDIS_URL"] = self.cluster.url
            # At this speed the minute that a session may run without Redis would end at once.
            installation.environment["TAXIMETER_UNCOVERED_MS"] = "3600000"
            await installation.serve("web")
        await self.installation.start("flush")
        self.began_at = time.monotonic()
        for user in USERS:
            self.tokens[user] = await self.installation.visitor(user)
            self.clients[user] = [
                (await installation.connect(self.tokens[user]))[0]
                for installation in (self.installation, self.other)
            ]
            for client in self.clients[user]:
                started = await client.ask("start", kind="talk", session_id=user, tick_ms=500)
                assert started["state"] == "active"

    async def master_of(self, user: str) -> RedisServer:
        """The Redis server that has a user's session."""
        return await self.cluster.server_of(KEYS.live(KEYS.partition(f"user:{user}")))

    async def minute_each(self, users: Sequence[str] = USERS) -> None:
        """Waits until both servers report one more minute of each session."""

        async def minute(client: SocketClient) -> None:
            await client.ask("ping")  # earlier messages are read
            await client.until("minute")

        await asyncio.gather(*(minute(client) for user in users for client in self.clients[user]))

    async def is_topped_up(self, user: str) -> bool:
        """Whether a top-up succeeded; it fails while the account's shard is away."""
        asked = ("POST", "/demo/top-up", {"amount": "1"}, self.tokens[user])
        answer = await self.installation.http(*asked)
        assert answer.status_code in {200, 503}, answer.text
        return bool(answer.status_code == 200)

    async def stop_all(self) -> dict[str, dict[str, Any]]:
        """The receipts of all sessions, stopped through the other server's sockets."""
        receipts = {}
        for user, (_, client) in self.clients.items():
            answer = await client.ask("stop", session_id=user)
            while answer["type"] == "error" and answer["retryable"]:
                answer = await client.ask("stop", session_id=user)
            if answer.get("code") == "session_ended":
                # The stop was made, although the first request got no answer about it.
                path = f"/v1/sessions/{user}"
                found = await self.installation.http("GET", path, None, self.tokens[user])
                receipts[user] = found.json()
                continue
            assert answer["type"] == "stopped", answer
            receipts[user] = answer["receipt"]
        return receipts

    async def is_flushed(self) -> bool:
        outboxes = [KEYS.outbox(partition) for partition in range(PARTITIONS)]
        with contextlib.suppress(RedisError):  # this client's own connections were cut too
            return sum([await self.redis.xlen(outbox) for outbox in outboxes]) == 0
        return False

    async def check(self, receipts: dict[str, dict[str, Any]]) -> None:
        """Checks that record equals receipts, minutes are unique, and all adds up."""
        await eventually(self.is_flushed)
        audit = await self.installation.run("audit")
        assert audit.child.returncode == 0, audit.output
        record = await asyncpg.connect(self.installation.url_of("postgres"))
        try:
            for user, receipt in receipts.items():
                rows = await record.fetch(
                    "SELECT minute, charged_micros FROM usage_tracking"
                    " WHERE session_id = $1 ORDER BY minute",
                    user,
                )
                assert [row["minute"] for row in rows] == list(range(receipt["minutes"]))
                charged = sum(row["charged_micros"] for row in rows)
                assert charged == round(float(receipt["credits"]) * 1_000_000)
        finally:
            await record.close()


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with (
        RedisCluster(
            tmp_path / "redis", node_timeout_ms=1_000, program=program_of_run()
        ) as cluster,
        open_installation(RATES) as installation,
        connect(cluster.url) as redis,
    ):
        assert isinstance(redis, ClusterRedis)
        made = Deployment(installation, redis, cluster)
        try:
            await made.start()
            yield made
        finally:
            await made.other.close_processes()


@pytest.mark.parametrize("blow", ["two masters", "a master and then its replica"])
async def test_killed_masters_lose_no_minute(deployment: Deployment, blow: str) -> None:
    one = deployment
    await one.minute_each()
    masters = {user: await one.master_of(user) for user in USERS}
    nodes = await one.cluster.server_of("{nodes}")
    # First a master that has sessions, then the master to which processes send heartbeats.
    near = [user for user in USERS if masters[user] is nodes]
    far = [user for user in USERS if masters[user] is not nodes]
    assert near
    assert far
    harmed, unharmed = (far[0], near) if blow == "two masters" else (near[0], far)
    killed = [masters[harmed]]
    await killed[0].kill()
    for client in one.clients[harmed]:
        await client.until("tick")  # the session continues
    await one.minute_each(unharmed)
    await one.minute_each()
    killed.append(await one.cluster.server_of("{nodes}"))
    assert killed[1] is not killed[0]
    await killed[1].kill()
    if blow == "two masters":
        await one.minute_each()

    # The killed servers return, as replicas of their successors. When a whole shard was away, its
    # last master returns without data.
    for server in killed:
        await server.start()
    await one.minute_each()
    await eventually(lambda: one.is_topped_up(harmed))
    receipts = await one.stop_all()
    run_ms = (time.monotonic() - one.began_at) * 1000 * SPEED
    for receipt in receipts.values():
        # No process was taken for dead, because Redis was away.
        assert receipt["gaps"] == []
        assert receipt["reason"] == "client"
        assert receipt["elapsed_ms"] <= run_ms
    await one.check(receipts)
    for process in [*one.installation.processes[:1], *one.other.processes]:
        assert await process.stop(signal.SIGTERM) == 0
        assert "Traceback" not in process.errors
