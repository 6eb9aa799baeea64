"""Who may come in: the connections of a process, counted and timed before they ask anything.

Three things are kept here for all connections together: how many there are, and of whom,
so that a flood is refused with 503 while descriptors are left for everything else; which
of them ask nothing now, so that a full server lets the longest idle one go rather than
refuse somebody new; and one timer that looks at each of them once a second, so that a
peer that says too little, or takes nothing, is cut in a bounded time.
"""

import asyncio
import ipaddress
from collections import Counter
from typing import Any, Protocol

import structlog

from server import limits as server_limits
from server.runtime.metrics import Metrics

log = structlog.get_logger("taximeter.connections")


class AdmittedConnection(Protocol):
    """A connection that speaks HTTP, as the limiter sees it."""

    def judge(self, now: float) -> None:
        """Its deadlines are looked at; ``now`` is the loop's time."""

    def evict(self) -> None:
        """It asks nothing, and its place is needed."""


class Slot:
    """The place of one connection, whatever protocol it speaks by now."""

    __slots__ = ("_limiter", "_network")

    def __init__(self, limiter: "ConnectionLimiter", network: str) -> None:
        self._limiter: ConnectionLimiter | None = limiter
        self._network = network

    def leave(self) -> None:
        """The connection is gone. Once is enough."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.left(self._network)


class ConnectionLimiter:
    """The connections of a server, sockets included.

    ``connections_max`` leaves descriptors for everything else; the waits are in seconds.
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
        """Hosts that are believed about who stands behind them; set by the first connection."""
        self.count = 0
        self.connections: set[AdmittedConnection] = set()
        """Those that speak HTTP."""
        self.idle: dict[AdmittedConnection, None] = {}
        """Those of them that ask nothing now, the longest idle one first."""
        self.lingering = 0
        """Those that were refused, and have not read it yet."""
        self._by_network: Counter[str] = Counter()
        self._reported: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, connection: AdmittedConnection, address: str) -> Slot | str:
        """The place of one more connection, or why there is none: ``full`` or ``address``.

        A proxy that is trusted to say who stands behind it has as many as it likes: its
        clients are counted when their sockets are accepted.
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
        """A connection that had come in is gone."""
        self.count -= 1
        self.metrics.connections.set(self.count)
        self._by_network[network] -= 1
        if self._by_network[network] <= 0:
            del self._by_network[network]

    def forget(self, connection: AdmittedConnection) -> None:
        """A connection is gone, or speaks another protocol from now on."""
        self.connections.discard(connection)
        self.idle.pop(connection, None)

    def rest(self, connection: AdmittedConnection) -> None:
        """A connection asks nothing from now on."""
        self.idle[connection] = None

    def busy(self, connection: AdmittedConnection) -> None:
        """A connection asks something."""
        self.idle.pop(connection, None)

    def trusts(self, address: str) -> bool:
        """Whether a peer is a proxy that is believed about its clients."""
        return bool(self.proxies) and address in self.proxies

    def forwarded(self, address: str) -> None:
        """A peer sent ``X-Forwarded-For``. One that is not trusted is logged once.

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
    """What one host is counted by: an IPv4 address, or the /64 of an IPv6 one, of which a
    host has as many addresses as it likes (RFC 6177 gives each site at least that)."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
