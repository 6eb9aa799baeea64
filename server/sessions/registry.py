"""The sessions of this process: who starts, joins, watches and leaves them.

A session is served wherever it has a socket, on any number of processes. Joining reads
it from Redis and seats a meter here; from then on this process needs nobody else to know
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
from protocol.metering.session import Grant, Identity, Session, session_key
from protocol.metering.states import Event, Phase
from protocol.metering.steps import Basis
from protocol.metering.transitions import unstarted
from protocol.wire.codec import encode, error_message
from protocol.wire.errors import ErrorCode, PeerError, RefusedError, ServiceError
from server import limits as server_limits
from server.access.principals import Principal
from server.counters.loading import Loader
from server.runtime.clock import Clock
from server.runtime.metrics import Metrics
from server.runtime.timers import Timers
from server.sessions.local_session import Seat
from server.sessions.news import News
from server.sessions.pending_requests import Member, Ticket
from server.sessions.seating import Seating
from server.transport.frames import text_frame
from storage.redis.live import Found, Live, LiveError

log = structlog.get_logger()


class Hub(Seating):
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
        self.news = News(self)
        self.accounts.listener = self.news.told
        self.tenants.listener = self.news.limits_changed

    # --- Joining and leaving ---------------------------------------------------------

    async def join(
        self,
        member: Member,
        tenant: str,
        session_id: str,
        user_id: str,
        ticket: Ticket,
        tick_ms: int | None = None,
        last_seq: int | None = None,
    ) -> Seat | None:
        """Joins a session where it lives; None when there is none of that id.

        Answers the ticket with the snapshot, in which are the notices after ``last_seq``
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
                return await self._show_ended(found, ticket, last_seq)
            try:
                seat = await self._found(found)
                joined = member in seat.members and member not in seat.service.watchers
                self._check_seats(seat, member)
            except BaseException:
                await self._depart(found.session)
                raise
            if seat.meter.session.standing.phase is Phase.ENDED:
                seat.drain()
                return self._show_end(seat, ticket, _missed(_kept(found, seat), last_seq))
            if not joined:
                has_others = bool(found.nodes - {self.node})
                if seat.meter.attach(self.clock.now(), asked_at, has_others=has_others):
                    seat.service.ask_the_others(asked_at, has_others=has_others)
                seat.drain()  # what is said now the others hear, and this one misses
            self._sit(seat, member, tick_ms)
            missed = _missed(_kept(found, seat), last_seq)
            ticket = msgspec.structs.replace(ticket, missed=missed)
            if joined:
                seat.show(ticket)
            else:
                self._answer_join(seat, ticket)
            return seat

    async def _attached(self, tenant: str, session_id: str, **how: Any) -> Found | None:
        """The session as Redis has it. One that ended here is put back first where Redis came
        back with an older copy of it, or none: who joined that would go on with it."""
        found = await self.live.attach(tenant, session_id, **how)
        kept = self.unflushed.end_of(session_key(tenant, session_id))
        if kept is None or kept.session is None or self.claims.restore is None:
            return found
        if found is not None and found.session.standing.phase is Phase.ENDED:
            return found
        try:
            await self.claims.restore(kept.session)
        except BaseException as error:
            if found is not None:
                await self._depart(found.session)
            if isinstance(error, RedisError):
                raise ServiceError("the session store takes nothing now") from error
            raise
        return await self.live.attach(tenant, session_id, **how)

    async def _started(self, tenant: str, session_id: str) -> None:
        """Waits while another socket of this process is starting the session."""
        seat = self.seats.get(session_key(tenant, session_id))
        if seat is not None and seat.meter.session.standing.version == 0:
            try:
                async with asyncio.timeout(2 * limits.REDIS_TIMEOUT_MS / 1000):
                    await seat.settled.wait()
            except TimeoutError:
                raise ServiceError("the session is being started") from None

    async def _show_ended(self, found: Found, ticket: Ticket, last_seq: int | None) -> Seat:
        """A stop is never lost to a dropped connection: who comes back and has not heard of
        it is shown the ended session, with the notice among the missed ones. Anybody else
        is told ``session_ended``."""
        missed = _missed(found.notices, last_seq)
        if not missed:
            _check_live(found.session)
        return self._show_end(await self.seat_of(found.session), ticket, missed)

    def _show_end(self, seat: Seat, ticket: Ticket, missed: tuple[bytes, ...]) -> Seat:
        if missed:
            seat.show(msgspec.structs.replace(ticket, missed=missed))
        self.leave(seat)
        if not missed:
            _check_live(seat.meter.session)
        return seat

    async def missed(self, seat: Seat, last_seq: int) -> tuple[bytes, ...]:
        """The notices of a session after ``last_seq``."""
        identity = seat.meter.session.identity
        found = await self.live.attach(identity.tenant, identity.session_id, read_only=True)
        return _missed(_kept(found, seat), last_seq)

    async def _found(self, found: Found) -> Seat:
        """The seat of a session that this process is attached to, as it was found."""
        identity = found.session.identity
        seat = self.seats.get(found.session.key)
        if seat is None:
            if self.before_joining is not None:
                await self.before_joining(found)
            seat = await self.seat_of(found.session)
            seat.meter.notices.remember(found.notices)
            if found.nodes - {self.node}:
                # Whatever others did before this process listened, it has not heard.
                name = (identity.tenant, identity.session_id)
                with seat.kept_free():
                    again = await self.live.attach(*name, read_only=True)
                found = again or found
        seat.meter.read(found.session, found.notices, self.clock.now())
        return seat

    async def _depart(self, session: Session) -> None:
        """This process attached to a session and could not seat its socket."""
        seat = self.seats.get(session.key)
        if seat is None or not seat.meter.sockets:
            identity, is_off = session.identity, False
            with contextlib.suppress(LiveError):
                is_off = await self.live.retreat(identity.tenant, identity.session_id)
            if not is_off:
                # The last one there, or Redis did not take it: as soon as that answers again,
                # this process looks after the session, which would have it as a socket till then.
                self.reconcile_due = True
        if seat is not None:
            self.release(seat)

    def _answer_join(self, seat: Seat, ticket: Ticket) -> None:
        """A join is answered at once, or when the step that it makes is answered."""
        if not seat.meter.entitle(ticket):
            seat.show(ticket)
        seat.drain()

    async def start(
        self,
        member: Member,
        identity: Identity,
        ticket: Ticket,
        tick_ms: int | None = None,
        basis: Basis | None = None,
    ) -> Seat | None:
        """Starts a session that ``join`` did not find. Answers the ticket.

        ``basis`` is what the identity was decided from; the start fails, retryable, when that
        is otherwise by now.

        None when somebody else on this process has begun to start it: then it is to be joined.
        """
        key = session_key(identity.tenant, identity.session_id)
        async with self.lock(identity.tenant, identity.session_id):
            if key in self.seats:
                return None
            now_ms = self.clock.now()
            own_ms = 0 if identity.free_key else identity.terms.free_ms
            session = Session(identity, unstarted(Phase.PAUSED, now_ms, own_ms), Grant())
            seat = await self.seat_of(session)
            try:
                self.check_room(seat)
                if identity.free_key:
                    with seat.kept_free():
                        seat.meter.free_left_ms = await self._free_left(identity, seat)
                self._sit(seat, member, tick_ms)
            except BaseException:
                self.leave(seat)
                raise
            seat.meter.start(self.clock.now(), ticket, basis)
            seat.drain()
            return seat

    async def watch(
        self,
        member: Member,
        principal: Principal,
        session_id: str,
        ticket: Ticket,
        tenant: str | None = None,
    ) -> Seat | None:
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
            _check_watcher(principal, found.session.identity)
            _check_live(found.session)
            is_new = found.session.key not in self.seats
            seat = await self.seat_of(found.session)
            if is_new:
                # Whatever was done before this process listened, it has not heard.
                try:
                    with seat.kept_free():
                        again = await self.live.attach(tenant, session_id, read_only=True)
                    found = again or found
                    _check_live(found.session)
                except BaseException:
                    self.release(seat)
                    raise
            seat.meter.read(found.session, found.notices, self.clock.now())
            with seat.kept_free():
                seat.drain()  # what was said by now the others hear, and this one is shown
            _check_live(seat.meter.session)  # it may have ended since it was read
            if member not in seat.members:
                try:
                    self._observe(seat, member, principal)
                except BaseException:
                    self.release(seat)
                    raise
            seat.show(ticket)
            return seat

    def _check_seats(self, seat: Seat, member: Member) -> None:
        """Raises ``rate_limited`` where too many sockets keep a session alive. Observers and
        requests take none of these places."""
        taken = [one for one in seat.members if one not in seat.service.watchers]
        if len(taken) >= server_limits.SOCKETS_PER_SESSION_MAX and member not in taken:
            raise PeerError(ErrorCode.RATE_LIMITED, "too many sockets have this session open")

    def _observe(self, seat: Seat, member: Member, principal: Principal) -> None:
        """Seats an observer. Where there is no place, the session's own user takes that of the
        oldest observer who is somebody else; anybody else is refused."""
        identity = seat.meter.session.identity
        is_own = (principal.tenant, principal.user_id) == (identity.tenant, identity.user_id)
        if len(seat.service.observers) >= server_limits.OBSERVERS_PER_SESSION_MAX:
            others = [observer for observer, own in seat.service.observers.items() if not own]
            if not is_own or not others:
                raise PeerError(ErrorCode.RATE_LIMITED, "too many sockets watch this session")
            self._evict(seat, others[0])
        seat.service.observe(member, is_own=is_own)

    def _evict(self, seat: Seat, observer: Member) -> None:
        """Takes an observer's place, and says so."""
        session_id = seat.meter.session.identity.session_id
        error = PeerError(
            ErrorCode.RATE_LIMITED,
            f"{session_id} is watched no longer: its own user needed the place",
        )
        self.metrics.errors.labels(error.code.value).inc()
        seat.service.remove(observer)
        observer.left(seat)
        observer.send(text_frame(encode(error_message(error))))

    def _sit(self, seat: Seat, member: Member, tick_ms: int | None) -> None:
        self._check_seats(seat, member)
        seat.service.add(
            member, tick_ms or seat.meter.session.identity.terms.tick_ms, watching=False
        )

    def part(self, seat: Seat, member: Member, alive_at: int, *, farewell: bool = False) -> None:
        """A socket leaves a session, or is gone; ``alive_at`` is its last proof of life.

        ``farewell``: its user took leave, by a clean close or `leave`. That ends proofs of life
        in advance, of heartbeats over HTTP, on whichever process they are.
        """
        if member not in seat.members:
            return
        watching = member in seat.service.watchers
        if not watching:
            seat.service.confirm(member, alive_at, self.clock.now())
        seat.service.remove(member)
        if watching:
            self.release(seat)
            return
        if farewell:
            seat.service.farewell(alive_at)
            if seat.meter.sockets > 1:
                # No step is made, for others stay here; see `leaving` in commit.lua.
                self.run(self._tell_farewell(seat, alive_at))
        seat.meter.detach(alive_at, self.clock.now(), farewell=farewell)
        if not seat.meter.sockets:
            seat.service.count_unproven()
        seat.drain()

    async def _tell_farewell(self, seat: Seat, at_ms: int) -> None:
        identity = seat.meter.session.identity
        message = {"farewell": identity.session_id, "at": at_ms}
        await self.live.tell(identity.tenant, identity.account_id, message)
        seat.meter.farewell_told(at_ms)

    def request(self, seat: Seat, event: Event, ticket: Ticket, reason: str = "client") -> None:
        """Pauses, resumes or stops a session; the ticket is answered when it is done."""
        if not seat.meter.request(event, self.clock.now(), ticket, reason):
            raise PeerError(ErrorCode.RATE_LIMITED, "too many requests wait for this session")
        seat.drain()

    async def open(self, guest: Member, tenant: str, session_id: str) -> Seat | None:
        """The seat of a session for a request that comes without a socket: the guest hears
        of the session's end, until it parts. It needs no place: a session can be stopped
        however many sockets it has."""
        async with self.lock(tenant, session_id):
            found = await self._attached(tenant, session_id, read_only=True, watch=True)
            if found is None:
                return None
            _check_live(found.session)
            seat = await self.seat_of(found.session)
            seat.service.add(guest, limits.TICK_MS_MAX, watching=True)
            seat.meter.read(found.session, found.notices, self.clock.now())
            seat.drain()
            return seat


def _kept(found: Found | None, seat: Seat) -> tuple[bytes, ...]:
    """The notices of a session: what was recorded when it was read, what this process has heard
    of since, and what it has said and not recorded yet."""
    notices, read = seat.meter.notices, found.notices if found is not None else ()
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


def _check_watcher(principal: Principal, identity: Identity) -> None:
    if not principal.may_watch(identity.user_id, identity.session_id):
        raise PeerError(ErrorCode.FORBIDDEN, "the session is not yours to watch")


def _check_live(session: Session) -> None:
    if session.standing.phase is Phase.ENDED:
        raise RefusedError(ErrorCode.SESSION_ENDED, "the session has ended")
