"""What two failures took from the record, although a client received it.

When any one of process, Redis and Postgres dies, nothing is lost. What a step wrote is in the
outbox, and the process that made the step keeps it until Postgres has it. The record is gone for
good when Redis loses it and that process is dead, or dies before it has put the record back; no
promise covers that. Only at such an instant this module notes the pieces that are neither in
Postgres nor in an outbox and that only dead processes made. A process that received a piece from
another one, and sent it to clients of its own, does not keep the piece.
"""

from collections import defaultdict
from collections.abc import Iterable

from protocol.metering.records import MinuteUsed, Record, SessionEnded
from tests.simulation.clients import SimulatedClient
from tests.simulation.processes import Host
from tests.simulation.state import look
from tests.simulation.virtual_cluster import VirtualCluster

Piece = tuple[str, int | None]
"""A minute of a session, or its end (None)."""


class Forgotten:
    """Pieces of sessions that may be missing in the record."""

    def __init__(self, cluster: VirtualCluster) -> None:
        self.cluster = cluster
        self.pieces: set[Piece] = set()
        self._makers: defaultdict[Piece, set[Host]] = defaultdict(set)
        """Processes whose steps wrote a piece; more than one, if Redis had lost the piece."""
        self._missing: set[Piece] = set()
        """Pieces that Redis lost before Postgres had them. Their makers must put them back."""

    def made(self, host: Host, records: Iterable[Record]) -> None:
        """Notes the records of a step of a process."""
        for record in records:
            if isinstance(record, MinuteUsed):
                self._makers[record.session_id, record.minute].add(host)
            elif isinstance(record, SessionEnded):
                self._makers[record.session_id, None].add(host)

    def makers_of(self, session_id: str) -> set[str]:
        """Names of the processes whose steps made a session's end."""
        return {host.name for host in self._makers[session_id, None]}

    def lost(self, clients: Iterable[SimulatedClient]) -> None:
        """Notes that Redis has just lost something."""
        self._missing |= _tellers(clients).keys()
        self.died(clients)

    def died(self, clients: Iterable[SimulatedClient]) -> None:
        """Finds the pieces that no process can put back.

        Call this also after a death.
        """
        if self._missing:
            self._missing -= self._written()
            # No step makes the end of a lost session: the process that sent the end must keep it.
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
    """For every piece that a client received, the processes that sent it."""
    tellers: defaultdict[Piece, set[Host]] = defaultdict(set)
    for client in clients:
        for message in client.messages:
            piece = _piece(message)
            if piece is not None:
                tellers[piece].add(client.node)
    return tellers


def _piece(message: dict[str, object]) -> Piece | None:
    """The piece of a session that a message announces, if any."""
    session_id, minute = message.get("session_id"), message.get("minute")
    if not isinstance(session_id, str) or message["type"] not in ("minute", "stopped"):
        return None
    return session_id, minute if isinstance(minute, int) else None
