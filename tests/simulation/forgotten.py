"""What nobody knows any more, although a client was told of it: two failures took it.

Any one of process, Redis and Postgres may die and nothing is lost. What a step wrote is in
the outbox, and the process that made it keeps it until Postgres has it; when Redis loses it
and that process is dead, or dies before it has put it back, it is gone for good, and nobody
promised otherwise. So it is noted at such an instant, and only then, what is neither in
Postgres nor in an outbox and was made by none but dead processes. A process that has only
heard of it, and told it to clients of its own, does not keep what another one made.
"""

from collections import defaultdict
from collections.abc import Iterable

from protocol.metering.records import MinuteUsed, Record, SessionEnded
from tests.simulation.clients import SimulatedClient
from tests.simulation.processes import Host
from tests.simulation.state import look
from tests.simulation.virtual_cluster import VirtualCluster

Piece = tuple[str, int | None]
"""A minute of a session, or (None) its end."""


class Forgotten:
    """Pieces of sessions that may be missing in the record."""

    def __init__(self, cluster: VirtualCluster) -> None:
        self.cluster = cluster
        self.pieces: set[Piece] = set()
        self._makers: defaultdict[Piece, set[Host]] = defaultdict(set)
        """Processes whose steps wrote a piece; more than one, where Redis had lost it."""
        self._missing: set[Piece] = set()
        """What losses took before Postgres had it: whoever made it is to put it back."""

    def made(self, host: Host, records: Iterable[Record]) -> None:
        """A step of a process was taken, with these records."""
        for record in records:
            if isinstance(record, MinuteUsed):
                self._makers[record.session_id, record.minute].add(host)
            elif isinstance(record, SessionEnded):
                self._makers[record.session_id, None].add(host)

    def makers_of(self, session_id: str) -> set[str]:
        """The names of the processes whose steps made the end of a session."""
        return {host.name for host in self._makers[session_id, None]}

    def lost(self, clients: Iterable[SimulatedClient]) -> None:
        """Redis has lost something just now."""
        self._missing |= _tellers(clients).keys()
        self.died(clients)

    def died(self, clients: Iterable[SimulatedClient]) -> None:
        """Looks what nobody can put back any more; also after the death of a process."""
        if self._missing:
            self._missing -= self._written()
            # An end of a lost session is made by no step: it is up to whoever told it.
            keepers = {**_tellers(clients), **self._makers}
            self.pieces |= {
                piece
                for piece in self._missing
                if not any(host.is_alive for host in keepers[piece])
            }

    def _written(self) -> set[Piece]:
        fetch = self.cluster.postgres.fetch
        minutes = fetch("SELECT session_id, minute FROM usage_tracking")
        ends = fetch("SELECT session_id FROM sessions WHERE state = 'ended'")
        written: set[Piece] = {(row["session_id"], row["minute"]) for row in minutes}
        written |= {(row["session_id"], None) for row in ends}
        for records in look(self.cluster.redis).outbox.values():
            for record in records:
                if record["t"] in ("minute", "ended"):
                    written.add((record["session_id"], record.get("minute")))
        return written


def _tellers(clients: Iterable[SimulatedClient]) -> dict[Piece, set[Host]]:
    """The processes that told a piece, of every piece that a client was told."""
    tellers: defaultdict[Piece, set[Host]] = defaultdict(set)
    for client in clients:
        for message in client.messages:
            piece = _piece(message)
            if piece is not None:
                tellers[piece].add(client.node)
    return tellers


def _piece(message: dict[str, object]) -> Piece | None:
    """What a message tells for good."""
    session_id, minute = message.get("session_id"), message.get("minute")
    if not isinstance(session_id, str) or message["type"] not in ("minute", "stopped"):
        return None
    return session_id, minute if isinstance(minute, int) else None
