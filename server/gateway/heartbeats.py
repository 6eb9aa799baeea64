"""The heartbeat path: sessions of clients that cannot keep a WebSocket open.

Each heartbeat over HTTP is a proof of life for 75 s. To the session, the client is a socket like
any other, so a mix of heartbeats and real sockets is counted once. If the next heartbeat does not
arrive, the session loses this socket at the end of the proof.

A clean close, `leave` or `stop` of the same user ends the proof at once, on any process. So a user
who takes leave over a socket does not pay for the time that an earlier heartbeat has promised.
"""

import asyncio
import itertools
from collections.abc import Iterator

from protocol.metering.session import session_key
from protocol.wire import messages
from protocol.wire.errors import ErrorCode, PeerError, ProtocolError, ServiceError
from server import limits as server_limits
from server.access.principals import Principal
from server.gateway.session_start import join_or_start
from server.process import Process
from server.runtime.isolation import isolated
from server.runtime.timers import Timer
from server.sessions.local_session import LocalSession
from server.sessions.pending_requests import PendingRequest

PresenceKey = tuple[str, str]
"""Tenant and session."""


class HttpPresence:
    """A client's presence at one session, from one heartbeat to the next.

    It is a subscriber of its local session, but drops all frames, because the client has no socket.
    """

    def __init__(self, presences: "Heartbeats", key: PresenceKey) -> None:
        self.key = key
        self.local: LocalSession | None = None
        self.heartbeat_at = presences.process.clock.now()
        """When the last heartbeat came in."""
        self.alive_until = 0
        self._presences = presences
        self._timer: Timer | None = None

    def send(self, frame: bytes) -> None:
        """Drops the frame: the client reads the answer to its next heartbeat."""

    def send_tick(self, frame: bytes) -> bool:
        """Drops the tick, and reports it as sent."""
        return True

    def probe(self) -> None:
        """Does nothing: without a socket, the proof lasts until ``alive_until``."""

    def farewell(self, at_ms: int) -> None:
        """Ends the proof of earlier heartbeats, because the user took leave.

        A first heartbeat that waits for its answer compares itself when the answer is there.
        """
        if self.local is not None and self.heartbeat_at <= at_ms:
            self._presences.lose(self, at_ms)

    def left(self, local: LocalSession) -> None:
        """Forgets the presence, because the session ended."""
        self._presences.forget(self)

    def extend(self, process: Process) -> None:
        """Takes a heartbeat, and extends the proof of life."""
        now_ms = process.clock.now()
        self.heartbeat_at = now_ms
        self.alive_until = now_ms + server_limits.HEARTBEAT_PROOF_MS
        if self._timer is not None:
            self._timer.cancel()
        self._timer = process.timers.deadline(self.alive_until, self._lost, self.key[0])
        if self.local is not None:
            self.local.service.promise(self.alive_until, now_ms)

    def stop(self) -> None:
        """Stops waiting for the next heartbeat."""
        if self._timer is not None:
            self._timer.cancel()

    def _lost(self, _: int) -> None:
        self._presences.lose(self)


class Heartbeats:
    """The clients of a process that have no socket."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._presences: dict[PresenceKey, HttpPresence] = {}

    async def beat(
        self,
        principal: Principal,
        session_id: str,
        start: messages.Start | None,
        last_seq: int | None = None,
    ) -> messages.Session:
        """Takes a heartbeat, and returns the snapshot.

        The first heartbeat joins the session; ``start`` says how to start a session that does not
        exist. With ``last_seq``, the later notices are in ``missed``. Raises ``unknown_session``,
        ``session_ended``, ``forbidden``, ``limit_reached`` and ``unavailable``.
        """
        assert principal.tenant is not None
        if not principal.may_start(session_id):
            raise PeerError(ErrorCode.FORBIDDEN, "the token may not start this session")
        key = (principal.tenant, session_id)
        presence = self._presences.get(key)
        if presence is None or presence.local is None:
            return await self._begin(principal, key, start)
        if presence.local.meter.session.identity.user_id != principal.user_id:
            raise PeerError(ErrorCode.FORBIDDEN, "the session belongs to another user")
        presence.extend(self.process)
        if last_seq is None:
            return presence.local.snapshot()
        kept = await self.process.registry.missed(presence.local, last_seq)
        return presence.local.snapshot(missed=kept)

    async def _begin(
        self, principal: Principal, key: PresenceKey, start: messages.Start | None
    ) -> messages.Session:
        if len(self._presences) >= server_limits.HEARTBEAT_SESSIONS_MAX:
            raise ServiceError("too many sessions live by heartbeats on this process")
        presence = HttpPresence(self, key)
        here = self.process.registry.local_sessions.get(session_key(*key))
        known_at = here.service.farewell_at if here is not None else 0
        answered: asyncio.Future[messages.Session] = asyncio.get_running_loop().create_future()

        def shown(message: messages.ServerMessage | bytes) -> None:
            if isinstance(message, messages.Session) and not answered.done():
                answered.set_result(message)

        def failed(error: ProtocolError) -> None:
            if not answered.done():
                answered.set_exception(error)

        pending = PendingRequest(None, None, failed=failed, shown=shown)
        local = await join_or_start(self.process, principal, presence, key[1], start, pending)
        try:
            async with asyncio.timeout(server_limits.REQUEST_TIMEOUT_MS / 1000):
                session = await answered
        except BaseException as error:
            # The client gets an error, so its presence must not keep alive a session that started
            # nevertheless.
            if self.process.registry.local_sessions.get(local.key) is local:
                self.process.registry.unsubscribe(local, presence, self.process.clock.now())
            if isinstance(error, TimeoutError):
                raise ServiceError("the session store does not answer") from None
            raise
        farewell_at = local.service.farewell_at
        if known_at < farewell_at >= presence.heartbeat_at:
            # The user has taken leave since this heartbeat came in, here or on another process.
            self.process.registry.unsubscribe(local, presence, farewell_at)
        elif presence in local.subscribers:
            presence.local = local
            before = self._presences.get(key)
            if before is not None:
                self.lose(before)
            self._presences[key] = presence
            presence.extend(self.process)
        return session

    def lose(self, presence: HttpPresence, at_ms: int | None = None) -> None:
        """Removes a presence whose next heartbeat did not arrive.

        The session loses this socket when its proof ended; or at ``at_ms``, when the user took
        leave.
        """
        self.forget(presence)
        if presence.local is not None:
            at_ms = self.process.clock.now() if at_ms is None else at_ms
            alive_at = min(at_ms, presence.alive_until)
            presence.local.meter.withdraw(alive_at)
            self.process.registry.unsubscribe(presence.local, presence, alive_at)

    def forget(self, presence: HttpPresence) -> None:
        """Stops waiting for heartbeats of a presence."""
        presence.stop()
        if self._presences.get(presence.key) is presence:
            del self._presences[presence.key]

    def drain(self) -> None:
        """Removes all presences, because the process stops.

        Other processes take the next heartbeats.
        """
        for tenant, presences in itertools.groupby(list(self._presences.values()), _tenant_of):
            self.process.registry.turns.run(tenant, self._lose_all(list(presences)))

    def _lose_all(self, presences: list[HttpPresence]) -> Iterator[None]:
        for presence in presences:
            isolated("drain", self.lose, presence)
            yield


def _tenant_of(presence: HttpPresence) -> str:
    return presence.key[0]
