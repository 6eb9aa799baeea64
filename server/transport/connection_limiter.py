"""Limits the connections of a process, their idle time and deadlines.

For all connections together this module keeps three things:

- The number of connections, total and per address, so that a flood is refused with 503 while
  descriptors are left for all other work.
- The idle connections, so that a full server closes the longest idle one in place of refusing a new
  one.
- One timer that checks each connection once a second, so that a peer that sends too little, or
  reads nothing, is cut in a bounded time.
"""

import asyncio
import ipaddress
from collections import Counter
from typing import Any, Final, Protocol

import structlog

from server import limits as server_limits
from server.runtime.metrics import Metrics

PEER: Final = "taximeter.peer"
"""The key of a scope's ``extensions`` for the address of the connection's other end, which may be a
proxy. A proxy's headers change the address in the scope, but not this one."""

log = structlog.get_logger("taximeter.connections")


class AdmittedConnection(Protocol):
    """A connection that speaks HTTP, as the limiter sees it."""

    def judge(self, now: float) -> None:
        """Checks the connection's deadlines; ``now`` is the loop's time."""

    def evict(self) -> None:
        """Closes the idle connection, because a new one needs its place."""


class Slot:
    """The place of one connection, for HTTP and then for WebSocket."""

    __slots__ = ("_limiter", "_network")

    def __init__(self, limiter: "ConnectionLimiter", network: str) -> None:
        self._limiter: ConnectionLimiter | None = limiter
        self._network = network

    def leave(self) -> None:
        """Frees the place of a connection that is gone.

        A second call does nothing.
        """
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.left(self._network)


class ConnectionLimiter:
    """Admits and counts the connections of a server, WebSockets included.

    ``connections_max`` leaves descriptors for all other work; the waits are in seconds.
    """

    def __init__(
        self,
        metrics: Metrics | None = None,
        connections_max: int = server_limits.DESCRIPTORS_WANTED,
    ) -> None:
        self.metrics = metrics or Metrics(with_process=False)
        self.connections_max = connections_max
        self.head_s = server_limits.REQUEST_HEAD_MS / 1000
        self.body_s = server_limits.REQUEST_BODY_MS / 1000
        self.keep_alive_s = server_limits.KEEP_ALIVE_MS / 1000
        self.drain_s = server_limits.SLOW_PEER_ABORT_MS / 1000
        self.linger_s = server_limits.LINGER_MS / 1000
        self.look_s = server_limits.CONNECTION_LOOK_S
        self.proxies: Any = None
        """Trusted proxies, whose forwarded client addresses are believed; set by the first
        connection."""
        self.count = 0
        self.connections: set[AdmittedConnection] = set()
        """Connections that speak HTTP."""
        self.idle: dict[AdmittedConnection, None] = {}
        """HTTP connections without a request, the longest idle one first."""
        self.lingering = 0
        """Number of refused connections that have not read their answer yet."""
        self._by_network: Counter[str] = Counter()
        self._reported: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, connection: AdmittedConnection, address: str) -> Slot | str:
        """A slot for one more connection, or ``full`` or ``address``.

        The two words say why there is no slot. A trusted proxy has no limit of its own: its clients
        are counted when their sockets are accepted.
        """
        self.connections.add(connection)
        self._look_later()
        network = network_of(address)
        crowded = self._by_network[network] >= server_limits.SOCKETS_PER_ADDRESS_MAX
        if crowded and not self.trusts(address):
            return "address"
        if self.count >= self.connections_max:
            if not self.idle:
                return "full"
            self.cut("evicted")
            longest = next(iter(self.idle))
            self.busy(longest)
            longest.evict()
        self.count += 1
        self._by_network[network] += 1
        self.metrics.connections.set(self.count)
        self.rest(connection)
        return Slot(self, network)

    def left(self, network: str) -> None:
        """Counts that an admitted connection is gone."""
        self.count -= 1
        self.metrics.connections.set(self.count)
        self._by_network[network] -= 1
        if self._by_network[network] <= 0:
            del self._by_network[network]

    def forget(self, connection: AdmittedConnection) -> None:
        """Forgets a connection that is gone, or that speaks another protocol now."""
        self.connections.discard(connection)
        self.idle.pop(connection, None)

    def rest(self, connection: AdmittedConnection) -> None:
        """Notes that a connection is idle from now on."""
        self.idle[connection] = None

    def busy(self, connection: AdmittedConnection) -> None:
        """Notes that a connection has a request."""
        self.idle.pop(connection, None)

    def trusts(self, address: str) -> bool:
        """Whether a peer is a trusted proxy."""
        return bool(self.proxies) and address in self.proxies

    def forwarded(self, address: str) -> None:
        """Notes that a peer sent ``X-Forwarded-For``; logs an untrusted one once.

        Behind a proxy that is not listed every client has the proxy's address.
        """
        if self.trusts(address) or address in self._reported:
            return
        if len(self._reported) < server_limits.PROXIES_REPORTED_MAX:
            self._reported.add(address)
            log.warning(
                "forwarded_for_ignored",
                peer=address,
                hint="if this is your proxy, name it in FORWARDED_ALLOW_IPS",
            )

    def cut(self, why: str) -> None:
        """Counts a connection that was refused or cut."""
        self.metrics.connections_cut.labels(why).inc()

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.look_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for connection in list(self.connections):
            connection.judge(now)
        if self.connections:
            self._look_later()


def network_of(address: str) -> str:
    """The address by which one host is counted.

    It is the IPv4 address, or the /64 of an IPv6 address, because a host may use any address of its
    /64 (RFC 6177 gives each site at least that).
    """
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
