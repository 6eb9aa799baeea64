"""HTTP heartbeats beside sockets of the same session, in virtual time.

A heartbeat counts as a socket that proves 75 s at once. However heartbeats and sockets are mixed,
and on whichever processes, time is counted once and billed once.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.metering.states import Event
from protocol.wire import messages
from protocol.wire.errors import RefusedError
from server import limits as server_limits
from server.access.principals import Principal
from server.access.rate_limits import UserStarts
from server.gateway.heartbeats import Heartbeats
from server.runtime.rate_card_file import load_rate_card
from server.sessions import session_table
from storage.audit import audit_live, audit_record
from storage.redis.live import LiveError
from tests.fixtures.database import Connection
from tests.simulation.cluster import Browser, Cluster, Node

CREDIT = 1_000_000
CHAT = load_rate_card().terms("chat")
START = messages.Start(session_id="chat-1", kind="chat")
ANN = Principal(kind="user", user_id="ann", account_id="ann", tenant="user:ann")


class Phone:
    """A client without a WebSocket.

    A balancer hands its requests to any process.
    """

    def __init__(self, *nodes: Node) -> None:
        self.cluster = nodes[0].cluster
        self.desks = []
        for node in nodes:
            process: Any = SimpleNamespace(
                registry=node.registry,
                clock=node.clock,
                timers=node.timers,
                loader=node.loader,
                records=node.cluster.records,
                rates=load_rate_card(),
                ledger=node.ledger,
                starts=UserStarts(node.clock),
                settings=SimpleNamespace(start="open"),
            )
            self.desks.append(Heartbeats(process))

    async def beat(
        self, money_client: int = 0, start: messages.Start | None = START
    ) -> messages.Session:
        """Sends one heartbeat, which reaches the process of that number."""
        found = await self.desks[money_client].beat(ANN, "chat-1", start)
        await self.cluster.settle()
        return found


async def recorded(cluster: Cluster, connection: Connection) -> tuple[int, int, int]:
    """Rows, seconds and micro-credits of the session in the record."""
    await cluster.flush()
    assert await audit_record(cluster.records) == ()
    assert (await audit_live(cluster.nodes[0].live, cluster.records)).findings == ()
    rows = await connection.fetch("SELECT seconds, charged_micros FROM usage_tracking")
    return (
        len(rows),
        sum(row["seconds"] for row in rows),
        sum(row["charged_micros"] for row in rows),
    )


async def test_session_lives_by_heartbeats_alone(
    cluster: Cluster, node: Node, connection: Connection
) -> None:
    await cluster.grant(10 * CREDIT)
    phone = Phone(node)
    begun = await phone.beat()
    assert (begun.state, begun.elapsed_ms) == ("active", 0)
    for number in range(1, 5):
        await cluster.advance(30_000)
        assert (await phone.beat()).elapsed_ms == number * 30_000
    # The phone goes silent. The time up to its last proof is billed, and the grace is not.
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS + CHAT.reconnect_grace_ms)
    await cluster.flush()
    row = await cluster.records.session("user:ann", "chat-1")
    assert row is not None
    assert (row.state, row.reason) == ("ended", "disconnected")
    assert row.elapsed_ms == 120_000 + server_limits.HEARTBEAT_PROOF_MS
    assert await recorded(cluster, connection) == (4, 195, 2_250_000)


@pytest.mark.parametrize("desks", [(0, 0, 0, 0, 0), (1, 1, 1, 1, 1), (0, 1, 0, 1, 0)])
async def test_heartbeat_beside_socket_is_counted_once(
    cluster: Cluster, node: Node, connection: Connection, desks: tuple[int, ...]
) -> None:
    await cluster.grant(10 * CREDIT)
    phone = Phone(node, await cluster.node())
    browser = node.browser()
    await browser.start("chat-1", CHAT)
    for money_client in desks:
        assert (await phone.beat(money_client)).state == "active"
        await cluster.advance(30_000)
    stopped = await browser.request("chat-1", Event.STOP)
    receipt = stopped["receipt"]
    assert (receipt["elapsed_ms"], receipt["minutes"], receipt["gaps"]) == (150_000, 3, [])
    assert receipt["credits"] == "1.5"
    assert await recorded(cluster, connection) == (3, 150, 1_500_000)
    with pytest.raises(RefusedError, match="ended"):
        await phone.beat()


async def test_session_moves_from_socket_to_heartbeats_and_back(
    cluster: Cluster, node: Node, connection: Connection
) -> None:
    await cluster.grant(10 * CREDIT)
    other = await cluster.node()
    phone = Phone(node, other)
    browser = node.browser()
    await browser.start("chat-1", CHAT)
    await cluster.advance(40_000)
    await phone.beat(1)
    browser.cut()
    await browser.close()
    for _ in range(2):
        await cluster.advance(40_000)
        assert (await phone.beat(1)).state == "active"
    back = other.browser("back")
    session = await back.start("chat-1", CHAT)
    assert (session["state"], session["elapsed_ms"]) == ("active", 120_000)
    # The last heartbeat's proof ends while the socket lives: no time is lost.
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS + 45_000)
    assert back.local_sessions["chat-1"].meter.phase == "active"
    stopped = await back.request("chat-1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 240_000
    assert len(stopped["receipt"]["segments"]) == 1
    assert await recorded(cluster, connection) == (4, 240, 3_000_000)


async def test_heartbeat_ends_grace_of_cut_socket(
    cluster: Cluster, node: Node, connection: Connection
) -> None:
    await cluster.grant(10 * CREDIT)
    phone = Phone(node)
    browser = node.browser()
    await browser.start("chat-1", CHAT)
    await cluster.advance(75_000)
    browser.cut()
    await cluster.advance(15_000)
    await browser.close()
    # The last pong came at 70 s; found out at 90 s.
    session = await phone.beat(start=None)
    assert (session.state, session.elapsed_ms) == ("active", 70_000)
    await cluster.advance(20_000)
    session = await phone.beat(start=None)
    assert session.elapsed_ms == 90_000
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS + CHAT.reconnect_grace_ms)
    assert await recorded(cluster, connection) == (3, 165, 1_750_000)


async def test_heartbeat_proof_outlasts_cut_socket(
    cluster: Cluster, node: Node, connection: Connection
) -> None:
    await cluster.grant(10 * CREDIT)
    phone = Phone(await cluster.node())
    browser = node.browser()
    await browser.start("chat-1", CHAT)
    await cluster.advance(60_000)
    await phone.beat()
    await cluster.advance(5_000)
    browser.cut()
    await cluster.advance(20_000)
    await browser.close()
    # The phone's proof reaches to 135 s, whatever happened to the socket.
    await cluster.advance(90_000)
    await cluster.flush()
    row = await cluster.records.session("user:ann", "chat-1")
    assert row is not None
    assert (row.state, row.elapsed_ms, row.reason) == ("ended", 135_000, "disconnected")
    assert await recorded(cluster, connection) == (3, 135, 1_250_000)


# --- Good-bye over a socket -----------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "leave", "stop"])
@pytest.mark.parametrize("money_client", [0, 1])
async def test_farewell_ends_heartbeat_proof(
    cluster: Cluster, node: Node, connection: Connection, money_client: int, how: str
) -> None:
    """Nothing is billed after a farewell, on the same process or another."""
    await cluster.grant(10 * CREDIT)
    phone, browser = Phone(node, await cluster.node()), node.browser()
    await browser.start("chat-1", CHAT)
    await phone.beat(money_client)
    await cluster.advance(30_000)
    await say_farewell(browser, how)
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS + CHAT.reconnect_grace_ms)
    assert await ended_at(cluster, connection) == 30_000


@pytest.mark.parametrize("money_client", [0, 1])
async def test_farewell_ends_heartbeat_proof_beside_other_socket(
    cluster: Cluster, node: Node, connection: Connection, money_client: int
) -> None:
    """The other socket is cut later: then its own last proof counts."""
    await cluster.grant(10 * CREDIT)
    phone, browser, other = Phone(node, await cluster.node()), node.browser(), node.browser("2")
    await browser.start("chat-1", CHAT)
    await other.start("chat-1", CHAT)
    await phone.beat(money_client)
    await cluster.advance(25_000)
    await browser.close()
    assert other.local_sessions["chat-1"].meter.phase == "active"
    await cluster.advance(10_000)
    other.cut()
    await cluster.advance(20_000)
    await other.close()
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS + CHAT.reconnect_grace_ms)
    assert await ended_at(cluster, connection) == 30_000  # the last pong of the other socket


@pytest.mark.parametrize("money_client", [0, 1])
async def test_farewell_spares_other_sockets_and_later_heartbeats(
    cluster: Cluster, node: Node, connection: Connection, money_client: int
) -> None:
    await cluster.grant(10 * CREDIT)
    second = await cluster.node()
    phone, browser = Phone(node, second), node.browser()
    here, there = node.browser("here"), second.browser("there")
    for one in (browser, here, there):
        await one.start("chat-1", CHAT)
    await phone.beat(money_client)
    await cluster.advance(20_000)
    await browser.close()
    await phone.beat(money_client)
    await cluster.advance(20_000)
    assert {one.local_sessions["chat-1"].meter.phase for one in (here, there)} == {"active"}
    here.cut()
    there.cut()
    await cluster.advance(20_000)
    await here.close()
    await there.close()
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS + CHAT.reconnect_grace_ms)
    assert await ended_at(cluster, connection) == 20_000 + server_limits.HEARTBEAT_PROOF_MS


async def test_farewell_during_first_heartbeat(
    cluster: Cluster, node: Node, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(10 * CREDIT)
    phone, browser = Phone(node), node.browser()
    await browser.start("chat-1", CHAT)
    await browser.close()  # suspended: the heartbeat's join makes a step
    real, go_on = node.live.commit, asyncio.Event()

    async def slow(*asked: Any, **options: Any) -> Any:
        await go_on.wait()
        return await real(*asked, **options)

    await cluster.advance(5_000)
    monkeypatch.setattr(node.live, "commit", slow)
    back = node.browser("back")
    beat = asyncio.create_task(phone.desks[0].beat(ANN, "chat-1", START))
    joined = asyncio.create_task(back.start("chat-1", CHAT))
    while not any(len(local.subscribers) == 2 for local in node.registry):  # noqa: ASYNC110 -- there is no event to wait for
        await asyncio.sleep(0)
    back.local_sessions["chat-1"] = next(iter(node.registry))
    closed = asyncio.create_task(back.close())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(beat, joined, closed, return_exceptions=True)
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS + CHAT.reconnect_grace_ms)
    assert await ended_at(cluster, connection) == 0


async def end_after(cluster: Cluster, other: Browser | None) -> None:
    """Cuts the other socket, if any; proofs and graces run out."""
    if other is not None:
        other.cut()
        await cluster.advance(20_000)
        await other.close()
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS + CHAT.reconnect_grace_ms)


@pytest.mark.parametrize("when", [0, 1, 2, 3])
@pytest.mark.parametrize("others", [0, 1])
async def test_farewell_elsewhere_during_first_heartbeat(
    cluster: Cluster,
    node: Node,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    when: int,
    others: int,
) -> None:
    """The socket closes around the reads of the heartbeat's process.

    That process reads the session once more when it listens to the account. The other socket, if
    any, is cut later.
    """
    await cluster.grant(10 * CREDIT)
    second = await cluster.node()
    phone, browser, other = Phone(second), node.browser(), node.browser("2")
    await browser.start("chat-1", CHAT)
    if others:
        await other.start("chat-1", CHAT)
    await cluster.advance(30_000)
    await close_while_read(second, browser, monkeypatch, when)
    await phone.beat()
    await end_after(cluster, other if others else None)
    assert await ended_at(cluster, connection) == 30_000


async def close_while_read(
    node: Node, browser: Browser, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """Closes a socket before or after an attach of a process.

    ``when`` counts these instants.
    """
    real, instants = node.live.attach, 0

    async def instant() -> None:
        nonlocal instants
        if instants == when:
            await browser.close()
            await browser.node.registry.idle()
        instants += 1

    async def attach(*asked: Any, **options: Any) -> Any:
        await instant()
        found = await real(*asked, **options)
        await instant()
        return found

    monkeypatch.setattr(node.live, "attach", attach)


@pytest.mark.parametrize("others", [0, 1])
async def test_farewell_reaches_process_that_missed_message(
    cluster: Cluster,
    node: Node,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    others: int,
) -> None:
    """The heartbeat's process is not subscribed while the socket closes."""
    await cluster.grant(10 * CREDIT)
    second = await cluster.node()
    phone, browser, other = Phone(second), node.browser(), node.browser("2")
    await browser.start("chat-1", CHAT)
    if others:
        await other.start("chat-1", CHAT)
    await phone.beat()
    await cluster.advance(30_000)
    accounts = second.registry.accounts
    with monkeypatch.context() as patched:
        patched.setattr(accounts, "listener", lambda *_: None)
        await browser.close()
        await cluster.settle()
    for account in list(accounts):
        accounts.listener(account, {})
    await cluster.settle()
    await end_after(cluster, other if others else None)
    assert await ended_at(cluster, connection) == 30_000


async def test_farewell_is_told_when_redis_is_back(
    cluster: Cluster, node: Node, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis does not answer at first when one of two sockets closes."""
    await cluster.grant(10 * CREDIT)
    phone, browser, other = Phone(await cluster.node()), node.browser(), node.browser("2")
    await browser.start("chat-1", CHAT)
    await other.start("chat-1", CHAT)
    await phone.beat()
    await cluster.advance(30_000)
    real, asked = node.live.farewell, 0

    async def late(*arguments: Any) -> None:
        nonlocal asked
        asked += 1
        if asked <= 2:
            raise LiveError("no answer")
        await real(*arguments)

    monkeypatch.setattr(node.live, "farewell", late)
    monkeypatch.setattr(session_table, "retry_after_ms", lambda _: 0)
    await browser.close()
    await cluster.settle()
    assert asked == 3
    other.cut()
    await cluster.advance(20_000)
    await other.close()
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS + CHAT.reconnect_grace_ms)
    assert await ended_at(cluster, connection) == 30_000


async def say_farewell(browser: Browser, how: str) -> None:
    """The client goes, in one of the ways that announce it."""
    if how == "close":
        await browser.close()
    elif how == "leave":
        await browser.leave("chat-1")
    else:
        await browser.request("chat-1", Event.STOP)


async def ended_at(cluster: Cluster, connection: Connection) -> int:
    """The recorded counted time of the ended session."""
    await cluster.flush()
    row = await cluster.records.session("user:ann", "chat-1")
    assert row is not None
    assert row.state == "ended"
    await recorded(cluster, connection)
    return row.elapsed_ms
