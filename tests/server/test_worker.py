"""One process of several, on a shared port, under a supervisor.

The tests are about its sockets on the port, and about its supervisor's end.
"""

import asyncio
import io
import os
import socket
import sys
from types import SimpleNamespace
from typing import cast

import pytest

from server.hosting.worker import READY, Worker, addresses_of
from server.runtime.settings import Settings


def settings_of(port: int) -> Settings:
    return cast(Settings, SimpleNamespace(host="127.0.0.1", port=port))


def test_processes_listen_on_one_port() -> None:
    (first,) = Worker(0).listen(settings_of(0))
    with first:
        port = first.getsockname()[1]
        (second,) = Worker(1).listen(settings_of(port))
        with second:
            assert second.getsockname() == first.getsockname()


def test_every_address_of_the_host_is_listened_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 1, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert addresses_of(settings_of(1)) == [
        (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"),
    ]  # fmt: skip


async def test_a_worker_reports_ready_and_stops_with_its_supervisor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.BytesIO()
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    stopped = asyncio.Event()
    with os.fdopen(reading, "rb") as supervisor:
        monkeypatch.setattr(sys, "stdin", supervisor)
        Worker(0).ready(stopped.set)
        assert out.getvalue() == READY
        os.write(writing, b"a word")
        await asyncio.sleep(0)
        assert not stopped.is_set()
        os.close(writing)
        async with asyncio.timeout(30):
            await stopped.wait()
