"""A process's figures: what it serves, and what happened lately."""

import asyncio
from typing import Any

import pytest

from storage.redis.keys import FIGURES, ROWS_CHANNEL
from tests.fixtures.server import TestServer
from tests.server.peers import until


async def test_figures_are_of_now_and_of_the_time_since(server: TestServer) -> None:
    sampler = server.app.state.feed.sampler
    await sampler.stop()  # the test takes them
    sampler.figures()
    client, leaver = await server.login(), await server.login("ben")
    await client.ask("start", kind="chat", session_id="s1")
    await leaver.close()
    async with asyncio.timeout(10):
        await until(lambda: len(server.process.sockets.connections) == 1)
    first, second = sampler.figures(), sampler.figures()
    assert first["sessions"] == second["sessions"] == {"chat": {"active": 1}}
    assert (first["sockets"], first["streams"]) == (1, 0)
    assert (first["started"], second["started"]) == (1, 0)
    assert (first["closed"], second["closed"]) == ({"1000": 1}, {})
    assert first["lag_ms"] >= 0
    tally = server.process.metrics.tally
    assert first["pushes"] + second["pushes"] <= tally.ticks_pushed + tally.messages_pushed


async def test_figures_are_one_command_and_no_row_while_no_one_watches(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, redis = server.app.state.feed, server.process.redis
    await feed.sampler.stop()
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    execute, names = redis.execute_command, list[str]()

    async def counted(*arguments: Any, **options: Any) -> Any:
        if any(FIGURES in str(one) or ROWS_CHANNEL in str(one) for one in arguments):
            names.append(arguments[0])
        return await execute(*arguments, **options)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(redis, "execute_command", counted)
    for _ in range(5):
        await feed.sampler.sample()
    await client.ask("pause", session_id="s1")
    assert names in (["EVALSHA"] * 5, ["EVALSHA", "EVAL", *["EVALSHA"] * 4])
    assert feed.publisher.published == 0


async def test_an_answer_that_rows_are_wanted_begins_their_publication(
    server: TestServer,
) -> None:
    feed = server.app.state.feed
    await feed.sampler.sample()
    assert not feed.publisher.is_watched
    await feed.store.watch()
    await feed.sampler.sample()
    assert feed.publisher.is_watched
