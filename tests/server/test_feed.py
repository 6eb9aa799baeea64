"""The feed of several processes equals Redis, whatever happened before."""

import asyncio
import random
from typing import Any

import pytest

from protocol import limits
from protocol.wire.filters import parse_filter
from server.ops.feed import Feed
from server.ops.live_table import LiveTable
from server.ops.row_orders import order_of, parse_sort
from server.ops.row_views import RowDelta, RowWindow
from server.ops.unattended import UnattendedSessions
from storage.redis.live_feed import LiveFeed
from storage.redis.scripts import LiveError
from tests.fixtures.server import StartServer, TestServer
from tests.fixtures.socket_client import SocketClient
from tests.server.peers import until

FILTERS = ("", "user:ann", "state:active", "-state:paused age:>0s", "credits:<5")
STATIC = ("session_id", "user_id", "kind", "state", "started_at")


def feed_of(server: TestServer) -> Feed:
    feed: Feed = server.app.state.feed
    return feed


async def scanned(server: TestServer) -> LiveTable:
    """All live sessions as Redis has them."""
    table, process = LiveTable(), server.process
    await UnattendedSessions(table, LiveFeed(process.live), process.clock).look_at_all()
    return table


def shown(table: LiveTable) -> dict[str, tuple[Any, ...]]:
    """What must be equal.

    Figures run on meanwhile, and Redis knows fewer limits.
    """
    return {key: (row.state, row.version, row.nodes) for key, row in table.rows.items()}


async def equal(server: TestServer, *others: TestServer) -> None:
    """Waits until each process's table is what Redis has."""
    async with asyncio.timeout(20):
        for one in (server, *others):
            await feed_of(one).ready()
            while shown(feed_of(one).table) != shown(await scanned(server)):
                await feed_of(one).ready()  # the table is in use
                await asyncio.sleep(0.02)


class Crowd:
    """Users who use sessions at random, on several processes."""

    def __init__(self, servers: list[TestServer], seed: int) -> None:
        self.servers = servers
        self.random = random.Random(seed)
        self.clients: list[SocketClient] = []

    async def act(self) -> None:
        """Does one thing."""
        chance = self.random
        if not self.clients or chance.random() < 0.2:
            server, user_id = chance.choice(self.servers), chance.choice(["ann", "ben"])
            self.clients.append(await server.login(user_id))
        client, name = chance.choice(self.clients), f"s{chance.randrange(6)}"
        deed = chance.choice(["start", "start", "start", "pause", "resume", "stop", "go", "lost"])
        if deed == "start":
            await client.ask("start", kind="chat", session_id=name)
        elif deed in ("pause", "resume", "stop"):
            await client.ask(deed, session_id=name)
        elif deed == "go":
            self.clients.remove(client)
            await client.close()
        else:
            await self.lose_messages()

    async def lose_messages(self) -> None:
        """Cuts a process's connection for channels: messages of that time are lost."""
        channels = self.random.choice(self.servers).process.registry.accounts.channels
        connection = channels._pubsub.connection  # type: ignore[union-attr]
        if connection is not None:
            await connection.disconnect(nowait=True)


@pytest.mark.parametrize("seed", range(4))
async def test_the_table_is_what_redis_has_after_any_history(
    start_server: StartServer, seed: int
) -> None:
    servers = [await start_server(), await start_server()]
    await servers[0].grant(60_000_000)
    crowd = Crowd(servers, seed)
    await feed_of(servers[0]).ready()
    for step in range(40):
        await crowd.act()
        if step == 20:
            await feed_of(servers[1]).ready()  # one begins to watch in the middle
    await equal(*servers)
    redis, now_ms = await scanned(servers[0]), servers[0].process.clock.now()
    for text in FILTERS:
        for sort in STATIC:
            wanted, by = parse_filter(text), parse_sort(sort)
            expected = (await order_of(redis, wanted, by, now_ms)).keys(0, 99)
            for server in servers:
                found = await order_of(feed_of(server).table, wanted, by, now_ms)
                assert found.keys(0, 99) == expected, (text, sort)


async def test_a_dead_process_is_taken_out_and_its_sessions_stay(
    start_server: StartServer,
) -> None:
    server, dead = await start_server(), await start_server()
    client = await dead.login()
    await client.ask("start", kind="chat", session_id="s1")
    await equal(server)
    # The process falls silent with its socket open, and is not swept yet.
    await feed_of(dead).sampler.stop()
    await feed_of(dead).publisher.stop()
    now_ms, feed = server.process.clock.now(), feed_of(server)
    server.process.membership._seen({server.process.node: now_ms}, now_ms)
    feed._forget_the_dead(now_ms)
    assert len(feed.table) == 1, "a process that has just started is not known yet"
    feed._forget_the_dead(now_ms + limits.NODE_SILENT_MS)
    assert len(feed.table) == 0
    await feed._unattended.look()
    assert [row.session_id for row in feed.table.rows.values()] == ["s1"]


async def test_equal_windows_are_one_whatever_the_number_of_watchers(
    server: TestServer,
) -> None:
    feed, heard = feed_of(server), list[tuple[int, RowDelta]]()
    listeners = [
        lambda _, delta, number=number: heard.append((number, delta)) for number in range(20)
    ]
    sort = parse_sort("session_id")
    texts = ("user:ann kind:chat", "kind:chat user:ann")
    windows = {
        feed.watch(parse_filter(texts[number % 2]), sort, 0, 10, listener)
        for number, listener in enumerate(listeners)
    }
    (window,) = windows
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    async with asyncio.timeout(10):
        await until(lambda: len(heard) >= 20 and heard[-1][1].set)
    assert len({id(delta) for _, delta in heard}) * 20 == len(heard)
    for listener in listeners:
        feed.unwatch(window, listener)
    assert feed._views == {}
    assert feed.table.listeners == {}
    feed.unwatch(window, listeners[0])


async def test_watching_ends_a_while_after_the_last_use(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.ops.limits.FEED_KEPT_MS", 0)
    feed = feed_of(server)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    await feed.ready()
    assert feed._task is not None
    async with asyncio.timeout(10):
        await feed._task
    assert len(feed.table) == 0


async def test_a_break_of_redis_is_survived(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, asks = feed_of(server), feed_of(server).store.ask_for_all
    failures = [LiveError("away")]

    async def ask(question: str) -> None:
        if failures:
            raise failures.pop()
        await asks(question)

    monkeypatch.setattr(feed.store, "ask_for_all", ask)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    await equal(server)
    assert failures == []


async def test_a_window_says_what_it_has(server: TestServer) -> None:
    feed = feed_of(server)

    def heard(_: RowWindow, __: RowDelta) -> None: ...

    window = feed.watch(parse_filter(""), parse_sort("kind"), 0, 5, heard)
    client = await server.login()
    await client.ask("start", kind="chat", session_id="s1")
    async with asyncio.timeout(10):
        await until(lambda: window.rows)
    assert (window.total, window.rows[0].session_id) == (1, "s1")
    assert window.seq >= 1
