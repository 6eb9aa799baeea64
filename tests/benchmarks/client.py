"""A client of a measurement, with one session over successive WebSockets.

The client does what the browser client does (``protocol/browser/taximeter.js``): it authenticates,
starts its session, answers pings, and after a loss reconnects with full jitter under a bound that
doubles, with the number of its last notice. It forgets most of what it reads: a client that parsed
all messages would measure itself.
"""

import asyncio
import random
import socket
from typing import Any, Protocol, cast

import orjson

IP_BIND_ADDRESS_NO_PORT = 24
"""Linux, ip(7); the socket module of Python 3.11 has no name for it."""
SOCKETS_PER_ADDRESS = 2_000
"""A server admits no more than ``server_limits.SOCKETS_PER_ADDRESS_MAX`` from one address."""

# As in the browser client.
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 10.0
PROVEN_S = 10.0
REQUEST_TIMEOUT_S = 10.0

TEXT, PING, CLOSE = 0x81, 0x89, 0x88
HANDSHAKE = (
    b"GET /v1/ws HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: taximeter.v1\r\n\r\n"
)


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame.

    The mask is zero. RFC 6455 section 5.3 forbids that to a browser, but the server's cost is the
    same.
    """
    size = len(payload)
    assert size < 1 << 16
    if size < 126:
        return b"%c%c\0\0\0\0%b" % (opcode, 0x80 | size, payload)
    return b"%c\xfe%b\0\0\0\0%b" % (opcode, size.to_bytes(2, "big"), payload)


class FleetContext(Protocol):
    """What all clients of a fleet share."""

    loop: asyncio.AbstractEventLoop
    ports: list[int]
    """Ports of the living server processes."""
    kind: str
    tick_ms: int
    is_watchful: bool
    """Clients read the messages, and remember what they saw."""

    def token(self, user: str) -> str:
        """A valid token of a user."""

    def moved(self, client: "FleetClient") -> None:
        """Wakes waiters: the client's state has changed."""


class ClientSocket(asyncio.Protocol):
    """A WebSocket, as far as the client needs one."""

    __slots__ = ("buffer", "client", "is_open", "transport")

    def __init__(self, client: "FleetClient") -> None:
        self.client = client
        self.buffer = b""
        self.is_open = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the handshake."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(HANDSHAKE)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a request."""
        assert self.transport is not None
        self.transport.write(masked(TEXT, orjson.dumps(message)))

    def data_received(self, data: bytes) -> None:
        """Splits frames; the server sends whole frames, and no fragments."""
        data = self.buffer + data if self.buffer else data
        if not self.is_open:
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                self.buffer = data
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self.abort()
                return
            self.is_open, data = True, rest
            self.client.connected()
        at = 0
        while len(data) - at >= 2:
            size, begin = data[at + 1], at + 2
            if size == 126:
                size, begin = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            if len(data) < begin + size:
                break
            self._take(data[at], data[begin : begin + size])
            at = begin + size
        self.buffer = data[at:]

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self.client.received(payload)
        elif opcode == PING:
            assert self.transport is not None
            self.transport.write(masked(0x8A, payload))
        elif opcode == CLOSE:
            self.abort()

    def hang_up(self) -> None:
        """Closes the connection cleanly."""
        if self.transport is not None:
            self.transport.write(masked(CLOSE, (1000).to_bytes(2, "big")))
            self.transport.close()

    def abort(self) -> None:
        """Cuts the connection."""
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Reports to the client that the connection is gone."""
        self.client.lost(self)


class ClientWitness:
    """What a client saw, for the comparison with the bill.

    Instants are monotonic seconds.
    """

    __slots__ = (
        "asked_at", "elapsed_ms", "errors", "mark_at", "minutes", "presence", "stepped_back_ms",
        "stop_asked_at", "tick_at",
    )  # fmt: skip

    def __init__(self) -> None:
        self.presence: list[tuple[float, float, float]] = []
        """For each connection: when the session was requested, when it was shown, when the
        connection was lost."""
        self.asked_at = 0.0
        self.stop_asked_at = 0.0
        self.minutes: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.elapsed_ms = 0
        self.stepped_back_ms = 0
        """Largest difference by which a tick had less time than the one before."""
        self.mark_at = 0.0
        self.tick_at: float | None = None
        """The first tick after the mark, unless the connection was lost after that."""

    def joined(self, now: float) -> None:
        """Notes that the server has shown the session."""
        if not self.presence or self.presence[-1][2] < float("inf"):
            self.presence.append((self.asked_at, now, float("inf")))

    def lost(self, now: float) -> None:
        """Notes that the connection is lost, or the session has ended."""
        self.tick_at = None
        if self.presence and self.presence[-1][2] == float("inf"):
            self.presence[-1] = (*self.presence[-1][:2], now)

    def ticked(self, tick: dict[str, Any], now: float) -> None:
        """Notes a tick."""
        self.stepped_back_ms = max(self.stepped_back_ms, self.elapsed_ms - tick["elapsed_ms"])
        self.elapsed_ms = tick["elapsed_ms"]
        if self.tick_at is None and now >= self.mark_at:
            self.tick_at = now

    def testimony(self) -> dict[str, Any]:
        """All notes of this client."""
        return {name: getattr(self, name) for name in self.__slots__}


class FleetClient:
    """One client with one session."""

    __slots__ = (
        "answered_at",
        "attempt",
        "attempts",
        "context",
        "gone_at",
        "leaving",
        "line",
        "live_at",
        "number",
        "port",
        "receipt",
        "seq",
        "session",
        "ticked_at",
        "ticks",
        "timer",
        "user",
        "wants_stop",
        "witness",
    )  # fmt: skip

    def __init__(self, context: FleetContext, number: int, port: int) -> None:
        self.context = context
        self.number = number
        self.user = f"customer-{number}"
        self.port = port
        self.line: ClientSocket | None = None
        self.leaving: ClientSocket | None = None
        """The connection to a process that drains."""
        self.seq = 0
        self.session: dict[str, Any] = {}
        """The last snapshot."""
        self.receipt: dict[str, Any] | None = None
        self.wants_stop = False
        self.attempt = self.attempts = 0
        self.ticks = 0
        """Ticks since the last snapshot that answered a start."""
        # Instants of the monotonic clock, which all processes of a machine share.
        self.live_at: float | None = None
        self.gone_at: float | None = None
        self.answered_at: float | None = None
        self.ticked_at: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.witness = ClientWitness()

    # --- Connecting and disconnecting --------------------------------------------------

    async def connect(self) -> None:
        """Connects to the client's present server process."""
        connection = socket.socket()
        connection.setblocking(False)
        # The port is chosen with the connection, and loopback has many addresses.
        connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((f"127.0.0.{2 + self.number // SOCKETS_PER_ADDRESS}", 0))
        self.attempts += 1
        self._arm(REQUEST_TIMEOUT_S, self._give_up)
        try:
            await self.context.loop.sock_connect(connection, ("127.0.0.1", self.port))
            self.line = line = ClientSocket(self)
            await self.context.loop.create_connection(lambda: line, sock=connection)
        except OSError:
            connection.close()
            self._come_back()

    def connected(self) -> None:
        """Authenticates after the handshake."""
        if self.line is None:
            return
        self.line.send({"type": "auth", "id": 1, "token": self.context.token(self.user)})

    def lost(self, line: ClientSocket) -> None:
        """Handles the loss of a connection."""
        if line is self.leaving:
            # The old connection closed before another process had the session.
            self.leaving = None
            self.witness.lost(self.context.loop.time())
        if line is not self.line:
            return
        self._left()
        if self.receipt is None:
            self._come_back()

    def _left(self) -> None:
        self.line = None
        now = self.context.loop.time()
        if self.leaving is None:
            self.witness.lost(now)
        if self.live_at is not None:
            self.gone_at, self.answered_at, self.ticked_at = now, None, None
            if now - self.live_at >= PROVEN_S:
                self.attempt = 0
        self.live_at = None

    def _move(self) -> None:
        """Moves to another process at the instant that the draining process named.

        The old connection keeps the session alive until the session is joined over the new one.
        """
        if self.line is None:
            return
        self.leaving = self.line
        self._left()
        self.port = self._other_port()
        asyncio.ensure_future(self.connect())  # noqa: RUF006 -- it arms a timer at once

    def abandon(self) -> None:
        """Takes a silent connection for dead, and reconnects elsewhere."""
        if self.line is not None:
            self._hang_up()
            self._come_back()

    def _let_go(self) -> None:
        leaving, self.leaving = self.leaving, None
        if leaving is not None:
            leaving.hang_up()

    def _hang_up(self) -> None:
        line = self.line
        self._left()
        if line is not None:
            line.hang_up()

    def _other_port(self) -> int:
        others = [port for port in self.context.ports if port != self.port]
        return random.choice(others or self.context.ports)

    def _give_up(self) -> None:
        if self.line is not None:
            self.line.abort()

    def _come_back(self) -> None:
        """Waits as the browser client does, then connects to another process."""
        self.port = self._other_port()
        delay_s = self._backoff_s()
        self.attempt += 1
        self._arm(delay_s, lambda: asyncio.ensure_future(self.connect()))

    def _backoff_s(self) -> float:
        most_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * (1 << self.attempt))
        return random.random() * most_s

    def _arm(self, delay_s: float, callback: Any) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.context.loop.call_later(delay_s, callback)

    # --- The server's messages ---------------------------------------------------------

    def received(self, payload: bytes) -> None:
        """Handles a message."""
        if payload.startswith(b'{"type":"tick"'):
            if not self.ticks:
                self.ticked_at = self.context.loop.time()
                self.context.moved(self)
            self.ticks += 1
            if self.context.is_watchful:
                self.witness.ticked(orjson.loads(payload), self.context.loop.time())
                self.context.moved(self)
            return
        message = orjson.loads(payload)
        self.seq = max(self.seq, message.get("seq", 0))
        match message["type"]:
            case "welcome":
                self.live_at = self.context.loop.time()
                if self.timer is not None:
                    self.timer.cancel()
                self._start()
            case "session":
                self.session = message
                if message.get("id") == 2:
                    self.answered_at, self.ticks = self.context.loop.time(), 0
                    if self.receipt is None:
                        self.witness.joined(self.answered_at)
                    self._let_go()
                self.context.moved(self)
            case "minute":
                self.witness.minutes.append(message)
            case "reconnect":
                delay_s = random.random() * message["after_ms"] / 1000
                self._arm(delay_s, self._move)
            case "stopped":
                self.receipt = message["receipt"]
                self.witness.lost(self.context.loop.time())
                self.context.moved(self)
            case "error":
                self.witness.errors.append(message["code"])
                self._refused(message)

    def _start(self) -> None:
        if self.line is None:
            return
        self.witness.asked_at = self.context.loop.time()
        self.line.send(
            {
                "type": "start",
                "id": 2,
                "kind": self.context.kind,
                "session_id": f"session-{self.number}",
                "tick_ms": self.context.tick_ms,
                "last_seq": self.seq,
            }
        )
        if self.wants_stop:
            self.stop()

    def stop(self) -> None:
        """Stops the session, now or after the next connection."""
        self.wants_stop = True
        if self.line is not None and self.live_at is not None:
            self.witness.stop_asked_at = self.context.loop.time()
            self.line.send({"type": "stop", "id": 3, "session_id": f"session-{self.number}"})

    def _refused(self, message: dict[str, Any]) -> None:
        if message.get("retryable"):
            again = self.connected if message.get("id") == 1 else self._start
            self._arm(self._backoff_s(), again)
            return
        if message["code"] == "session_ended":
            self.receipt = self.receipt or {}
        else:
            self.session = message
        self.context.moved(self)

    def close(self) -> None:
        """Drops the connection without a close."""
        line, self.line = self.line, None
        if self.timer is not None:
            self.timer.cancel()
        if line is not None:
            line.abort()
