"""The sessions of this process: who starts, joins, watches and leaves them.

A session is served wherever it has a socket, on any number of processes. Joining reads
it from Redis and makes a meter for it here; from then on this process needs nobody else to know
what the session does, and hears of the others' steps on the account's channel.
"""

import asyncio
import contextlib
from typing import Any

import msgspec
import structlog
from redis.exceptions import RedisError

from protocol import limits
from protocol.metering.notices import sequence_number
from protocol.metering.session import Grant, Identity, SessionState, session_key
from protocol.metering.states import Event, Phase
from protocol.metering.steps import StartBasis
from protocol.metering.transitions import unstarted
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
from server.sessions.session_table import SessionTable
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
        self.accounts.listener = self.channel_events.received
        self.tenants.listener = self.channel_events.limits_changed

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
    ) -> LocalSession | None:
        """Joins a session where it lives; None when there is none of that id.

        Answers the request with the snapshot, in which are the notices after ``last_seq``
        that were missed. Raises ``forbidden`` for another user's,
        ``session_ended``, and ``unavailable``.
        """
        asked_at = self.clock.now()
        async with self.lock(tenant, session_id):
            await self._started(tenant, session_id)
            try:
                found = await self._attached(tenant, session_id, user_id=user_id)
            except BaseException:
                self.reconcile_due = True  # it may be done though nobody has heard the answer
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
                if local.meter.attach(self.clock.now(), asked_at, has_others=has_others):
                    local.service.ask_the_others(asked_at, has_others=has_others)
                local.drain()  # what is said now the others hear, and this one misses
            self._subscribe(local, subscriber, tick_ms)
            missed = _missed(_kept(found, local), last_seq)
            pending = msgspec.structs.replace(pending, missed=missed)
            if joined:
                local.show(pending)
            else:
                self._answer_join(local, pending)
            return local

    async def _attached(self, tenant: str, session_id: str, **how: Any) -> FoundSession | None:
        """The session as Redis has it. One that ended here is put back first where Redis came
        back with an older copy of it, or none: who joined that would go on with it."""
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
                raise ServiceError("the session store takes nothing now") from error
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
        """A stop is never lost to a dropped connection: who comes back and has not heard of
        it is shown the ended session, with the notice among the missed ones. Anybody else
        is told ``session_ended``."""
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
        """The local session of a session that this process is attached to, as it was found."""
        identity = found.session.identity
        local = self.local_sessions.get(found.session.key)
        if local is None:
            if self.before_joining is not None:
                await self.before_joining(found)
            local = await self.local_session_of(found.session)
            local.meter.notices.remember(found.notices)
            if found.nodes - {self.node}:
                # Whatever others did before this process listened, it has not heard.
                name = (identity.tenant, identity.session_id)
                with local.join_pending():
                    again = await self.live.attach(*name, read_only=True)
                found = again or found
        local.meter.read(found.session, found.notices, self.clock.now())
        return local

    async def _depart(self, session: SessionState) -> None:
        """This process attached to a session and could not add its socket."""
        local = self.local_sessions.get(session.key)
        if local is None or not local.meter.sockets:
            identity, is_off = session.identity, False
            with contextlib.suppress(LiveError):
                is_off = await self.live.retreat(identity.tenant, identity.session_id)
            if not is_off:
                # The last one there, or Redis did not take it: as soon as that answers again,
                # this process looks after the session, which would have it as a socket till then.
                self.reconcile_due = True
        if local is not None:
            self.release(local)

    def _answer_join(self, local: LocalSession, pending: PendingRequest) -> None:
        """A join is answered at once, or when the step that it makes is answered."""
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
    ) -> LocalSession | None:
        """Starts a session that ``join`` did not find. Answers the request.

        ``basis`` is what the identity was decided from; the start fails, retryable, when that
        is otherwise by now.

        None when somebody else on this process has begun to start it: then it is to be joined.
        """
        key = session_key(identity.tenant, identity.session_id)
        async with self.lock(identity.tenant, identity.session_id):
            if key in self.local_sessions:
                return None
            now_ms = self.clock.now()
            own_ms = 0 if identity.free_key else identity.terms.free_ms
            session = SessionState(identity, unstarted(Phase.PAUSED, now_ms, own_ms), Grant())
            local = await self.local_session_of(session)
            try:
                self.check_room(local)
                if identity.free_key:
                    with local.join_pending():
                        local.meter.free_left_ms = await self._free_left(identity, local)
                self._subscribe(local, subscriber, tick_ms)
            except BaseException:
                self.leave(local)
                raise
            local.meter.start(self.clock.now(), pending, basis)
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
        """Pushes a session to a socket that does not keep it alive; ``tenant`` is the
        principal's own when left out.

        None when there is none of that id; raises ``forbidden`` for one that the
        principal may not watch, and ``session_ended``.
        """
        tenant = tenant or principal.tenant
        assert tenant is not None
        async with self.lock(tenant, session_id):
            found = await self._attached(tenant, session_id, read_only=True, watch=True)
            if found is None:
                return None
            _check_observer(principal, found.session.identity)
            _check_live(found.session)
            is_new = found.session.key not in self.local_sessions
            local = await self.local_session_of(found.session)
            if is_new:
                # Whatever was done before this process listened, it has not heard.
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
                local.drain()  # what was said by now the others hear, and this one is shown
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
        """Raises ``rate_limited`` where too many sockets keep a session alive. Observers and
        requests take none of these places."""
        taken = [one for one in local.subscribers if one not in local.service.passive]
        if len(taken) >= server_limits.SOCKETS_PER_SESSION_MAX and subscriber not in taken:
            raise PeerError(ErrorCode.RATE_LIMITED, "too many sockets have this session open")

    def _observe(self, local: LocalSession, subscriber: Subscriber, principal: Principal) -> None:
        """Adds an observer. Where there is no place, the session's own user takes that of the
        oldest observer who is somebody else; anybody else is refused."""
        identity = local.meter.session.identity
        is_own = (principal.tenant, principal.user_id) == (identity.tenant, identity.user_id)
        if len(local.service.observers) >= server_limits.OBSERVERS_PER_SESSION_MAX:
            others = [observer for observer, own in local.service.observers.items() if not own]
            if not is_own or not others:
                raise PeerError(ErrorCode.RATE_LIMITED, "too many sockets watch this session")
            self._evict(local, others[0])
        local.service.observe(subscriber, is_own=is_own)

    def _evict(self, local: LocalSession, observer: Subscriber) -> None:
        """Takes an observer's place, and says so."""
        session_id = local.meter.session.identity.session_id
        error = PeerError(
            ErrorCode.RATE_LIMITED,
            f"{session_id} is watched no longer: its own user needed the place",
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
        """A socket leaves a session, or is gone; ``alive_at`` is its last proof of life.

        ``farewell``: its user took leave, by a clean close or `leave`. That ends proofs of life
        in advance, of heartbeats over HTTP, on whichever process they are.
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
                # No step is made, for others stay here; see `leaving` in commit.lua.
                self.run(self._tell_farewell(local, alive_at))
        local.meter.detach(alive_at, self.clock.now(), farewell=farewell)
        if not local.meter.sockets:
            local.service.count_unproven()
        local.drain()

    async def _tell_farewell(self, local: LocalSession, at_ms: int) -> None:
        identity = local.meter.session.identity
        message = {"farewell": identity.session_id, "at": at_ms}
        await self.live.tell(identity.tenant, identity.account_id, message)
        local.meter.farewell_told(at_ms)

    def request(
        self, local: LocalSession, event: Event, pending: PendingRequest, reason: str = "client"
    ) -> None:
        """Pauses, resumes or stops a session; the request is answered when it is done."""
        if not local.meter.request(event, self.clock.now(), pending, reason):
            raise PeerError(ErrorCode.RATE_LIMITED, "too many requests wait for this session")
        local.drain()

    async def open(
        self, subscriber: Subscriber, tenant: str, session_id: str
    ) -> LocalSession | None:
        """The local session for a request that comes without a socket: the request
        hears of the session's end, until it leaves. It counts as no socket: a session can be
        stopped however many sockets it has."""
        async with self.lock(tenant, session_id):
            found = await self._attached(tenant, session_id, read_only=True, watch=True)
            if found is None:
                return None
            _check_live(found.session)
            local = await self.local_session_of(found.session)
            local.service.add(subscriber, limits.TICK_MS_MAX, passive=True)
            local.meter.read(found.session, found.notices, self.clock.now())
            local.drain()
            return local


def _kept(found: FoundSession | None, local: LocalSession) -> tuple[bytes, ...]:
    """The notices of a session: what was recorded when it was read, what this process has heard
    of since, and what it has said and not recorded yet."""
    notices, read = local.meter.notices, found.notices if found is not None else ()
    by_number = {
        sequence_number(notice): notice for notice in (*notices.unrecorded, *read, *notices.recent)
    }
    return tuple(by_number[number] for number in sorted(by_number))


def _missed(kept: tuple[bytes, ...], last_seq: int | None) -> tuple[bytes, ...]:
    """The kept notices that a client has not seen; none where it does not ask for them."""
    if last_seq is None:
        return ()
    return tuple(notice for notice in kept if sequence_number(notice) > last_seq)


def _check_owner(identity: Identity, user_id: str) -> None:
    if identity.user_id != user_id:
        raise PeerError(ErrorCode.FORBIDDEN, "the session is another user's")


def _check_observer(principal: Principal, identity: Identity) -> None:
    if not principal.may_watch(identity.user_id, identity.session_id):
        raise PeerError(ErrorCode.FORBIDDEN, "the session is not yours to watch")


def _check_live(session: SessionState) -> None:
    if session.standing.phase is Phase.ENDED:
        raise RefusedError(ErrorCode.SESSION_ENDED, "the session has ended")
