"""Ticks and proofs of life through real sockets show only proven time."""

from typing import cast

import pytest

from protocol import limits
from server import limits as server_limits
from server.gateway.connection import Connection
from server.runtime.stall_detector import StallDetector
from server.transport.push import PushProtocol
from tests.fixtures.server import BOTH_CARRIERS, StartServer, TestServer
from tests.server.api import advance
from tests.server.billed_session import CREDIT, connection_of, eventually


@pytest.fixture
def pings(monkeypatch: pytest.MonkeyPatch) -> list[PushProtocol]:
    """The pings that the server wants to send.

    None is sent, so no client answers.
    """
    asked: list[PushProtocol] = []

    def ping_now(self: PushProtocol) -> bool:
        asked.append(self)
        return True

    monkeypatch.setattr(PushProtocol, "ping_now", ping_now)
    return asked


def passes(server: TestServer, ms: int) -> None:
    """Time passes, and every timer that is due by then fires."""
    advance(server, ms)
    server.process.timers.run_due(server.process.clock.now())


@pytest.fixture(autouse=True)
def _is_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time set forward is not taken for a standstill."""
    monkeypatch.setattr(StallDetector, "proof_at", lambda self, now_ms: now_ms)


async def test_a_socket_that_answers_no_ping_gets_no_tick(
    server: TestServer, pings: list[PushProtocol]
) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    tally = server.process.metrics.tally
    for _ in range(40):
        passes(server, 250)
    assert tally.ticks_pushed == 0
    assert 10 <= len(pings) <= 40
    # One pong frees the one tick that waits for it.
    connection_of(server)._alive()
    assert tally.ticks_pushed == 1
    assert (await client.until("tick"))["elapsed_ms"] >= 10_000
    passes(server, limits.PROOF_FRESH_MS_MAX)
    ticks = tally.ticks_pushed
    for _ in range(40):
        passes(server, 250)
    assert tally.ticks_pushed == ticks


async def test_many_sessions_of_a_socket_share_its_pings(
    server: TestServer, pings: list[PushProtocol]
) -> None:
    await server.grant(500 * CREDIT)
    client = await server.login()
    for number in range(30):
        await client.ask("start", kind="chat", session_id=f"chat-{number}", tick_ms=250)
    pings.clear()
    for _ in range(100):
        passes(server, 10)
    assert 1 <= len(pings) <= 1_000 // server_limits.PROBE_SPACING_MS + 1
    # The pong of one socket is a proof for all.
    before = server.process.metrics.tally.ticks_pushed
    connection_of(server)._alive()
    assert server.process.metrics.tally.ticks_pushed - before == 30


async def test_what_was_read_after_a_standstill_frees_no_tick(
    server: TestServer, pings: list[PushProtocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message read after a standstill frees no tick.

    A frozen process proves nothing: the pong may be as old as the ping.
    """
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    passes(server, 3_000)
    monkeypatch.setattr(StallDetector, "proof_at", lambda self, now_ms: now_ms - 3_000)
    connection_of(server)._alive()
    assert server.process.metrics.tally.ticks_pushed == 0
    monkeypatch.setattr(StallDetector, "proof_at", lambda self, now_ms: now_ms)
    connection_of(server)._alive()
    assert server.process.metrics.tally.ticks_pushed == 1


@pytest.mark.parametrize("who", ["ann", "bob"])
async def test_who_watches_elsewhere_sees_what_is_proven(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """An observer on another process sees only proven time.

    The observer is the user on another socket, or a colleague whose token lists the session.
    """
    here, there = await start_server(), await start_server()
    client = await here.login("ann", org="acme")
    await client.ask("start", kind="chat", session_id="chat-1", tick_ms=60_000)
    observer = await there.login(who, org="acme", sessions=["chat-1"])
    assert (await observer.ask("watch", session_id="chat-1"))["type"] == "session"
    await observer.until("tick")
    await observer.until("tick")
    # The client's socket answers no more: observers see only what is proven.
    monkeypatch.setattr(PushProtocol, "ping_now", lambda self: True)
    (connection,) = here.process.sockets.connections
    cast(Connection, connection).socket.on_alive = None
    (local,) = there.process.registry
    passes(there, limits.PROOF_FRESH_MS_MAX)
    before = there.process.metrics.tally.ticks_pushed
    for _ in range(20):
        passes(there, 1_000)
    assert there.process.metrics.tally.ticks_pushed == before
    assert local.meter.counting


@BOTH_CARRIERS
async def test_the_metric_of_service_without_proof(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    await client.until("tick")
    (local,) = server.process.registry
    local.service.ticked_at = local.meter.alive_at + 7_000
    connection = connection_of(server)
    await client.drop()

    async def is_gone() -> bool:
        return connection not in server.process.sockets.connections

    await eventually(is_gone)
    assert b"taximeter_unproven_service_seconds_total 7.0" in server.process.metrics.render()[0]
