"""A process starts once, and drains its clients before it stops."""

import asyncio

import pytest
from websockets.exceptions import InvalidStatus

from protocol.metering.states import Phase
from tests.fixtures.server import TIMEOUT_S, StartServer
from tests.server.billed_session import (
    CREDIT,
    closed,
    found,
)


async def test_a_draining_process_sends_its_clients_elsewhere(start_server: StartServer) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    client = await one.login()
    await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    silent = await one.connect()
    async with asyncio.timeout(TIMEOUT_S):
        await one.process.drain()
    # After the drain the sessions are settled, whatever the clients do.
    left = await found(one, "chat-1")
    assert (left.session.standing.phase, left.nodes) == (Phase.SUSPENDED, frozenset())
    for gone in (client, silent):
        code, types = await closed(gone)
        assert code == 4000
        assert "reconnect" in types
    assert one.process.sockets.connections == set()
    with pytest.raises(InvalidStatus) as refused:
        await one.connect()
    assert refused.value.response.status_code == 503

    back = await two.login()
    joined = await back.ask("start", kind="chat", session_id="chat-1")
    assert joined["state"] == "active"
    gone_on = (await found(two, "chat-1")).session.standing
    assert gone_on.elapsed_ms == left.session.standing.elapsed_ms


async def test_moving_from_a_draining_process_loses_no_time(
    start_server: StartServer,
) -> None:
    one, two = await start_server(), await start_server()
    await one.grant(5 * CREDIT)
    client = await one.login()
    await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    drained = asyncio.create_task(one.process.drain())
    await client.until("reconnect")
    # The session is served here until the client has joined it there.
    await client.until("tick")
    back = await two.login()
    assert (await back.ask("start", kind="chat", session_id="chat-1"))["state"] == "active"
    await client.close()
    async with asyncio.timeout(TIMEOUT_S):
        await drained
    left = await found(two, "chat-1")
    assert (left.session.standing.phase, left.nodes) == (
        Phase.ACTIVE,
        frozenset({two.process.node}),
    )
    receipt = (await back.ask("stop", session_id="chat-1"))["receipt"]
    assert receipt["gaps"] == []
    (segment,) = receipt["segments"]
    assert receipt["elapsed_ms"] == segment["to_at"] - segment["from_at"]
