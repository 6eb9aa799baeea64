"""Clients of a virtual cluster, their messages, and a log per session.

The session log has what an auditor cannot see in Redis: when a client asked for what, and when the
client last proved its life. All instants are true time, whatever the clocks of processes show.
"""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from protocol import limits
from protocol.metering.terms import Terms
from server.sessions.local_session import LocalSession
from tests.simulation.people import Person
from tests.simulation.processes import ServerHost

PING_MS = 10_000
NEVER = 2**53
ANSWER_MS = limits.DOUBT_WAIT_MS // 2
"""Within this time a client that is there answers, and every process hears the answer."""
FOUND_OUT_MS = 2 * PING_MS
"""Within this time a dead connection is found, because a pong did not come in time."""


@dataclass
class SessionLog:
    """What happened to one session, seen from outside."""

    person: Person
    terms: Terms
    session_id: str
    requests: list[tuple[int, str]] = field(default_factory=list)
    """Instants at which its clients asked for something, or joined, with the request's name."""
    proofs: list[tuple[int, int]] = field(default_factory=list)
    """When a socket was found to be gone, and the last proof of life known at that instant."""
    heard: list[tuple[int, int]] = field(default_factory=list)
    """Every proof of life of a client that takes part, and when that client joined."""
    reported_ms: int = 0
    """The most time that its client has counted itself."""
    disturbed: bool = False
    """An answer of Redis was lost or late, so instants are not exact."""
    deaths: list[int] = field(default_factory=list)
    """When processes died that had a socket of the session."""
    served: list[list[int]] = field(default_factory=list)
    """For each client: when it joined, its last proof of life, when its end was found at the
    latest."""

    def took_back(self, then: int, at: int) -> bool:
        """Whether time at ``then`` is, by ``at``, known not to count.

        A client was gone by ``then``, which the server found out later, and no other client was
        there.
        """
        is_lost = any(end < then <= found <= at for _, end, found in self.served)
        return is_lost and not any(
            begin <= then <= (end if found <= at else at) for begin, end, found in self.served
        )

    def is_doubted(self, then: int, at: int) -> bool:
        """Whether time at ``then`` may be a gap, as known at ``at``.

        No client had proven that time when another client joined, and none of the earlier clients
        has answered since.
        """
        for came in {begin for begin, _, _ in self.served if then <= begin <= at}:
            before = self.proven_before(came)
            if before < then and self.terms.gap == "skip" and not self.answered(came, at):
                return True
        return False

    def is_doubtful(self, proof: int, came: int) -> bool:
        """Whether time between a proof and a join need not be billed.

        The kind bills no gaps, the proof is the last one before the join, and it is old. None of
        the clients that were there has answered since.
        """
        is_last = proof == self.proven_before(came) and proof < came - limits.DOUBT_MS
        return is_last and self.terms.gap != "bill" and not self.answered(came, NEVER)

    def was_visited_in_doubt(self, end: int, latest: int) -> bool:
        """Whether clients came after ``end``, and went while that was in doubt.

        Each of them was gone, the last one at ``latest``, before it was known whether the earlier
        clients had been cut. On a process of its own, such a client takes its proof along: until
        the gap before its join is known, its process can bill nothing that follows the gap. This
        costs at most ``DOUBT_WAIT_MS`` for each client, in the user's favour, and no tick goes out
        meanwhile.
        """
        visits = [(begin, last) for begin, last, _ in self.served if begin > end]
        return (
            latest in {last for _, last in visits}
            and self.is_doubtful(end, min(visits)[0])
            and all(last <= self._attached(begin) + limits.DOUBT_WAIT_MS for begin, last in visits)
        )

    def ended_behind_doubt(self, end: int) -> bool:
        """Whether a request that waited behind a doubt ended time later.

        A pause or a stop ends it at the newest proof since the request. The request waits for
        ``DOUBT_WAIT_MS`` at most, while each probe may bring a proof.
        """
        if self.terms.gap == "bill" or all(end != at for at, _ in self.heard):
            return False
        doubts = [
            (came, self._attached(came) + limits.DOUBT_WAIT_MS)
            for came, _, _ in self.served
            if self.proven_before(came) < came - limits.DOUBT_MS
        ]
        ends = [at for at, event in self.requests if event in ("pause", "stop")]
        return any(came <= at < end <= until for came, until in doubts for at in ends)

    def _attached(self, begin: int) -> int:
        """When a client that asked at ``begin`` joined.

        One that was gone before that counts as joined at ``begin``.
        """
        joins = [at for at, event in self.requests if event == "join" and at >= begin]
        return min(joins, default=begin)

    def is_stopped(self, then: int, at: int) -> bool:
        """Whether an operator's stop leaves ``then`` unproven by ``at``.

        No client has proven ``then`` by ``at``. The stop asks for a proof of life, and ends the
        session at the last one. A proof that comes after the wait for it may miss the step that
        ends the session.
        """
        stops = [asked for asked, event in self.requests if event == "operator" and asked <= at]
        until = min([at, *(asked + limits.STOP_PROOF_WAIT_MS for asked in stops)])
        return bool(stops) and not any(then <= proof <= until for proof, _ in self.heard)

    def proven_before(self, came: int) -> int:
        """The last proof of life before a client's join.

        Without a proof, this is the instant of the join.
        """
        proofs = [begin for begin, _, _ in self.served] + [at for at, _ in self.heard]
        return max((at for at in proofs if at < came), default=came)

    def answered(self, came: int, until: int) -> bool:
        """Whether an earlier client proves its life soon after a join."""
        until = min(until, came + ANSWER_MS)
        return any(begin < came <= at <= until for at, begin in self.heard)


class Join(NamedTuple):
    """A client's request to join or watch a session."""

    request_id: int
    messages_before: int
    """How many messages the client had when it asked."""
    last_seq: int | None


def _payload(frame: bytes) -> dict[str, Any]:
    """The message in a server's text frame (RFC 6455 section 5.2: unmasked)."""
    length = frame[1]
    start = {126: 4, 127: 10}.get(length, 2)
    message: dict[str, Any] = json.loads(frame[start:])
    return message


class SimulatedClient:
    """A socket that answers pings until cut, and keeps its messages.

    It keeps the messages that it received.
    """

    def __init__(self, node: ServerHost, name: str) -> None:
        self.node = node
        self.name = name
        self.messages: list[dict[str, Any]] = []
        self.of_session: dict[str, list[dict[str, Any]]] = {}
        """The messages that name a session, by the session's id, in order."""
        self.alive_at = node.loop.clock.now()
        """The last proof of life that reached the server, in true time."""
        self.is_cut = False
        """The connection is dead: nothing arrives, and neither side was notified."""
        self.is_mute = False
        """The client reads everything, and answers no ping."""
        self.is_gone = False
        """The socket is closed, or was found to be dead: the client takes part in nothing."""
        self.requests = 0
        self.local_sessions: dict[str, LocalSession] = {}
        self.sessions: dict[str, SessionLog] = {}
        """The sessions that it takes part in, as far as the client knows."""
        self._served: dict[str, list[int]] = {}
        self.last_served: dict[str, list[int]] = {}
        """The newest entry of ``SessionLog.served`` that is this client's, by session."""
        self.watched: dict[str, LocalSession] = {}
        self.joins: dict[str, list[Join]] = {}
        """The client's requests to join or watch each session, in order."""
        self.refused: set[int] = set()
        """The requests that were answered with an error."""
        self._is_pinged = False

    # Subscriber

    def send(self, frame: bytes) -> None:
        """The server sends a message."""
        if not self.is_cut:
            message = _payload(frame)
            message["received_at"] = self.node.loop.clock.now()
            self.messages.append(message)
            if message["type"] == "error" and "id" in message:
                self.refused.add(message["id"])
            if "session_id" in message:
                self.of_session.setdefault(message["session_id"], []).append(message)

    def send_tick(self, frame: bytes) -> bool:
        """The server sends a tick."""
        self.send(frame)
        return not self.is_cut

    def probe(self) -> None:
        """The server pings; the pong comes back after a round trip."""
        at = self.node.clock.now() + self.node.round_trip_ms
        self.node.timers.deadline(at, lambda _: self._answer())

    def farewell(self, at_ms: int) -> None:
        """Another socket says good-bye; this socket stays."""

    def left(self, local: LocalSession) -> None:
        """A session has ended, or this process no longer serves it."""
        session_id = local.meter.session.identity.session_id
        self.local_sessions.pop(session_id, None)
        self.watched.pop(session_id, None)

    # The connection

    def _ping(self) -> None:
        if not self._is_pinged:
            self._is_pinged = True
            self.node.timers.deadline(self.node.clock.now() + PING_MS, self._pinged)

    def _pinged(self, _: int) -> None:
        self._is_pinged = False
        if self.local_sessions and not self.is_cut and self.node.is_alive:
            self._answer()
            self._ping()

    def _answer(self) -> None:
        """Answers a ping, unless the client is cut or mute."""
        if not self.is_mute:
            self.pong()

    def pong(self) -> None:
        """A proof of life arrives at the server."""
        if not self.is_cut and self.node.is_alive:
            self.alive_at = self.node.loop.clock.now()
            self.hear()
            now_ms = self.node.clock.now()
            for local in list(self.local_sessions.values()):
                if self not in local.service.passive:
                    local.service.alive(now_ms, now_ms, self)

    # Presence

    def hear(self) -> None:
        """The newest proof of life counts for each of the client's sessions."""
        for session_log in self.present():
            session_log.heard.append((self.alive_at, self._served[session_log.session_id][0]))

    def begin(self, session_id: str, request_id: int, last_seq: int | None) -> None:
        """The client asks for a session, and for notices after any ``last_seq``."""
        asked = Join(request_id, len(self.messages), last_seq)
        self.joins.setdefault(session_id, []).append(asked)

    def joined(self, session_id: str) -> Join:
        """The last join or watch of a session that was not refused.

        A refused join promises no missed notices: the client asks again. What it may expect follows
        from the join before. If all were refused, it expects what arrives since the first.
        """
        joins = self.joins[session_id]
        for asked in reversed(joins):
            if asked.request_id not in self.refused:
                return asked
        return joins[0]._replace(last_seq=None)

    def come(self, session_log: SessionLog, at: int) -> None:
        """The client asks to join a session.

        The join may succeed at once or later.
        """
        if session_log.session_id not in self._served:
            self._served[session_log.session_id] = [at, NEVER, NEVER]
            session_log.served.append(self._served[session_log.session_id])
            self.last_served[session_log.session_id] = self._served[session_log.session_id]

    def turned_away(self, session_id: str, at: int) -> None:
        """A join fails. A client that took part before still does."""
        if session_id not in self.sessions:
            self.refuse(session_id, at)

    def refuse(self, session_id: str, at: int) -> None:
        """The client leaves a session, unless another join is under way."""
        if all(self.answers(asked.request_id) for asked in self.joins[session_id]):
            self.go(session_id, at, at)

    def go(self, session_id: str, proof_at: int, found_at: int) -> None:
        """The client leaves; its last proof of life was at an instant."""
        self.sessions.pop(session_id, None)
        served = self._served.pop(session_id, None)
        if served is not None:
            served[1:] = [max(served[0], proof_at), found_at]

    def go_all(self, proof_at: int, found_at: int) -> None:
        """The client leaves all sessions."""
        for session_id in list(self._served):
            self.go(session_id, proof_at, found_at)
        self.sessions.clear()

    # What the client saw

    def present(self) -> list[SessionLog]:
        """The sessions that it takes part in."""
        return [
            session_log
            for name, session_log in self.sessions.items()
            if name in self.local_sessions
        ]

    def awaited(self) -> set[str]:
        """Ids of the client's sessions, and of sessions it asks to join."""
        return {*self._served, *(session_log.session_id for session_log in self.present())}

    def answers(self, request_id: int) -> list[dict[str, Any]]:
        """The answers to a request."""
        return [message for message in self.messages if message.get("id") == request_id]
