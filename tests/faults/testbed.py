"""Real processes and engines for faults, with a fleet that checks bills."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from redis.asyncio import Redis

from storage.embedded.agreement import EngineFiles
from tests.benchmarks.environment import ChildProcess, Environment, open_environment
from tests.benchmarks.fleet import Fleet

SPEED = 10
"""Counted milliseconds for each real one: a minute is over in six seconds."""
RATES = f"""
[kinds.torture]
free_seconds = 20
credits_per_minute = "1"
increment_seconds = [1, 1]
reconnect_grace_seconds = 300
gap = "skip"
speed = {SPEED}
"""
KIND = "torture"
CREDITS = "1000"
PROCESSES = 3
WAIT_S = 90.0
"""Longest wait for an expected event, on any slow machine."""
POLL_S = 0.02


class SupervisedEngine:
    """An embedded engine with a keeper, which restarts it after each end."""

    def __init__(self, data_dir: Path, name: str, stop: signal.Signals) -> None:
        self.name = name
        self._files = EngineFiles(data_dir.resolve(), name)
        self._stop = stop

    @property
    def pid(self) -> int:
        """The id of the engine's newest process."""
        return int(self._files.engine.read_text())

    def signal(self, number: signal.Signals) -> None:
        """Sends the engine a signal."""
        os.kill(self.pid, number)

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Stops the engine cleanly until the end of the block."""
        pid = self.pid
        keeper = int(_status(pid)[1])
        os.kill(keeper, signal.SIGSTOP)
        try:
            os.kill(pid, self._stop)
            async with asyncio.timeout(WAIT_S):
                while _status(pid)[0] != "Z":  # noqa: ASYNC110 -- no event reports it
                    await asyncio.sleep(POLL_S)
            yield
        finally:
            os.kill(keeper, signal.SIGCONT)
        async with asyncio.timeout(WAIT_S):
            while self.pid == pid:  # noqa: ASYNC110 -- no event reports it
                await asyncio.sleep(POLL_S)


def _status(pid: int) -> list[str]:
    """The kernel's fields of a process: its state, its parent, and more."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class FaultTestbed:
    """The processes, engines and clients that a scenario works with."""

    def __init__(self, environment: Environment, fleet: Fleet, sessions: int, scale: float) -> None:
        self.environment = environment
        self.fleet = fleet
        self.sessions = sessions
        self.scale = scale
        """Factor for the length of outages: 1 is their full length."""
        self.redis = SupervisedEngine(environment.settings.data_dir, "redis", signal.SIGTERM)
        self.postgres = SupervisedEngine(environment.settings.data_dir, "postgres", signal.SIGINT)
        self.servers: list[ChildProcess] = []
        self.flushers: list[ChildProcess] = []
        self.slack_s = 0.0
        """Allowed delay of a heartbeat on a machine that others load as well."""
        self.unserved_s = 0.0
        """Longest time for which a session was not counted although its client was connected,
        besides the cost of a process's death."""

    async def serve(self) -> ChildProcess:
        """Starts one more server process."""
        worker = await self.environment.serve()
        self.servers.append(worker)
        return worker

    async def flush(self) -> ChildProcess:
        """Starts one more flusher."""
        worker = await self.environment.start("flush")
        self.flushers.append(worker)
        return worker

    async def turn(self) -> None:
        """Gives the fleet the ports of the living processes."""
        await self.fleet.turn_to([server.port for server in self.servers])

    async def struck(self) -> None:
        """Marks the fault: a tick after it shows that a session continues."""
        await self.fleet.mark(time.monotonic())

    async def sleep(self, full_s: float) -> None:
        """Waits for the length of an outage."""
        await asyncio.sleep(full_s * self.scale)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        """A client of the Redis."""
        assert self.environment.settings.redis_url is not None
        async with Redis.from_url(self.environment.settings.redis_url) as redis:
            yield redis

    @asynccontextmanager
    async def record(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A connection to the Postgres."""
        connection = await asyncpg.connect(self.environment.settings.database_url)
        try:
            yield connection
        finally:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=5)

    def check(self) -> None:
        """Raises when a process has ended that no scenario has killed."""
        for worker in (*self.servers, *self.flushers):
            worker.check()


@asynccontextmanager
async def open_testbed(sessions: int, scale: float = 1.0) -> AsyncIterator[FaultTestbed]:
    """A testbed with three servers, two flushers, and ``sessions`` ticking sessions."""
    async with open_environment(RATES) as environment:
        await environment.grant((f"customer-{number}" for number in range(sessions)), CREDITS)
        fleet = await Fleet.start(environment.variables)
        testbed = FaultTestbed(environment, fleet, sessions, scale)
        try:
            started = [environment.serve() for _ in range(PROCESSES)]
            testbed.servers += await asyncio.gather(*started)
            for _ in range(2):
                await testbed.flush()
            ports = [server.port for server in testbed.servers]
            await fleet.open(ports, sessions, kind=KIND, is_watchful=True)
            await fleet.ticked()
            await environment.flushed()
            yield testbed
        finally:
            await fleet.close()
