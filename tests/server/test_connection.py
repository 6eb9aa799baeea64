"""The socket, through a real server: requests, answers, and what a peer does wrong."""

from tests.fixtures.server import TestServer


async def test_a_chat_starts_ticks_and_stops_with_a_receipt(server: TestServer) -> None:
    await server.grant(5_000_000)
    client = await server.login()

    started = await client.ask("start", kind="chat", session_id="chat-1", tick_ms=250)
    assert started["type"] == "session"
    assert started["state"] == "active"
    assert started["credits"] == "5"
    assert 59_000 < started["free_remaining_ms"] <= 60_000
    tick = await client.until("tick")
    assert tick["elapsed_ms"] > 0
    assert tick["paid"] is False

    stopped = await client.ask("stop", session_id="chat-1")
    assert stopped["type"] == "stopped"
    assert stopped["reason"] == "client"
    assert stopped["receipt"]["credits"] == "0"
    assert stopped["receipt"]["minutes"] == 1
