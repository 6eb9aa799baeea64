"""The inbox keeps facts before it answers, once."""

import asyncio

import msgspec
import pytest

from server.calls.facts import FactKind
from storage.postgres.calls import CallRecords
from storage.postgres.records import Records, UnavailableError
from tests.fixtures.database import Connection
from tests.fixtures.server import TestServer
from tests.server.call_facts import InboxScene, fact, states

JOINED = fact()
LEFT = fact(FactKind.LEFT, at_ms=61_000)


@pytest.fixture
def scene(server: TestServer) -> InboxScene:
    return InboxScene(server.process)


async def test_the_row_and_its_body_are_there_before_the_answer(
    scene: InboxScene, connection: Connection
) -> None:
    scene.meter.gate = asyncio.Event()
    body = msgspec.json.encode([JOINED, LEFT])
    assert await scene.inbox.receive("stream", {}, body)
    rows = await connection.fetch("SELECT body, state FROM call_facts ORDER BY position")
    assert [(row["body"], row["state"]) for row in rows] == [(body, "waiting"), (None, "waiting")]
    scene.meter.gate.set()
    await scene.applier.idle()
    assert set((await states(connection)).values()) == {"applied"}


async def test_an_event_without_facts_keeps_nothing(
    scene: InboxScene, connection: Connection
) -> None:
    assert not await scene.receive()
    assert await states(connection) == {}


async def test_without_postgres_nothing_is_taken(scene: InboxScene) -> None:
    away = await Records.connect("postgresql://nobody@127.0.0.1:1/none")
    try:
        scene.inbox.records = CallRecords.over(away)
        with pytest.raises(UnavailableError):
            await scene.receive(JOINED)
    finally:
        await away.close()
    assert scene.meter.applied == []


async def test_a_run_knows_its_edges_and_the_calls_data(
    scene: InboxScene, connection: Connection
) -> None:
    await scene.receive(fact(FactKind.ENDED, at_ms=62_000), fact(custom={"org": "acme", "x": "y"}))
    await scene.receive(fact(FactKind.STARTED, at_ms=500), fact(FactKind.ENDED, at_ms=63_000))
    row = await connection.fetchrow(
        "SELECT epoch_ms(started_at) AS started, epoch_ms(ended_at) AS ended, custom"
        " FROM call_sessions"
    )
    assert row is not None
    assert (row["started"], row["ended"]) == (500, 62_000)
    assert msgspec.json.decode(row["custom"]) == {"org": "acme"}
