"""Peers that the limiter of connections names in the log."""

import pytest
import structlog

from server import limits as server_limits
from server.transport.connection_limiter import ConnectionLimiter
from tests.fixtures.server import StartServer
from tests.server.api import ask


async def test_forwarded_for_of_an_untrusted_peer_is_logged_once(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"X-Forwarded-For": "198.51.100.7"}
    server = await start_server()
    with structlog.testing.capture_logs() as logged:
        await ask(server, "GET", "/healthz", None, headers=told)
    assert [line for line in logged if line["event"] == "forwarded_for_ignored"] == []
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.6")
    server = await start_server()
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            await ask(server, "GET", "/healthz", None, headers=told)
    (line,) = [line for line in logged if line["event"] == "forwarded_for_ignored"]
    assert line["peer"] == "127.0.0.1"
    assert "FORWARDED_ALLOW_IPS" in line["hint"]


def test_untrusted_peers_are_named_up_to_a_number() -> None:
    limiter = ConnectionLimiter()
    with structlog.testing.capture_logs() as logged:
        for number in range(server_limits.PROXIES_REPORTED_MAX + 10):
            limiter.forwarded(f"10.0.0.{number}")
    assert len(logged) == server_limits.PROXIES_REPORTED_MAX
