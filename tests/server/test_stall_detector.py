"""A process that stood still, and the messages it then reads."""

from typing import Any

import pytest

from protocol.metering.states import Phase
from server import limits as server_limits
from server.runtime.stall_detector import StallDetector
from tests.fixtures.server import TestServer
from tests.server.api import advance
from tests.server.billed_session import CREDIT, connection_of, eventually, found, reaches
from tests.simulation.cluster import ManualClock

STOOD_MS = 20_000


async def test_what_is_read_after_a_standstill_proves_what_was_before() -> None:
    clock, resumptions = ManualClock(), list[int]()
    stall_detector = StallDetector(clock, lambda: resumptions.append(clock.now()))
    stall_detector.start()
    awake_at = clock.now()
    clock.now_ms += server_limits.STOOD_STILL_MS
    assert stall_detector.proof_at(clock.now()) == clock.now()
    clock.now_ms = awake_at + STOOD_MS
    # The result does not depend on whether the sockets are read before the timer fires.
    assert stall_detector.proof_at(clock.now()) == awake_at
    stall_detector.beat()
    assert stall_detector.proof_at(clock.now()) == awake_at
    assert resumptions == []
    clock.now_ms += 250
    stall_detector.beat()
    assert stall_detector.proof_at(clock.now()) == clock.now()
    assert resumptions == [clock.now()]
    clock.now_ms += 250
    stall_detector.beat()
    assert len(resumptions) == 1
    stall_detector.stop()
    clock.now_ms += STOOD_MS
    assert stall_detector.proof_at(clock.now()) == clock.now()


async def test_a_process_that_stood_still_beats_before_anything_else(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes are about to take it for dead."""
    process, asked = server.process, list[str]()
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    process.stall_detector.beat()
    beat, commit = process.live.beat, process.live.commit

    async def noted_beat(*arguments: Any) -> Any:
        asked.append("beat")
        return await beat(*arguments)

    async def noted_commit(*arguments: Any) -> Any:
        asked.append("commit")
        return await commit(*arguments)

    monkeypatch.setattr(process.live, "beat", noted_beat)
    monkeypatch.setattr(process.live, "commit", noted_commit)
    advance(server, STOOD_MS, asleep=True)
    process.stall_detector.beat()
    await client.close()
    await reaches(server, "chat-1", Phase.SUSPENDED)
    assert asked[0] == "beat"


async def test_leaving_during_a_standstill_costs_nothing(
    server: TestServer,
) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    process = server.process
    process.stall_detector.beat()
    awake_at = process.clock.now()
    advance(server, STOOD_MS, asleep=True)
    await client.close()
    await reaches(server, "chat-1", Phase.SUSPENDED)
    standing = (await found(server, "chat-1")).session.standing
    assert standing.lost_at is not None
    assert abs(standing.lost_at - awake_at) < server_limits.STOOD_STILL_MS
    assert standing.elapsed_ms < server_limits.STOOD_STILL_MS


async def test_who_stayed_proves_it_anew(server: TestServer) -> None:
    await server.grant(5 * CREDIT)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    connection = connection_of(server)
    advance(server, STOOD_MS, asleep=True)
    resumed_at = server.process.clock.now()

    async def proven() -> bool:
        return connection.alive_at >= resumed_at

    await eventually(proven)
    await client.ask("pause", session_id="chat-1")
    assert (await found(server, "chat-1")).session.standing.elapsed_ms >= STOOD_MS
