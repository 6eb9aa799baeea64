"""Clients of a virtual cluster, what they were told, and a log of every session.

The session log says what an auditor cannot see in Redis: when a client asked for what, and when
it was last heard of. It is kept by true time, whatever any process takes the time for.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from protocol import limits
from protocol.metering.terms import Terms
from server.sessions.local_session import LocalSession
from tests.simulation.people import Person
from tests.simulation.processes import ServerHost

PING_MS = 10_000
NEVER = 2**53
ANSWER_MS = limits.DOUBT_WAIT_MS // 2
"""Who is there answers within this, and every process hears of that."""
FOUND_OUT_MS = 2 * PING_MS
"""A line that went dead is found out when a pong did not come in time."""


@dataclass
class SessionLog:
    """What happened to one session, as the world outside saw it."""

    person: Person
    terms: Terms
    session_id: str
    requests: list[tuple[int, str]] = field(default_factory=list)
    """Instants at which its clients asked for something, or joined: start, pause …"""
    proofs: list[tuple[int, int]] = field(default_factory=list)
    """When a socket was found to be gone, and the last proof of life known then."""
    heard: list[tuple[int, int]] = field(default_factory=list)
    """Every proof of life of a client that takes part, and when that client came."""
    reported_ms: int = 0
    """Time that its client has counted itself, at most."""
    disturbed: bool = False
    """An answer of Redis was lost, or late: then instants are not exact."""
    deaths: list[int] = field(default_factory=list)
    """When a process died that had a socket of it."""
    served: list[list[int]] = field(default_factory=list)
    """From when to when each client was there, as far as it proved; when that it was gone
    was found out, at the latest."""

    def took_back(self, then: int, at: int) -> bool:
        """Whether it is known at an instant that time which ran ``then`` is not counted: a client
        was gone by then, which was found out later, and no other was there."""
        is_lost = any(end < then <= found <= at for _, end, found in self.served)
        return is_lost and not any(
            begin <= then <= (end if found <= at else at) for begin, end, found in self.served
        )

    def is_doubted(self, then: int, at: int) -> bool:
        """Whether time that ran ``then`` may be a gap at an instant: nobody had proven it when a
        client came, and none of those who were there before has answered since."""
        for came in {begin for begin, _, _ in self.served if then <= begin <= at}:
            before = self.proven_before(came)
            if before < then and self.terms.gap == "skip" and not self.answered(came, at):
                return True
        return False

    def proven_before(self, came: int) -> int:
        """The last proof of life before a client came; its own, if there is none."""
        proofs = [begin for begin, _, _ in self.served] + [at for at, _ in self.heard]
        return max((at for at in proofs if at < came), default=came)

    def answered(self, came: int, until: int) -> bool:
        """Whether one of those who were there when a client came is heard of soon after."""
        until = min(until, came + ANSWER_MS)
        return any(begin < came <= at <= until for at, begin in self.heard)


def _payload(frame: bytes) -> dict[str, Any]:
    """The message in a server's text frame (RFC 6455 section 5.2: unmasked)."""
    length = frame[1]
    start = {126: 4, 127: 10}.get(length, 2)
    message: dict[str, Any] = json.loads(frame[start:])
    return message


class SimulatedClient:
    """A socket: answers pings until it is cut, and keeps what it was sent."""

    def __init__(self, node: ServerHost, name: str) -> None:
        self.node = node
        self.name = name
        self.messages: list[dict[str, Any]] = []
        self.of_session: dict[str, list[dict[str, Any]]] = {}
        """Those that name a session, by its id, in their order."""
        self.alive_at = node.loop.clock.now()
        """The last proof of life that reached the server, in true time."""
        self.is_cut = False
        """The line is dead: nothing arrives, and nobody was told."""
        self.is_mute = False
        """It reads everything, and answers no ping."""
        self.is_gone = False
        """It was found out, or closed: it takes part in nothing any more."""
        self.requests = 0
        self.local_sessions: dict[str, LocalSession] = {}
        self.sessions: dict[str, SessionLog] = {}
        """Those that it takes part in, as far as the client knows."""
        self._served: dict[str, list[int]] = {}
        self.watched: dict[str, LocalSession] = {}
        self.joined_at: dict[str, int] = {}
        """How many messages it had when it joined each session, at last."""
        self.last_seq: dict[str, int | None] = {}
        """The last notice that it said then to have heard."""
        self._is_pinged = False

    # Member

    def send(self, frame: bytes) -> None:
        """The server says something."""
        if not self.is_cut:
            message = _payload(frame)
            message["received_at"] = self.node.loop.clock.now()
            self.messages.append(message)
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
        """Another socket said good-bye; this one stays."""

    def left(self, local: LocalSession) -> None:
        """A session has ended, or is served no more."""
        session_id = local.meter.session.identity.session_id
        self.local_sessions.pop(session_id, None)
        self.watched.pop(session_id, None)

    # The line

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
        """Answers a ping, if it does so."""
        if not self.is_mute:
            self.pong()

    def pong(self) -> None:
        """A proof of life comes in."""
        if not self.is_cut and self.node.is_alive:
            self.alive_at = self.node.loop.clock.now()
            self.hear()
            now_ms = self.node.clock.now()
            for local in list(self.local_sessions.values()):
                if self not in local.service.passive:
                    local.service.alive(now_ms, now_ms, self)

    # How long it was there

    def hear(self) -> None:
        """The proof of life that came in last is one for each session that it takes part in."""
        for session_log in self.present():
            session_log.heard.append((self.alive_at, self._served[session_log.session_id][0]))

    def begin(self, session_id: str, last_seq: int | None) -> None:
        """It asks to be told of a session, and of what it has missed if it says so."""
        self.joined_at[session_id] = len(self.messages)
        self.last_seq[session_id] = last_seq

    def come(self, session_log: SessionLog, at: int) -> None:
        """It asks to take part in a session, and may be let in at once or later."""
        if session_log.session_id not in self._served:
            self._served[session_log.session_id] = [at, NEVER, NEVER]
            session_log.served.append(self._served[session_log.session_id])

    def turned_away(self, session_id: str, at: int) -> None:
        """It was not let in, unless it was there before."""
        if session_id not in self.sessions:
            self.go(session_id, at, at)

    def go(self, session_id: str, proof_at: int, found_at: int) -> None:
        """It takes no part any more; its last proof of life was at an instant."""
        self.sessions.pop(session_id, None)
        served = self._served.pop(session_id, None)
        if served is not None:
            served[1:] = [max(served[0], proof_at), found_at]

    def go_all(self, proof_at: int, found_at: int) -> None:
        """It takes part in nothing any more."""
        for session_id in list(self._served):
            self.go(session_id, proof_at, found_at)
        self.sessions.clear()

    # What it saw

    def present(self) -> list[SessionLog]:
        """The sessions that it takes part in."""
        return [
            session_log
            for name, session_log in self.sessions.items()
            if name in self.local_sessions
        ]

    def awaited(self) -> set[str]:
        """The sessions that it takes part in, or has asked to, by their ids."""
        return {*self._served, *(session_log.session_id for session_log in self.present())}

    def answers(self, request_id: int) -> list[dict[str, Any]]:
        """What a request was answered with."""
        return [message for message in self.messages if message.get("id") == request_id]
