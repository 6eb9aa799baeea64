"""A replay applies a span's facts again and compares the bills."""

from typing import Any

import pytest

from server.calls import limits as call_limits
from server.calls.facts import FactKind
from server.calls.replay import replay
from storage.postgres.records import Records
from tests.fixtures.database import Connection
from tests.fixtures.server import TestServer
from tests.server.api import advance
from tests.server.call_facts import RUN, InboxScene, fact
from tests.storage.examples import ended, minute

SESSION = f"call:stream:{RUN}:ann"


@pytest.fixture
def scene(server: TestServer) -> InboxScene:
    return InboxScene(server.process)


async def test_a_replay_compares_bills_before_and_after(
    scene: InboxScene, server: TestServer, records: Records, connection: Connection
) -> None:
    from_at = server.process.clock.now()
    await scene.receive(fact(), fact(FactKind.LEFT, at_ms=9_000), fact(FactKind.ENDED))
    name: dict[str, Any] = {"tenant": "user:ann", "session_id": SESSION}
    await records.write([minute(0, **name), ended(minutes=1, **name)])
    advance(server, 60_000)
    now_ms = server.process.clock.now()
    first = list(scene.meter.applied)
    scene.meter.applied.clear()

    async def wait() -> None:
        await scene.take()

    result = await replay(scene.records, (from_at, now_ms), now_ms, wait)
    assert (result.facts, result.sessions, result.changed, result.waiting) == (3, 1, (), 0)
    assert set(scene.meter.applied) == set(first)

    async def wait_and_change() -> None:
        await scene.take()
        await connection.execute("UPDATE sessions SET elapsed_ms = 1 WHERE tenant = 'user:ann'")

    result = await replay(scene.records, (from_at, now_ms), now_ms, wait_and_change)
    ((before, after),) = result.changed
    assert after is not None
    assert (before.session_id, after.elapsed_ms) == (SESSION, 1)


async def test_a_replay_without_processes_gives_up(
    scene: InboxScene, server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_limits, "CALL_REPLAY_WAITS_MAX", 3)
    await scene.receive(fact())
    await server.app.state.calls.stop()
    now_ms = server.process.clock.now() + 1
    waits = 0

    async def wait() -> None:
        nonlocal waits
        waits += 1

    result = await replay(scene.records, (0, now_ms), now_ms, wait)
    assert (result.facts, result.waiting, waits) == (1, 1, 4)
