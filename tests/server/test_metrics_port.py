"""A port of a process's own, for its health and its metrics."""

import asyncio
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
from structlog.testing import capture_logs

from server import limits as server_limits
from server.hosting.metrics_port import scrape_port
from server.process import Process
from tests.fixtures.redis_servers import free_ports
from tests.server.billed_session import eventually


def process_at(port: int | None) -> Process:
    settings = SimpleNamespace(metrics_port=port, host="127.0.0.1")
    return cast(Process, SimpleNamespace(settings=settings))


async def answers(port: int, path: str = "/healthz") -> int | None:
    """The status of an answer on a port; None without an answer."""
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code
    except httpx.TransportError:
        return None


async def test_process_answers_on_its_own_port_to_its_end() -> None:
    (port,) = free_ports(1)
    async with scrape_port(process_at(port - 1), 1):
        await eventually(lambda: answers(port))
        assert await answers(port) == 200
        assert await answers(port, "/v1/accounts/ann") == 404
    assert await answers(port) is None


async def test_process_waits_for_the_port_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_limits, "METRICS_PORT_RETRY_S", 0)
    (port,) = free_ports(1)
    with capture_logs() as logs:
        async with scrape_port(process_at(port), 0):
            await eventually(lambda: answers(port))
            second = scrape_port(process_at(port), 0)
            await second.__aenter__()

            async def is_waiting() -> bool:
                return any(entry["event"] == "metrics_port_taken" for entry in logs)

            await eventually(is_waiting)
        try:
            await eventually(lambda: answers(port))
        finally:
            await second.__aexit__(None, None, None)
    assert [entry["event"] for entry in logs].count("metrics_port_taken") == 1


async def test_without_the_setting_nothing_is_served() -> None:
    before = len(asyncio.all_tasks())
    async with scrape_port(process_at(None), 0):
        assert len(asyncio.all_tasks()) == before
