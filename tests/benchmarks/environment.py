"""A measurement's environment: its own engines, and the product's real processes.

Nothing outside is touched. The data directory is temporary; the engines are started in it as in
development (durable, as in production), and end with it.
"""

import asyncio
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import SecretStr
from redis.asyncio import Redis

from protocol.metering.records import EntryPosted
from protocol.wire.money import parse_credits
from server.runtime.settings import RATES_DEFAULT, Settings
from storage.embedded import start_engines
from storage.postgres.migrate import migrate_database
from storage.postgres.records import Records
from storage.redis.keys import Keys

ROOT = Path(__file__).parents[2]
SECRET = "a-secret-for-measurements-which-guards-nothing"
API_KEY = "an-api-key-for-measurements"
WAIT_S_MAX = 60
"""Longest time for a process to be ready, or to end."""
PARTITIONS = 8
GRANTS_AT_ONCE = 16
FLUSHED_S_MAX = 120
FLUSHED_POLL_S = 0.05


class ChildProcess:
    """A process of the product."""

    def __init__(self, child: asyncio.subprocess.Process, log: Path, port: int = 0) -> None:
        self.child = child
        self.log = log
        self.port = port

    def kill(self) -> None:
        """Kills the process at once, without a clean stop."""
        if self.child.returncode is None:
            self.child.kill()

    async def stop(self) -> int:
        """Stops the process as a service manager does; returns its exit code."""
        if self.child.returncode is None:
            self.child.terminate()
        return await self.ended()

    async def ended(self) -> int:
        """Waits for the end of the process; returns its exit code."""
        async with asyncio.timeout(WAIT_S_MAX):
            return await self.child.wait()

    def check(self) -> None:
        """Raises when the process has ended, with the end of its log."""
        if self.child.returncode is not None:
            tail = self.log.read_text(errors="replace")[-2_000:]
            raise RuntimeError(f"a process ended: {self.child.returncode}\n{tail}")

    def peak_bytes(self) -> int:
        """The largest resident memory of the process so far.

        The process must be alive.
        """
        return status_bytes(self.child.pid, "VmHWM")


class Environment:
    """The data directory of one measurement, and the processes in it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workers: list[ChildProcess] = []
        self.variables = {
            **{name: value for name, value in os.environ.items() if "TAXIMETER" not in name},
            "TAXIMETER_ENV": "production",
            "TAXIMETER_DATA_DIR": str(settings.data_dir),
            "TAXIMETER_REDIS_URL": settings.redis_url or "",
            "TAXIMETER_DATABASE_URL": settings.database_url or "",
            "TAXIMETER_JWT_SECRET": SECRET,
            "TAXIMETER_API_KEYS": API_KEY,
            "TAXIMETER_PARTITIONS": str(settings.partitions),
            "TAXIMETER_RATES": str(settings.rates),
            "PYTHONPATH": str(ROOT),
        }

    async def start(self, command: str, *arguments: str, port: int = 0) -> ChildProcess:
        """Starts ``python -m server <command>``."""
        log = self.settings.data_dir / f"{command}-{len(self.workers)}.log"
        with log.open("wb") as output:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "server", command, *arguments),
                cwd=self.settings.data_dir,
                env={**self.variables, "TAXIMETER_PORT": str(port)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        worker = ChildProcess(child, log, port)
        self.workers.append(worker)
        return worker

    async def serve(self) -> ChildProcess:
        """Starts a server process, and waits until it accepts connections."""
        worker = await self.start("web", port=free_port())
        async with asyncio.timeout(WAIT_S_MAX):
            while True:
                worker.check()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", worker.port)
                except OSError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                return worker

    async def audit(self) -> list[str]:
        """Audits the installation; returns the lines of the audit."""
        worker = await self.start("audit")
        await worker.ended()
        return worker.log.read_text().splitlines()

    async def flushed(self) -> None:
        """Waits until Postgres has all records."""
        assert self.settings.redis_url is not None
        keys = Keys(self.settings.partitions)
        async with Redis.from_url(self.settings.redis_url) as redis, asyncio.timeout(FLUSHED_S_MAX):
            while True:
                outboxes = [keys.outbox(one) for one in range(keys.partitions)]
                if not sum([await redis.xlen(outbox) for outbox in outboxes]):
                    return
                await asyncio.sleep(FLUSHED_POLL_S)

    async def grant(self, users: Iterable[str], amount: str) -> None:
        """Grants credits to each user, before any account is in use."""
        await self.grant_each(dict.fromkeys(users, amount))

    async def grant_each(self, amounts: Mapping[str, str]) -> None:
        """Grants each user an amount of credits.

        No account may be in use yet.
        """
        assert self.settings.database_url is not None
        records = await Records.connect(self.settings.database_url)
        entries = [
            EntryPosted(
                tenant=f"user:{user}",
                account_id=user,
                entry_id="grant:bench",
                entry_kind="grant",
                amount_micros=parse_credits(amount),
                at=int(time.time() * 1000),
            )
            for user, amount in amounts.items()
        ]
        try:
            for first in range(0, len(entries), GRANTS_AT_ONCE):
                batch = entries[first : first + GRANTS_AT_ONCE]
                await asyncio.gather(*(records.post_entry(entry) for entry in batch))
            # Redis has none of the accounts yet: each is loaded later, with its grant.
            await records.inbox_done(
                [(entry.tenant, entry.account_id, entry.entry_id) for entry in entries]
            )
        finally:
            await records.close()

    async def close(self) -> None:
        """Ends the processes that still run."""
        for worker in self.workers:
            worker.kill()
            await worker.ended()


@asynccontextmanager
async def open_environment(rates: str = "") -> AsyncIterator[Environment]:
    """An environment with Redis, Postgres, the schema and the card ``rates``."""
    with tempfile.TemporaryDirectory(prefix="taximeter-bench-") as name:
        data_dir = Path(name)
        card = RATES_DEFAULT
        if rates:
            card = data_dir / "rates.toml"
            card.write_text(rates)
        engines = await start_engines(data_dir)
        async with engines:
            settings = Settings(
                data_dir=data_dir,
                redis_url=engines.urls.redis,
                database_url=engines.urls.postgres,
                jwt_secret=SecretStr(SECRET),
                api_keys=(SecretStr(API_KEY),),
                partitions=PARTITIONS,
                rates=card,
            )
            await migrate_database(engines.urls.postgres)
            environment = Environment(settings)
            try:
                yield environment
            finally:
                await environment.close()
        await engines.stopped()


def free_port() -> int:
    """An unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def status_bytes(pid: int, name: str) -> int:
    """A process's memory as the kernel reports it, in bytes.

    ``name`` is ``VmRSS`` for the present memory, ``VmHWM`` for the largest.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)
