"""Real processes for fault tests, with real commands and signals.

Their data directory is not pytest's ``tmp_path``: when root runs the tests, Postgres runs as
another user, and pytest closes the parent directories to other users.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import connect

from tests.fixtures.server import SocketClient

ROOT = Path(__file__).parents[2]
WAIT_S = 40.0
"""Longest wait for an expected event, on any slow machine."""
POLL_S = 0.02
PARTITIONS = 4


async def eventually(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Waits until a condition outside this process holds, and returns its result."""
    async with asyncio.timeout(WAIT_S):
        while not (found := await condition()):  # noqa: ASYNC110 -- no event reports it
            await asyncio.sleep(POLL_S)
        return found


def free_port() -> int:
    """An unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Installation:
    """A data directory, and the processes that work in it."""

    def __init__(self, data_dir: Path, rates: str | None = None) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.module = "server"
        """The module whose commands are run: ``python -m <module> <command>``."""
        self.processes: list[SpawnedProcess] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if "TAXIMETER" not in name},
            "TAXIMETER_ENV": "development",
            "TAXIMETER_DATA_DIR": str(data_dir),
            "TAXIMETER_PORT": str(self.port),
            "TAXIMETER_PARTITIONS": str(PARTITIONS),
            "PYTHONPATH": str(ROOT),
        }
        if rates is not None:
            path = data_dir / "rates.toml"
            path.write_text(rates)
            self.environment["TAXIMETER_RATES"] = str(path)

    async def start(self, command: str, *arguments: str, **environment: str) -> "SpawnedProcess":
        """Starts ``python -m server <command>``."""
        log = self.data_dir / f"{command}-{len(self.processes)}.log"
        with log.open("wb") as errors:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", self.module, command, *arguments),
                cwd=self.data_dir,
                env={**self.environment, **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        process = SpawnedProcess(child, log)
        self.processes.append(process)
        return process

    async def run(self, command: str, *arguments: str, **environment: str) -> "SpawnedProcess":
        """Runs a command to its end."""
        process = await self.start(command, *arguments, **environment)
        await process.ended()
        return process

    async def serve(
        self, command: str = "all", *arguments: str, **environment: str
    ) -> "SpawnedProcess":
        """Starts a server, and waits until it is ready."""
        process = await self.start(command, *arguments, **environment)

        async def ready() -> bool:
            assert process.child.returncode is None, process.errors
            try:
                return (await self.http("GET", "/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(ready)
        return process

    async def http(
        self, method: str, path: str, body: Any = None, token: str | None = None
    ) -> httpx.Response:
        """Makes one request."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as client:
            return await client.request(method, path, json=body, headers=headers)

    async def visitor(self, user_id: str, amount: str = "100") -> str:
        """The token of a visitor (``visitor-…``), who gets credits."""
        answer = await self.http("POST", "/demo/token", {"user_id": user_id})
        token: str = answer.raise_for_status().json()["token"]
        topped = await self.http("POST", "/demo/top-up", {"amount": amount}, token)
        topped.raise_for_status()
        return token

    async def connect(self, token: str) -> tuple[SocketClient, dict[str, Any]]:
        """A socket of a user, and its welcome."""
        url = f"ws://127.0.0.1:{self.port}/v1/ws"
        client = SocketClient(await connect(url, compression=None, proxy=None, max_queue=None))
        welcome = await client.ask("auth", token=token)
        assert welcome["type"] == "welcome", welcome
        return client, welcome

    def url_of(self, engine: str) -> str:
        """The URL of a running embedded engine."""
        record = json.loads((self.data_dir / "engines" / f"{engine}.json").read_text())
        return str(record["url"])

    def left(self) -> list[str]:
        """The command lines of the processes that work in the data directory."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                place = (entry / "cwd").readlink()
            except OSError:
                continue
            if str(self.data_dir) in command or place.is_relative_to(self.data_dir):
                found.append(command)
        return found

    async def deserted(self) -> bool:
        """Waits until no process is left, including the engines and their keepers."""

        async def nobody() -> bool:
            return not self.left()

        await eventually(nobody)
        return True

    async def close_processes(self) -> None:
        """Kills the processes that this object started and that still run."""
        for process in self.processes:
            await process.kill()

    async def close(self) -> None:
        """Kills all processes that still work in the data directory."""
        await self.close_processes()
        await self.deserted()


class SpawnedProcess:
    """A process of the product."""

    def __init__(self, child: asyncio.subprocess.Process, log: Path) -> None:
        self.child = child
        self.log = log
        self.output = ""

    @property
    def errors(self) -> str:
        """The standard error of the process: its log."""
        return self.log.read_text(errors="replace")

    async def ended(self) -> int:
        """Waits for the end; returns the exit code.

        A signal is a negative number.
        """
        async with asyncio.timeout(WAIT_S):
            output, _ = await self.child.communicate()
        self.output += (output or b"").decode()
        assert self.child.returncode is not None
        return self.child.returncode

    async def stop(self, number: signal.Signals) -> int:
        """Sends a signal, and waits for the end."""
        self.child.send_signal(number)
        return await self.ended()

    async def kill(self) -> None:
        """Kills the process at once, if it still runs.

        The process makes no clean stop.
        """
        if self.child.returncode is None:
            self.child.kill()
            await self.ended()


@asynccontextmanager
async def open_installation(rates: str | None = None) -> AsyncIterator[Installation]:
    """A new data directory; all processes in it are ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="taximeter-faults-") as name:
        installation = Installation(Path(name), rates)
        try:
            yield installation
        finally:
            await installation.close()
