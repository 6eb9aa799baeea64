"""A server that stops lets its clients go first."""

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest
import uvicorn
from starlette.applications import Starlette
from structlog.testing import capture_logs

from server.hosting.serving import GracefulServer
from server.hosting.worker import Worker
from server.process import Process


def server_of(drain: Callable[[], Awaitable[None]], worker: Worker | None = None) -> GracefulServer:
    """A server of an empty application, whose process drains like that."""
    config = uvicorn.Config(Starlette(), log_config=None, lifespan="off", access_log=False)
    return GracefulServer(config, cast(Process, SimpleNamespace(drain=drain)), worker)


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


async def test_clients_are_sent_away_when_no_more_can_connect() -> None:
    refused: list[bool] = []

    async def drain() -> None:
        with socket.socket() as late:
            refused.append(late.connect_ex(("127.0.0.1", port)) != 0)

    told: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
    worker = cast(Worker, SimpleNamespace(ready=told.put_nowait))
    server, door = server_of(drain, worker), listener()
    port = door.getsockname()[1]
    serving = asyncio.create_task(server._serve([door]))
    supervisor_is_gone = await told.get()
    assert server.started
    supervisor_is_gone()
    await serving
    assert refused == [True]


async def test_failure_of_the_drain_does_not_keep_the_server_up() -> None:
    async def drain() -> None:
        raise RuntimeError("a bug of ours")

    server = server_of(drain)
    server.stop()
    with capture_logs() as logs:
        await server._serve([listener()])
    assert [entry["event"] for entry in logs] == ["not_drained"]


async def test_second_interrupt_does_not_wait_for_the_drain() -> None:
    draining = asyncio.Event()

    async def drain() -> None:
        draining.set()
        await asyncio.Event().wait()

    server = server_of(drain)
    serving = asyncio.create_task(server._serve([listener()]))
    server.handle_exit(signal.SIGINT, None)
    await draining.wait()
    server.handle_exit(signal.SIGINT, None)
    await serving


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_is_kept_and_not_raised_again(number: signal.Signals) -> None:
    async def drain() -> None:
        """Nothing is left to settle."""

    server = server_of(drain)
    with server.capture_signals():
        signal.raise_signal(number)
    assert server.should_exit
    assert server.interrupted is (number is signal.SIGINT)
