"""Clients that take service without a proof of life, in virtual time.

Each client takes part for ten minutes, and gets ticks as often as the server sends them. Whatever
it does, at least nine tenths of that time is billed, apart from five seconds. An honest client on a
bad connection pays for nothing beyond its last proof of life.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from protocol import limits
from protocol.metering.states import Event
from protocol.wire.errors import ProtocolError
from server import limits as server_limits
from server.access.principals import Principal
from server.runtime.rate_card_file import load_rate_card
from server.sessions.pending_requests import PendingRequest
from tests.fixtures.database import Connection
from tests.simulation.cluster import Browser, Cluster, Node
from tests.simulation.test_heartbeats import Phone

CREDIT = 1_000_000
TICK_MS = 1_000
LASTS_MS = 600_000
CHAT = load_rate_card().terms("chat")
ANN = Principal(kind="user", user_id="ann", account_id="ann", tenant="user:ann")


class Cheat(Browser):
    """A socket that reads everything and chooses which pings to answer."""

    def __init__(self, node: Node, answers: Callable[["Cheat"], bool]) -> None:
        self.answers = answers
        self.joined_at = node.clock.now()
        self.pings = 0
        self.pongs = 0
        """Like ``pings``, counted since the last join."""
        super().__init__(node, "cheat")

    @property
    def age_ms(self) -> int:
        """Time since the last join."""
        return self.node.clock.now() - self.joined_at

    def probe(self) -> None:
        """The server pings."""
        self.pings += 1
        if self.answers(self):
            self.pongs += 1
            super().probe()

    def _ping(self) -> None:
        # The server's keepalive, and its reaction to silence (server/transport/keepalive.py).
        at = self.node.clock.now() + server_limits.PING_INTERVAL_MS
        self.node.timers.deadline(at, self._asked)

    def _asked(self, now_ms: int) -> None:
        if not self.is_cut:
            self.probe()
            at = now_ms + server_limits.PONG_TIMEOUT_MS
            self.node.timers.deadline(at, lambda _: self._judged(now_ms))

    def _judged(self, asked_at: int) -> None:
        if self.is_cut:
            return
        if self.alive_at >= asked_at:
            self._asked(self.node.clock.now())
        else:
            self.drop()

    def drop(self) -> None:
        """The socket goes without a close frame, or for its silence.

        The server closes a silent socket.
        """
        self.is_cut = True
        for local in list(self.local_sessions.values()):
            self.node.registry.unsubscribe(local, self, self.alive_at)
        self.local_sessions.clear()

    async def join(self, session_id: str) -> None:
        """Starts or joins a session, with a tick a second."""
        self.alive_at = self.joined_at = self.node.clock.now()
        self.pings = self.pongs = 0
        await self.start(session_id, CHAT)
        if session_id in self.local_sessions:
            self.local_sessions[session_id].service.add(self, TICK_MS, passive=False)


class Observer(Browser):
    """A socket that answers every ping, and only observes."""

    async def watch(self, session_id: str) -> None:
        """Watches a session, with a tick a second."""
        try:
            local = await self.node.registry.watch(self, ANN, session_id, PendingRequest(self, 1))
        except ProtocolError:
            return
        if local is not None and self in local.subscribers:
            local.service.add(self, TICK_MS, passive=True)
        await self.node.cluster.settle()


class Fraud:
    """A dishonest user on two processes, with all its sockets."""

    def __init__(self, cluster: Cluster, nodes: list[Node]) -> None:
        self.cluster = cluster
        self.nodes = nodes
        self.sockets: list[Browser] = []
        self.until = cluster.clock.now() + LASTS_MS

    @property
    def goes_on(self) -> bool:
        """Whether the user's ten minutes are not over."""
        return self.cluster.clock.now() < self.until

    def open(self, answers: Callable[[Cheat], bool], node: int = 0) -> Cheat:
        """Opens one more socket."""
        socket = Cheat(self.nodes[node], answers)
        self.sockets.append(socket)
        return socket

    def observer(self, node: int) -> Observer:
        """Opens one more socket, as an observer."""
        socket = Observer(self.nodes[node], "observer")
        self.sockets.append(socket)
        return socket

    def ticked_ms(self) -> int:
        """The time for which the user received ticks, summed over its sessions.

        A tick counts only if no other socket of the user had it already.
        """
        seconds = {
            (tick["session_id"], tick["received_at"] // TICK_MS)
            for socket in self.sockets
            for tick in socket.all("tick")
        }
        return len(seconds) * TICK_MS

    def shown_ms(self) -> int:
        """The time that the ticks have shown, summed over all sessions."""
        shown: dict[str, int] = {}
        for socket in self.sockets:
            for tick in socket.all("tick"):
                before = shown.get(tick["session_id"], 0)
                shown[tick["session_id"]] = max(before, tick["elapsed_ms"])
        return sum(shown.values())


def never(_: Cheat) -> bool:
    return False


def once(cheat: Cheat) -> bool:
    return cheat.pongs == 0


def always(_: Cheat) -> bool:
    return True


def up_to(ms: int) -> Callable[[Cheat], bool]:
    return lambda cheat: cheat.age_ms <= ms


async def stays(fraud: Fraud, answers: Callable[[Cheat], bool], *, hops: bool, new: bool) -> None:
    """Stays until the server closes the socket, and comes back at once.

    ``hops``: to the other process in turn. ``new``: to a new session each time.
    """
    for number in range(1_000):
        if not fraud.goes_on:
            return
        socket = fraud.open(answers, number % 2 if hops else 0)
        await socket.join(f"chat-{number if new else 1}")
        while fraud.goes_on and not socket.is_cut:
            await fraud.cluster.advance(500)
        socket.drop()


async def flutters(fraud: Fraud, stay_ms: int, away_ms: int, how: str) -> None:
    """Joins, takes, and leaves constantly, with or without a message."""
    socket = fraud.open(once)
    while fraud.goes_on:
        if how == "drop" or socket.is_cut:
            socket = fraud.open(once)
        if how != "pause" or not socket.local_sessions:
            await socket.join("chat-1")
        else:
            socket.pongs = 0
            await socket.request("chat-1", Event.RESUME)
        await fraud.cluster.advance(stay_ms)
        if how == "drop":
            socket.drop()
        elif how == "leave" and socket.local_sessions:
            await socket.leave("chat-1")
        elif socket.local_sessions:
            await socket.request("chat-1", Event.PAUSE)
        await fraud.cluster.advance(away_ms)


async def beats(fraud: Fraud, *, farewell: bool) -> None:
    """Is silent on sockets; heartbeats to another process keep the session."""
    phone = Phone(*fraud.nodes)
    while fraud.goes_on:
        socket, other = fraud.open(never), fraud.open(never)
        for one in (socket, other):
            await one.join("chat-1")
        await phone.beat(1)
        await fraud.cluster.advance(15_000)
        if farewell and other.local_sessions:
            await other.leave("chat-1")
        await fraud.cluster.advance(20_000)


async def is_watched(fraud: Fraud, node: int, answers: Callable[[Cheat], bool]) -> None:
    """Observes itself with a live socket while the paying one is silent."""
    observer = fraud.observer(node)
    for number in range(1_000):
        if not fraud.goes_on:
            return
        socket = fraud.open(answers)
        await socket.join(f"chat-{number}")
        await observer.watch(f"chat-{number}")
        while fraud.goes_on and not socket.is_cut:
            await fraud.cluster.advance(500)
        socket.drop()


async def shares(fraud: Fraud) -> None:
    """Opens one session on two processes; answers here, there, then nowhere."""
    for number in range(1_000):
        if not fraud.goes_on:
            return
        here, there = fraud.open(up_to(40_000)), fraud.open(up_to(80_000), 1)
        for socket in (here, there):
            await socket.join(f"chat-{number}")
        while fraud.goes_on and not (here.is_cut and there.is_cut):
            await fraud.cluster.advance(500)


async def many(fraud: Fraud) -> None:
    """Has many sessions on one socket."""
    for number in range(1_000):
        if not fraud.goes_on:
            return
        socket = fraud.open(once)
        for session in range(8):
            await socket.join(f"chat-{number}-{session}")
        while fraud.goes_on and not socket.is_cut:
            await fraud.cluster.advance(1_000)


FRAUDS: dict[str, Callable[[Fraud], Coroutine[Any, Any, None]]] = {
    "answers no ping": lambda fraud: stays(fraud, never, hops=False, new=False),
    "answers no ping, on new sessions": lambda fraud: stays(fraud, never, hops=False, new=True),
    "answers no ping, here and there": lambda fraud: stays(fraud, never, hops=True, new=False),
    "answers one ping": lambda fraud: stays(fraud, once, hops=False, new=False),
    "answers one ping, here and there": lambda fraud: stays(fraud, once, hops=True, new=True),
    "answers for 5 s": lambda fraud: stays(fraud, up_to(5_000), hops=False, new=True),
    "answers for 30 s": lambda fraud: stays(fraud, up_to(30_000), hops=True, new=True),
    "answers for 110 s": lambda fraud: stays(fraud, up_to(110_000), hops=False, new=True),
    "drops after the first tick": lambda fraud: flutters(fraud, 1_100, 0, "drop"),
    "drops at once": lambda fraud: flutters(fraud, 200, 800, "drop"),
    "leaves at once": lambda fraud: flutters(fraud, 300, 700, "leave"),
    "pauses at once": lambda fraud: flutters(fraud, 300, 700, "pause"),
    "lives by heartbeats": lambda fraud: beats(fraud, farewell=False),
    "takes leave of heartbeats": lambda fraud: beats(fraud, farewell=True),
    "watches itself": lambda fraud: is_watched(fraud, 0, never),
    "watches itself elsewhere": lambda fraud: is_watched(fraud, 1, once),
    "watches itself for a while": lambda fraud: is_watched(fraud, 1, up_to(30_000)),
    "shares a session": shares,
    "has many sessions": many,
}


@pytest.mark.parametrize("name", FRAUDS)
async def test_service_without_proof_is_a_tenth_at_most(
    cluster: Cluster, node: Node, connection: Connection, name: str
) -> None:
    await cluster.grant(1_000 * CREDIT)
    fraud = Fraud(cluster, [node, await cluster.node()])
    await FRAUDS[name](fraud)
    billed_ms = await billed(cluster, connection)
    for service_ms in (fraud.ticked_ms(), fraud.shown_ms()):
        assert billed_ms >= 0.9 * (service_ms - 5_000), (service_ms, billed_ms)


async def billed(cluster: Cluster, connection: Connection) -> int:
    """The time that is billed in the end, summed over all sessions."""
    await cluster.advance(server_limits.HEARTBEAT_PROOF_MS + CHAT.reconnect_grace_ms + 5_000)
    await cluster.flush()
    rows = await connection.fetch("SELECT state, elapsed_ms FROM sessions")
    assert {row["state"] for row in rows} <= {"ended"}
    return sum(row["elapsed_ms"] for row in rows)


# --- Honest clients -------------------------------------------------------------------


async def test_honest_client_gets_every_tick_and_few_pings(cluster: Cluster, node: Node) -> None:
    await cluster.grant(100 * CREDIT)
    fraud = Fraud(cluster, [node])
    client = fraud.open(always)
    await client.join("chat-1")
    await cluster.advance(120_000)
    assert len(client.all("tick")) in range(119, 122)
    assert client.pings < 60
    pings = client.pings
    await cluster.advance(120_000)
    assert len(client.all("tick")) in range(239, 243)
    assert client.pings - pings <= 14  # one ping in 10 s, and one at the end of each minute


async def test_late_pongs_are_served_and_billed(
    cluster: Cluster, node: Node, connection: Connection
) -> None:
    await cluster.grant(100 * CREDIT)
    fraud = Fraud(cluster, [node])
    client = fraud.open(never)
    await client.join("chat-1")
    for number in range(20):
        await cluster.advance(10_000 if number else 19_000)  # nine seconds after each ping
        client._pong(cluster.clock.now())
        await cluster.settle()
        # The tick has waited for this pong, unless the previous pong covered the whole time.
        assert client.last("tick")["received_at"] > cluster.clock.now() - TICK_MS
    assert not client.is_cut
    assert client.last("tick")["elapsed_ms"] > 208_000
    assert await billed(cluster, connection) == 209_000


@pytest.mark.parametrize("comes_back", ["the line", "a socket here", "a socket elsewhere"])
async def test_cut_connection_is_billed_to_its_last_proof(
    cluster: Cluster, node: Node, connection: Connection, comes_back: str
) -> None:
    """The connection is cut for 8 s, ten times in an hour.

    The client is billed to its last proof, and gets ticks again within a round trip of when one is
    due.
    """
    await cluster.grant(100 * CREDIT)
    fraud = Fraud(cluster, [node, await cluster.node()])
    fraud.until += 3_000_000
    is_up, expected_ms = True, 0

    def answers(_: Cheat) -> bool:
        return is_up

    client = fraud.open(answers)
    await client.join("chat-1")
    joined_at = cluster.clock.now()
    for number in range(10):
        await cluster.advance(352_000 if number % 3 else 3_000)
        is_up, seen = False, len(client.messages)
        await cluster.advance(8_000)
        del client.messages[seen:]  # nothing arrives
        is_up = True
        if comes_back == "the line":
            client.probe()  # a ping that was under way
        else:
            client.drop()
            expected_ms += client.alive_at - joined_at
            client = fraud.open(answers, int(comes_back == "a socket elsewhere"))
            await client.join("chat-1")
            joined_at = cluster.clock.now()
        await cluster.advance(TICK_MS + 2 * node.round_trip_ms)
        assert client.all("tick")[-1]["received_at"] > joined_at, number
        assert client.messages[-1]["received_at"] >= cluster.clock.now() - TICK_MS, number
    is_up = False
    expected_ms += client.alive_at - joined_at
    assert await billed(cluster, connection) == expected_ms


@pytest.mark.parametrize("node_number", [0, 1])
@pytest.mark.parametrize("others", [0, 2])
async def test_unnoticed_cut_connection_proves_nothing(
    cluster: Cluster, node: Node, connection: Connection, node_number: int, others: int
) -> None:
    """Ten times an hour, a client returns over a new socket.

    It returns after 8 s. The server believes that the old socket is there: the unproven time is a
    gap.
    """
    await cluster.grant(100 * CREDIT)
    fraud = Fraud(cluster, [node, await cluster.node()])
    fraud.until += 3_000_000
    lost: set[Cheat] = set()

    def answers(cheat: Cheat) -> bool:
        return cheat not in lost

    async def come(number: int) -> list[Cheat]:
        tabs = [fraud.open(answers, number % 2 * node_number) for _ in range(1 + others)]
        for tab in tabs:
            await cluster.meanwhile(tab.join("chat-1"))
        return tabs

    expected_ms = 0
    tabs, joined_at = await come(0), cluster.clock.now()
    for number in range(1, 11):
        await cluster.advance(352_000 if number % 3 else 3_000)
        lost.update(tabs)
        expected_ms += max(tab.alive_at for tab in tabs) - joined_at
        await cluster.advance(8_000)
        tabs, joined_at = await come(number), cluster.clock.now()
        await cluster.advance(limits.DOUBT_WAIT_MS + 2 * TICK_MS + 2 * node.round_trip_ms)
        assert tabs[0].all("tick")[-1]["received_at"] > joined_at, number
    lost.update(tabs)
    expected_ms += max(tab.alive_at for tab in tabs) - joined_at
    assert abs(await billed(cluster, connection) - expected_ms) <= 500  # of 80 s
