"""The open sockets of a process: counts them, and drains them."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

from protocol.wire.codec import encode
from protocol.wire.errors import CloseCode
from protocol.wire.messages import Reconnect
from server import limits as server_limits
from server.runtime.isolation import isolated
from server.runtime.metrics import Metrics
from server.transport.connection_limiter import network_of
from server.transport.frames import text_frame

PRIVATE_CODES = 3000
"""First close code of private use (RFC 6455 section 7.4.2)."""
_CLOSE_CODES = frozenset(CloseCode)


Carrier = Literal["websocket", "stream"]
"""What carries the messages of a socket: a WebSocket, or an event stream and its requests."""


class OpenSocket(Protocol):
    """An open socket, as the drain sees it."""

    @property
    def carrier(self) -> Carrier:
        """What carries its messages."""

    def send(self, frame: bytes) -> None:
        """Sends a frame that must arrive."""

    def close(self, code: int, reason: str) -> None:
        """Closes the socket from this side."""

    def probe(self) -> None:
        """Asks the peer for a proof of life."""


class Sockets:
    """The open sockets, counted by user and by address."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.connections: set[OpenSocket] = set()
        self.open: Counter[Carrier] = Counter()
        """Open sockets by what carries their messages."""
        self.closed: Counter[str] = Counter()
        """Sockets closed so far, by close code."""
        self._none = asyncio.Event()
        self._none.set()
        self._by_user: Counter[str] = Counter()
        self._by_network: Counter[str] = Counter()

    def admit(self, address: str) -> bool:
        """Whether one more socket from ``address`` fits; counts the socket if so.

        The address is the client's, as a proxy reported it, where there is a proxy. The
        :class:`~server.transport.connection_limiter.ConnectionLimiter` counts all connections
        together.
        """
        network = network_of(address)
        if self._by_network[network] >= server_limits.SOCKETS_PER_ADDRESS_MAX:
            return False
        self._by_network[network] += 1
        return True

    def dismiss(self, address: str) -> None:
        """Counts that an admitted socket is gone."""
        _take(self._by_network, network_of(address))

    def add(self, connection: OpenSocket) -> None:
        """Adds an accepted socket."""
        self.connections.add(connection)
        self._none.clear()
        self.open[connection.carrier] += 1
        opened = self.metrics.of_carrier[connection.carrier]
        opened.open.set(self.open[connection.carrier])
        opened.opened.inc()

    def remove(self, connection: OpenSocket, code: int) -> None:
        """Removes a socket that is gone; ``code`` is its close code."""
        self.connections.discard(connection)
        if not self.connections:
            self._none.set()
        carrier = connection.carrier
        self.open[carrier] -= 1
        self.metrics.of_carrier[carrier].open.set(self.open[carrier])
        # A peer may close with any code, and each would be a time series of its own.
        known = str(code) if code < PRIVATE_CODES or code in _CLOSE_CODES else "other"
        self.closed[known] += 1
        self.metrics.of_carrier[carrier].closed.labels(known).inc()

    async def gone(self) -> None:
        """Waits until every socket is gone."""
        await self._none.wait()

    def claim_user(self, user: str) -> bool:
        """Whether one more socket of a user fits.

        Counts the socket if so.
        """
        if self._by_user[user] >= server_limits.SOCKETS_PER_USER_MAX:
            return False
        self._by_user[user] += 1
        return True

    def release_user(self, user: str) -> None:
        """Counts that a socket of a user is gone."""
        _take(self._by_user, user)

    def probe(self) -> Iterator[None]:
        """Asks every peer for a proof of life, in units of work.

        A unit asks ``PROBES_PER_UNIT`` sockets.
        """
        for number, connection in enumerate(list(self.connections)):
            isolated("probe", connection.probe)
            if number % server_limits.PROBES_PER_UNIT == 0:
                yield

    async def drain(self) -> None:
        """Asks every client to reconnect, then closes the remaining sockets.

        Each client chooses its own instant within the spread. Its sessions are served until it
        leaves, so the move costs it no time.
        """
        spread_ms = -(-len(self.connections) * 1000 // server_limits.DRAIN_SOCKETS_PER_SECOND)
        after_ms = min(server_limits.DRAIN_SPREAD_MS, spread_ms)
        frame = text_frame(encode(Reconnect(after_ms=after_ms)))
        await self._each(lambda connection: connection.send(frame))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout((after_ms + server_limits.DRAIN_LEFT_MS) / 1000):
                await self.gone()
        await self._each(lambda one: one.close(CloseCode.DRAINING, "this process stops"))

    async def _each(self, act: Callable[[OpenSocket], None]) -> None:
        """Calls ``act`` for every socket; other tasks have their turn between batches."""
        connections = list(self.connections)
        for first in range(0, len(connections), server_limits.DRAIN_BATCH_SOCKETS):
            for connection in connections[first : first + server_limits.DRAIN_BATCH_SOCKETS]:
                isolated("drain", act, connection)
            await asyncio.sleep(0)


def _take(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if counter[name] <= 0:
        del counter[name]
