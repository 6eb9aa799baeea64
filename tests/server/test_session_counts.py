"""Counts of a process's sessions follow every change, and end at nothing."""

from server.sessions.session_counts import SessionCounts
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import advance


def counts_of(server: TestServer) -> SessionCounts:
    return server.process.registry.counts


async def test_counts_follow_each_change(server: TestServer) -> None:
    await server.grant(60_000_000)
    counts = counts_of(server)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    await client.ask("start", kind="chat", session_id="s2")
    assert dict(counts.by_kind) == {("chat", "active"): 2}
    assert counts.burn_micros == 0, "their time is free"
    await client.ask("pause", session_id="s2")
    assert dict(counts.by_kind) == {("chat", "active"): 1, ("chat", "paused"): 1}
    advance(server, 200_000)
    await client.until("free_time")
    (price,) = {
        local.meter.session.identity.terms.price_micros for local in server.process.registry
    }
    assert counts.burn_micros == price
    for name in ("s1", "s2"):
        await client.ask("stop", session_id=name)
    assert (dict(counts.by_kind), counts.burn_micros) == ({}, 0)
    assert (counts.started, counts.rejoined) == (2, 0)


async def test_a_session_that_is_only_watched_here_counts_elsewhere(
    server: TestServer, start_server: StartServer
) -> None:
    other = await start_server()
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    watcher = await other.login()
    await watcher.ask("watch", session_id="s1")
    assert dict(counts_of(server).by_kind) == {("chat", "active"): 1}
    assert dict(counts_of(other).by_kind) == {}
    await watcher.ask("start", kind="chat", session_id="s1")
    assert counts_of(other).rejoined == 1
    assert dict(counts_of(other).by_kind) == {("chat", "active"): 1}
