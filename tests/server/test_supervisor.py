"""``web --workers``: several processes on one port, replaced, killed and stopped."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.faults.processes import (
    POLL_S,
    Installation,
    SpawnedProcess,
    eventually,
    open_installation,
)
from tests.fixtures.redis_servers import free_ports
from tests.fixtures.server import SocketClient

WORKERS = 2
RATES = """
[kinds.chat]
credits_per_minute = "1"
increment_seconds = [1, 1]
reconnect_grace_seconds = 60
"""


def workers_of(supervisor: SpawnedProcess) -> dict[int, int]:
    """The worker processes of a supervisor, without zombies: places by process id."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(status[1]) == supervisor.child.pid and status[0] != "Z" and b"worker" in command:
            found[int(entry.name)] = int(command[command.index(b"worker") + 1])
    return found


async def reach(installation: Installation, token: str) -> tuple[SocketClient, dict[str, Any]]:
    """A user's socket, opened with retries.

    The kernel may give a connection to a process that stops accepting in this moment.
    """
    while True:
        try:
            return await installation.connect(token)
        except (OSError, InvalidHandshake, ConnectionClosed):
            await asyncio.sleep(POLL_S)


async def node_of(installation: Installation, token: str) -> str:
    """The process that a new socket reaches."""
    client, welcome = await reach(installation, token)
    await client.close()
    return str(welcome["node"])


async def nodes(installation: Installation, token: str) -> set[str]:
    """All processes that serve, once the expected number is there."""
    found: set[str] = set()

    async def all_found() -> bool:
        found.add(await node_of(installation, token))
        return len(found) == WORKERS

    await eventually(all_found)
    return found


async def replaced(installation: Installation, token: str, before: set[str]) -> bool:
    """Whether a new socket reaches a process that was not there before."""
    return await node_of(installation, token) not in before


@contextlib.asynccontextmanager
async def supervised(**environment: str) -> AsyncIterator[tuple[Installation, SpawnedProcess]]:
    """An installation with two processes on one port."""
    async with open_installation(RATES) as installation:
        yield (
            installation,
            await installation.serve("web", "--workers", str(WORKERS), **environment),
        )


@pytest.fixture
async def metrics_port() -> int:
    """A free port with a free port after it.

    Every process has its own.
    """
    while True:
        (port,) = free_ports(1)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


async def scraped(port: int, path: str = "/metrics") -> httpx.Response | None:
    """The metrics of a process on its own port; None: no answer."""
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            return await client.get(path)
    except httpx.TransportError:
        return None


async def sockets_at(port: int) -> float:
    """The number of sockets in a process's metrics."""
    answer = await scraped(port)
    if answer is None:
        return -1  # the process does not answer yet
    (line,) = [one for one in answer.text.splitlines() if one.startswith("taximeter_sockets ")]
    return float(line.split()[1])


async def start(client: SocketClient, session_id: str) -> dict[str, Any]:
    """Starts a session, or joins it."""
    answer = await client.ask("start", kind="chat", session_id=session_id, tick_ms=250)
    assert answer["type"] == "session", answer
    return answer


async def test_processes_share_a_port_and_are_looked_after(metrics_port: int) -> None:
    settings = {"TAXIMETER_METRICS_PORT": str(metrics_port)}
    async with supervised(**settings) as (installation, supervisor):
        token = await installation.visitor("visitor-ann")
        first = await nodes(installation, token)
        pids = workers_of(supervisor)
        assert sorted(pids.values()) == list(range(WORKERS))
        other = await installation.run("web", "--workers", "2")
        assert other.child.returncode == 1
        assert str(installation.port) in other.errors.splitlines()[-1]
        assert "Traceback" not in other.errors

        # One session, with a socket at each process; each counts its own.
        clients: dict[str, SocketClient] = {}
        while len(clients) < WORKERS:
            client, welcome = await reach(installation, token)
            if welcome["node"] in clients:
                await client.close()
            else:
                clients[welcome["node"]] = client
                await start(client, "chat-1")
        for index in range(WORKERS):
            await eventually(partial(has_one, metrics_port + index))

        # One process is killed: the session goes on at the other, and its place is filled again.
        killed = next(pid for pid, index in pids.items() if index == 0)
        os.kill(killed, signal.SIGKILL)
        lost = {asyncio.create_task(one.connection.wait_closed()): one for one in clients.values()}
        (gone,), (staying,) = await asyncio.wait(lost, return_when=asyncio.FIRST_COMPLETED)
        staying.cancel()
        stayed = lost[staying]
        assert lost[gone].connection.close_code == 1006
        await eventually(lambda: replaced(installation, token, first))
        second = await nodes(installation, token)
        assert len(first & second) == 1

        # All processes are replaced; a drained client finds a successor.
        supervisor.child.send_signal(signal.SIGHUP)
        await stayed.until("reconnect")
        back, welcome = await reach(installation, token)
        assert (await start(back, "chat-1"))["state"] == "active"
        await stayed.close()

        async def all_new() -> bool:
            now = workers_of(supervisor)
            return len(now) == WORKERS and not now.keys() & pids.keys() and "replaced" in log()

        def log() -> str:
            return supervisor.errors

        await eventually(all_new)
        assert not await nodes(installation, token) & first
        ended = await stopped(installation, back, token)
        assert ended["receipt"]["gaps"] == []
        for index in range(WORKERS):
            ready = await eventually(partial(scraped, metrics_port + index, "/readyz"))
            assert ready.json()["status"] == "ready"
        # Ctrl-C is passed on, and counts as no failure.
        assert await supervisor.stop(signal.SIGINT) == 130
        assert "Traceback" not in supervisor.errors
        assert "worker_killed" not in supervisor.errors
        assert supervisor.errors.count("worker_died") == 1


async def has_one(port: int) -> bool:
    return await sockets_at(port) == 1


async def stopped(installation: Installation, client: SocketClient, token: str) -> dict[str, Any]:
    """Ends the session, whichever process serves it now."""
    try:
        return await client.ask("stop", session_id="chat-1")
    except Exception:
        again, _ = await reach(installation, token)
        await start(again, "chat-1")
        return await again.ask("stop", session_id="chat-1")


async def test_a_failing_worker_is_logged_and_none_outlives_the_supervisor() -> None:
    async with supervised() as (installation, supervisor):
        urls = {
            "TAXIMETER_REDIS_URL": "redis://127.0.0.1:1",
            "TAXIMETER_DATABASE_URL": installation.url_of("postgres"),
            "TAXIMETER_PORT": "0",
        }
        lame = await installation.run("web", "--workers", "2", **urls)
        assert lame.child.returncode == 1
        assert "could serve" in lame.errors.splitlines()[-1]

        token = await installation.visitor("visitor-ann")
        client, _ = await reach(installation, token)
        await start(client, "chat-1")
        assert len(workers_of(supervisor)) == WORKERS
        await supervisor.kill()
        await client.until("reconnect")
        await client.close()
        await installation.deserted()
