"""The session registry: starts, joins, watches and leaves sessions.

Any number of processes may serve a session: each on which the session has a socket. Joining reads
the session from Redis and makes a meter for it here. From then on this process knows by itself what
the session does, and hears of other processes' steps on the account's channel.
"""

import asyncio
import contextlib
import functools
from typing import Any

import msgspec
import structlog
from redis.exceptions import RedisError

from protocol import limits
from protocol.metering.notices import sequence_number
from protocol.metering.session import Identity, SessionState, session_key
from protocol.metering.states import Event, Phase
from protocol.metering.steps import StartBasis
from protocol.wire.codec import encode, error_message
from protocol.wire.errors import ErrorCode, PeerError, RefusedError, ServiceError
from server import limits as server_limits
from server.access.principals import Principal
from server.counters.loading import Loader
from server.runtime.clock import Clock
from server.runtime.metrics import Metrics
from server.runtime.timers import Timers
from server.sessions.channel_events import ChannelEvents
from server.sessions.local_session import LocalSession
from server.sessions.pending_requests import PendingRequest, Subscriber
from server.sessions.session_table import SessionTable, new_session
from server.transport.frames import text_frame
from storage.redis.live import FoundSession, Live, LiveError

log = structlog.get_logger()


class SessionRegistry(SessionTable):
    """The sessions of a process."""

    def __init__(
        self,
        live: Live,
        loader: Loader,
        clock: Clock,
        timers: Timers,
        metrics: Metrics,
        uncovered_ms: int = limits.UNCOVERED_MS_DEFAULT,
    ) -> None:
        super().__init__(live, loader, clock, timers, metrics, uncovered_ms)
        self.channel_events = ChannelEvents(self)
        self.tenants.listeners.append(self.channel_events.limits_changed)

    # --- Joining and leaving ---------------------------------------------------------

    async def join(
        self,
        subscriber: Subscriber,
        tenant: str,
        session_id: str,
        user_id: str,
        pending: PendingRequest,
        tick_ms: int | None = None,
        last_seq: int | None = None,
        since: int | None = None,
    ) -> LocalSession | None:
        """Joins a started session; returns None if the id is unknown.

        Answers the request with the snapshot, which contains the notices after ``last_seq`` that
        the client missed. ``since``: an outside clock says since when the user has been there.
        Raises ``forbidden`` for another user's session, ``session_ended``, and
        ``unavailable``.
        """
        asked_at = self.clock.now()
        async with self.lock(tenant, session_id):
            await self._started(tenant, session_id)
            try:
                found = await self.attached(tenant, session_id, user_id=user_id, asked_at=asked_at)
            except BaseException:
                # Redis may have attached this process although the reply was lost.
                self.reconcile_due = True
                raise
            if found is None:
                return None
            _check_owner(found.session.identity, user_id)
            if found.session.standing.phase is Phase.ENDED:
                return await self._show_ended(found, pending, last_seq)
            try:
                local = await self._found(found)
                joined = subscriber in local.subscribers and subscriber not in local.service.passive
                self._check_subscribers(local, subscriber)
            except BaseException:
                await self._depart(found.session)
                raise
            if local.meter.session.standing.phase is Phase.ENDED:
                local.drain()
                return self._show_end(local, pending, _missed(_kept(found, local), last_seq))
            if not joined:
                has_others = bool(found.nodes - {self.node})
                now_ms = self.clock.now()
                if local.meter.attach(now_ms, asked_at, has_others=has_others, since=since):
                    local.service.ask_the_others(asked_at, has_others=has_others)
                # Messages of this moment go to the others; this socket gets a snapshot instead.
                local.drain()
                self.counts.rejoined += 1
            self._subscribe(local, subscriber, tick_ms)
            if self.node in found.joining:
                confirm = functools.partial(self.live.confirm_join, tenant, session_id)
                self.run(self.insist(local, confirm))
            missed = _missed(_kept(found, local), last_seq)
            pending = msgspec.structs.replace(pending, missed=missed)
            if joined:
                local.show(pending)
            else:
                self._answer_join(local, pending)
            return local

    async def attached(self, tenant: str, session_id: str, **how: Any) -> FoundSession | None:
        """The session in Redis, restored first if it ended here.

        Redis may have come back with an older copy of a session that ended here, or without it. A
        socket that joined the older copy would go on with it, so the end is put back first.
        """
        found = await self.live.attach(tenant, session_id, **how)
        kept = self.unflushed.end_of(session_key(tenant, session_id))
        if kept is None or kept.session is None or self.pipeline.restore is None:
            return found
        if found is not None and found.session.standing.phase is Phase.ENDED:
            return found
        try:
            await self.pipeline.restore(kept.session)
        except BaseException as error:
            if found is not None:
                await self._depart(found.session)
            if isinstance(error, RedisError):
                raise ServiceError("the session store accepts no writes now") from error
            raise
        return await self.live.attach(tenant, session_id, **how)

    async def _started(self, tenant: str, session_id: str) -> None:
        """Waits while another socket of this process is starting the session."""
        local = self.local_sessions.get(session_key(tenant, session_id))
        if local is not None and local.meter.session.standing.version == 0:
            try:
                async with asyncio.timeout(2 * limits.REDIS_TIMEOUT_MS / 1000):
                    await local.settled.wait()
            except TimeoutError:
                raise ServiceError("the session is being started") from None

    async def _show_ended(
        self, found: FoundSession, pending: PendingRequest, last_seq: int | None
    ) -> LocalSession:
        """Shows an ended session to a client that missed the end.

        A stop is never lost to a dropped connection: a client that comes back gets the ended
        session, with the notice of the stop among the missed ones. A client that missed nothing
        gets the error ``session_ended``.
        """
        missed = _missed(found.notices, last_seq)
        if not missed:
            _check_live(found.session)
        return self._show_end(await self.local_session_of(found.session), pending, missed)

    def _show_end(
        self, local: LocalSession, pending: PendingRequest, missed: tuple[bytes, ...]
    ) -> LocalSession:
        if missed:
            local.show(msgspec.structs.replace(pending, missed=missed))
        self.leave(local)
        if not missed:
            _check_live(local.meter.session)
        return local

    async def missed(self, local: LocalSession, last_seq: int) -> tuple[bytes, ...]:
        """The notices of a session after ``last_seq``."""
        identity = local.meter.session.identity
        found = await self.live.attach(identity.tenant, identity.session_id, read_only=True)
        return _missed(_kept(found, local), last_seq)

    async def _found(self, found: FoundSession) -> LocalSession:
        """The local session of a session that this process is attached to."""
        identity = found.session.identity
        local = self.local_sessions.get(found.session.key)
        if local is None:
            if self.before_joining is not None:
                await self.before_joining(found)
            local = await self.local_session_of(found.session)
            local.meter.notices.remember(found.notices)
            if found.nodes - {self.node}:
                # This process has not heard the steps that others made before it subscribed.
                name = (identity.tenant, identity.session_id)
                with local.join_pending():
                    again = await self.live.attach(*name, read_only=True)
                found = again or found
        local.meter.read(found.session, found.notices, self.clock.now())
        local.service.farewell(found.farewell_at)
        return local

    async def _depart(self, session: SessionState) -> None:
        """Detaches this process from a session whose socket was not added."""
        local = self.local_sessions.get(session.key)
        if local is None or not local.meter.sockets:
            identity, is_off = session.identity, False
            with contextlib.suppress(LiveError):
                is_off = await self.live.retreat(identity.tenant, identity.session_id)
            if not is_off:
                # Either this process was the last one attached, or Redis did not take the command.
                # Redis then still counts this process as a socket of the session. As soon as Redis
                # answers again, ``Orphans.reconcile`` looks after the session.
                self.reconcile_due = True
        if local is not None:
            self.release(local)

    def _answer_join(self, local: LocalSession, pending: PendingRequest) -> None:
        """Answers a join at once, or after the step that it needs."""
        if not local.meter.entitle(pending):
            local.show(pending)
        local.drain()

    async def start(
        self,
        subscriber: Subscriber,
        identity: Identity,
        pending: PendingRequest,
        tick_ms: int | None = None,
        basis: StartBasis | None = None,
        since: int | None = None,
    ) -> LocalSession | None:
        """Starts a session that ``join`` did not find. Answers the request.

        ``basis`` is the data from which the identity was decided. If that data has changed, the
        start fails, and may be tried again. ``since`` as in ``join``.

        Returns None if another request on this process has begun to start the session: then join
        it.
        """
        key = session_key(identity.tenant, identity.session_id)
        async with self.lock(identity.tenant, identity.session_id):
            if key in self.local_sessions:
                return None
            session = new_session(identity, self.clock.now())
            local = await self.local_session_of(session)
            try:
                self.check_room(local)
                if identity.free_key:
                    with local.join_pending():
                        local.meter.free_left_ms = await self.free_left(identity, local.free_day())
                self._subscribe(local, subscriber, tick_ms)
            except BaseException:
                self.leave(local)
                raise
            self.counts.started += 1
            local.meter.start(self.clock.now(), pending, basis, since)
            local.drain()
            return local

    async def watch(
        self,
        subscriber: Subscriber,
        principal: Principal,
        session_id: str,
        pending: PendingRequest,
        tenant: str | None = None,
    ) -> LocalSession | None:
        """Adds an observer: a socket that does not keep the session alive.

        ``tenant`` is the principal's own if left out. Returns None if the id is unknown. Raises
        ``forbidden`` for a session that the principal may not watch, and ``session_ended``.
        """
        tenant = tenant or principal.tenant
        assert tenant is not None
        async with self.lock(tenant, session_id):
            found = await self.attached(tenant, session_id, read_only=True, watch=True)
            if found is None:
                return None
            _check_observer(principal, found.session.identity)
            _check_live(found.session)
            is_new = found.session.key not in self.local_sessions
            local = await self.local_session_of(found.session)
            if is_new:
                # This process has not heard the steps that were made before it subscribed.
                try:
                    with local.join_pending():
                        again = await self.live.attach(tenant, session_id, read_only=True)
                    found = again or found
                    _check_live(found.session)
                except BaseException:
                    self.release(local)
                    raise
            local.meter.read(found.session, found.notices, self.clock.now())
            with local.join_pending():
                local.drain()  # the others get messages of now, this one a snapshot
            _check_live(local.meter.session)  # it may have ended since it was read
            if subscriber not in local.subscribers:
                try:
                    self._observe(local, subscriber, principal)
                except BaseException:
                    self.release(local)
                    raise
            local.show(pending)
            return local

    def _check_subscribers(self, local: LocalSession, subscriber: Subscriber) -> None:
        """Raises ``rate_limited`` if too many sockets keep a session alive.

        Observers and requests without a socket do not count.
        """
        taken = [one for one in local.subscribers if one not in local.service.passive]
        if len(taken) >= server_limits.SOCKETS_PER_SESSION_MAX and subscriber not in taken:
            raise PeerError(ErrorCode.RATE_LIMITED, "too many sockets have this session open")

    def _observe(self, local: LocalSession, subscriber: Subscriber, principal: Principal) -> None:
        """Adds an observer.

        If all places are taken, the session's own user takes the place of the oldest observer of
        another user. Any other observer is refused.
        """
        identity = local.meter.session.identity
        is_own = (principal.tenant, principal.user_id) == (identity.tenant, identity.user_id)
        if len(local.service.observers) >= server_limits.OBSERVERS_PER_SESSION_MAX:
            others = [observer for observer, own in local.service.observers.items() if not own]
            if not is_own or not others:
                raise PeerError(ErrorCode.RATE_LIMITED, "too many sockets watch this session")
            self._evict(local, others[0])
        local.service.observe(subscriber, is_own=is_own)

    def _evict(self, local: LocalSession, observer: Subscriber) -> None:
        """Removes an observer, and sends it an error that says so."""
        session_id = local.meter.session.identity.session_id
        error = PeerError(
            ErrorCode.RATE_LIMITED,
            f"you no longer watch {session_id}: the session's own user needed the place",
        )
        self.metrics.errors.labels(error.code.value).inc()
        local.service.remove(observer)
        observer.left(local)
        observer.send(text_frame(encode(error_message(error))))

    def _subscribe(self, local: LocalSession, subscriber: Subscriber, tick_ms: int | None) -> None:
        self._check_subscribers(local, subscriber)
        local.service.add(
            subscriber, tick_ms or local.meter.session.identity.terms.tick_ms, passive=False
        )

    def unsubscribe(
        self, local: LocalSession, subscriber: Subscriber, alive_at: int, *, farewell: bool = False
    ) -> None:
        """Removes a socket that leaves a session or is gone.

        ``alive_at`` is the socket's last proof of life. ``farewell``: the user took leave, by a
        clean close or `leave`. A farewell ends proofs of life in advance (of heartbeats over HTTP)
        on every process.
        """
        if subscriber not in local.subscribers:
            return
        passive = subscriber in local.service.passive
        if not passive:
            local.service.confirm(subscriber, alive_at, self.clock.now())
        local.service.remove(subscriber)
        if passive:
            self.release(local)
            return
        if farewell:
            local.service.farewell(alive_at)
            if local.meter.sockets > 1:
                # Other sockets stay here, so no step tells it; see `leaving` in commit.lua.
                self.run(self._tell_farewell(local, alive_at))
        local.meter.detach(alive_at, self.clock.now(), farewell=farewell)
        if not local.meter.sockets:
            local.service.count_unproven()
        local.drain()

    async def _tell_farewell(self, local: LocalSession, at_ms: int) -> None:
        identity = local.meter.session.identity
        if await self.insist(local, lambda: self.live.farewell(identity, at_ms)):
            local.meter.farewell_told(at_ms)

    def request(
        self, local: LocalSession, event: Event, pending: PendingRequest, reason: str = "client"
    ) -> None:
        """Pauses, resumes or stops a session, then answers the request.

        Raises ``rate_limited`` if too many requests wait for this session, and ``forbidden`` for a
        client that would pause an outside clock.
        """
        if reason == "client" and local.meter.session.identity.terms.is_provided:
            is_paused = local.meter.session.standing.phase is Phase.PAUSED
            if event is Event.PAUSE or (event is Event.RESUME and is_paused):
                raise PeerError(ErrorCode.FORBIDDEN, "an outside clock decides when time runs")
        if not local.meter.request(event, self.clock.now(), pending, reason):
            raise PeerError(ErrorCode.RATE_LIMITED, "too many requests wait for this session")
        local.drain()

    async def open(
        self, subscriber: Subscriber, tenant: str, session_id: str
    ) -> LocalSession | None:
        """The local session for a request that comes without a socket.

        The request hears of the session's end until it leaves. It does not count as a socket, so a
        session can be stopped however many sockets it has. Returns None if the id is unknown;
        raises ``session_ended``.
        """
        async with self.lock(tenant, session_id):
            found = await self.attached(tenant, session_id, read_only=True, watch=True)
            if found is None:
                return None
            _check_live(found.session)
            local = await self.local_session_of(found.session)
            local.service.add(subscriber, limits.TICK_MS_MAX, passive=True)
            local.meter.read(found.session, found.notices, self.clock.now())
            local.drain()
            return local


def _kept(found: FoundSession | None, local: LocalSession) -> tuple[bytes, ...]:
    """All known notices of a session, in order.

    They are the notices that ``found`` contains, those that this process has heard of since, and
    its own that are not recorded yet.
    """
    notices, read = local.meter.notices, found.notices if found is not None else ()
    by_number = {
        sequence_number(notice): notice for notice in (*notices.unrecorded, *read, *notices.recent)
    }
    return tuple(by_number[number] for number in sorted(by_number))


def _missed(kept: tuple[bytes, ...], last_seq: int | None) -> tuple[bytes, ...]:
    """The notices after ``last_seq``; none if ``last_seq`` is None."""
    if last_seq is None:
        return ()
    return tuple(notice for notice in kept if sequence_number(notice) > last_seq)


def _check_owner(identity: Identity, user_id: str) -> None:
    if identity.user_id != user_id:
        raise PeerError(ErrorCode.FORBIDDEN, "the session belongs to another user")


def _check_observer(principal: Principal, identity: Identity) -> None:
    if not principal.may_watch(identity.user_id, identity.session_id):
        raise PeerError(ErrorCode.FORBIDDEN, "you may not watch this session")


def _check_live(session: SessionState) -> None:
    if session.standing.phase is Phase.ENDED:
        raise RefusedError(ErrorCode.SESSION_ENDED, "the session has ended")
