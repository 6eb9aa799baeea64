"""The sessions of this process: who starts, joins, watches and leaves them.

A session is served wherever it has a socket, on any number of processes. Joining reads
it from Redis and seats a meter here; from then on this process needs nobody else to know
what the session does, and hears of the others' steps on the account's channel.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import structlog

from protocol import limits
from protocol.effects import Move
from protocol.errors import ErrorCode, PeerError, RefusedError, ServiceError
from protocol.meter import Meter
from protocol.moves import unstarted
from protocol.notices import sequence_number
from protocol.session import Grant, Identity, Session, session_key
from protocol.states import Event, Phase
from protocol.steps import Step
from server.accounts import Account, Accounts
from server.auth import Principal
from server.claims import Claims
from server.clock import Clock
from server.loading import Loader
from server.metrics import Metrics
from server.seats import Member, Seat, Ticket
from server.tenants import Tenants
from server.timers import Timers
from server.unflushed import Unflushed
from storage.live import Found, Live, LiveError, Outcome
from storage.wire import line_at, move_of

log = structlog.get_logger()


class Hub:
    """The seats of a process, by the session's key."""

    def __init__(
        self,
        live: Live,
        loader: Loader,
        clock: Clock,
        timers: Timers,
        metrics: Metrics,
        uncovered_ms: int = limits.UNCOVERED_MS_DEFAULT,
    ) -> None:
        self.live = live
        self.loader = loader
        self.clock = clock
        self.timers = timers
        self.metrics = metrics
        self.uncovered_ms = uncovered_ms
        self.node = live.node
        self.claims = Claims(live, loader, clock, metrics)
        self.accounts = Accounts(live, loader, self._told)
        self.unflushed = Unflushed()
        self.seats: dict[str, Seat] = {}
        self.tenants = Tenants(live, loader, self.accounts, self._limits_changed)
        self.before_joining: Callable[[Found], Awaitable[None]] | None = None
        """Looks at a session that was found, before it is seated; see ``Orphans``."""
        self._by_account: dict[tuple[str, str], set[Seat]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self.seats.values()))

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
        async with self.lock(tenant, session_id):
            await self._started(tenant, session_id)
            found = await self.live.attach(tenant, session_id, user_id=user_id)
            if found is None:
                return None
            _check_owner(found.session.identity, user_id)
            if found.session.standing.phase is Phase.ENDED:
                return await self._show_ended(found, ticket, last_seq)
            try:
                seat = await self._found(found)
                joined = member in seat.members and member not in seat.watchers
                self._sit(seat, member, tick_ms)
            except BaseException:
                await self._depart(found.session)
                raise
            kept = (*found.notices, *seat.meter.notices.unrecorded)
            ticket = msgspec.structs.replace(ticket, missed=_missed(kept, last_seq))
            if joined:
                seat.show(ticket)
                return seat
            seat.meter.attach(self.clock.now())
            self._answer_join(seat, ticket)
            return seat

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
        seat = await self.seat_of(found.session)
        seat.show(msgspec.structs.replace(ticket, missed=missed))
        self.leave(seat)
        return seat

    async def missed(self, seat: Seat, last_seq: int) -> tuple[bytes, ...]:
        """The notices of a session after ``last_seq``."""
        identity = seat.meter.session.identity
        found = await self.live.attach(identity.tenant, identity.session_id, read_only=True)
        kept = found.notices if found is not None else ()
        return _missed((*kept, *seat.meter.notices.unrecorded), last_seq)

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
                again = await self.live.attach(identity.tenant, identity.session_id, read_only=True)
                found = again or found
        if seat.meter.asked is None:  # or else the answer tells what there is
            seat.meter.moved(Move(found.session, found.notices, complete=True), self.clock.now())
        return seat

    async def _depart(self, session: Session) -> None:
        """This process attached to a session and could not seat its socket."""
        seat = self.seats.get(session.key)
        if seat is None or not seat.meter.sockets:
            identity = session.identity
            with contextlib.suppress(LiveError):
                await self.live.depart(identity.tenant, identity.session_id, self.node)
        if seat is not None:
            self.release(seat)

    def _answer_join(self, seat: Seat, ticket: Ticket) -> None:
        """A join is answered at once, or when the step that it makes is answered."""
        if not seat.meter.entitle(ticket):
            seat.show(ticket)
        seat.drain()

    async def start(
        self, member: Member, identity: Identity, ticket: Ticket, tick_ms: int | None = None
    ) -> Seat | None:
        """Starts a session that ``join`` did not find. Answers the ticket.

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
                if identity.free_key:
                    seat.meter.free_left_ms = await self._free_left(identity, seat)
                self._sit(seat, member, tick_ms)
            except BaseException:
                self.leave(seat)
                raise
            seat.meter.start(self.clock.now(), ticket)
            seat.drain()
            return seat

    async def watch(
        self, member: Member, principal: Principal, session_id: str, ticket: Ticket
    ) -> Seat | None:
        """Pushes a session to a socket that does not keep it alive.

        None when there is none of that id; raises ``forbidden`` for one that the
        principal may not watch, and ``session_ended``.
        """
        tenant = principal.tenant
        assert tenant is not None
        async with self.lock(tenant, session_id):
            found = await self.live.attach(tenant, session_id, read_only=True, watch=True)
            if found is None:
                return None
            _check_watcher(principal, found.session.identity)
            _check_live(found.session)
            seat = await self.seat_of(found.session)
            seat.meter.moved(Move(found.session, found.notices, complete=True), self.clock.now())
            if member not in seat.members:
                self._sit(seat, member, None, watching=True)
            seat.show(ticket)
            return seat

    def _sit(
        self, seat: Seat, member: Member, tick_ms: int | None, *, watching: bool = False
    ) -> None:
        if len(seat.members) >= limits.SOCKETS_PER_SESSION_MAX and member not in seat.members:
            raise PeerError(ErrorCode.RATE_LIMITED, "too many sockets have this session open")
        seat.seat(member, tick_ms or seat.meter.session.identity.terms.tick_ms, watching=watching)

    def part(self, seat: Seat, member: Member, alive_at: int) -> None:
        """A socket leaves a session, or is gone; ``alive_at`` is its last proof of life."""
        if member not in seat.members:
            return
        watching = member in seat.watchers
        seat.unseat(member)
        if not watching:
            seat.meter.detach(alive_at, self.clock.now())
            seat.drain()
        else:
            self.release(seat)

    def release(self, seat: Seat) -> None:
        """Clears a seat that nobody here sits at, unless its grace is looked after here."""
        standing = seat.meter.session.standing
        idle = not seat.members and seat.meter.sockets == 0 and seat.meter.asked is None
        if idle and standing.grace_until is None:
            self.leave(seat)

    def request(self, seat: Seat, event: Event, ticket: Ticket, reason: str = "client") -> None:
        """Pauses, resumes or stops a session; the ticket is answered when it is done."""
        if not seat.meter.request(event, self.clock.now(), ticket, reason):
            raise PeerError(ErrorCode.RATE_LIMITED, "too many requests wait for this session")
        seat.drain()

    async def open(self, guest: Member, tenant: str, session_id: str) -> Seat | None:
        """The seat of a session for a request that comes without a socket: the guest hears
        of the session's end, until it is told to ``part``."""
        async with self.lock(tenant, session_id):
            found = await self.live.attach(tenant, session_id, read_only=True, watch=True)
            if found is None:
                return None
            _check_live(found.session)
            seat = await self.seat_of(found.session)
            self._sit(seat, guest, limits.TICK_MS_MAX, watching=True)
            seat.meter.moved(Move(found.session, found.notices), self.clock.now())
            seat.drain()
            return seat

    # --- Place: what seats need ---------------------------------------------------------

    def leave(self, seat: Seat) -> None:
        """The session ended, or nobody here needs it: its seat is cleared."""
        if self.seats.get(seat.key) is not seat:
            return
        session = seat.meter.session
        if seat.members and session.standing.version and session.standing.phase is not Phase.ENDED:
            return  # they go on watching it
        del self.seats[seat.key]
        account = seat.account
        name = (account.projection.tenant, account.projection.account_id)
        seats = self._by_account.get(name, set())
        seats.discard(seat)
        if not seats:
            self._by_account.pop(name, None)
        for member in list(seat.members):
            member.left(seat)
        seat.close()
        self._run(self.accounts.close(account))
        self._run(self.tenants.leave(session.identity))
        if session.standing.phase is Phase.ENDED:
            reason = session.standing.reason or ""
            self.metrics.sessions_ended.labels(reason).inc()
            self._run(
                self.live.leave(session.identity.tenant, session.identity.session_id, self.node)
            )

    def keep(self, step: Step, outcome: Outcome) -> None:
        """A step was made: what it appended is kept until Postgres has it."""
        if outcome.entry_id and outcome.reply is not None:
            partition = self.live.keys.partition(step.before.identity.tenant)
            session = outcome.reply.session
            self.unflushed.keep(partition, outcome.entry_id, step.records, session, step.notices)

    def changed(self, seat: Seat, outcome: Outcome) -> None:
        """The account's figures after a step of this process, for its projection."""
        assert outcome.change is not None
        assert outcome.reply is not None
        session = outcome.reply.session
        line = None
        if session is not None and session.standing.phase is not Phase.ENDED:
            line = line_at(session.identity, session.standing)
        session_id = seat.meter.session.identity.session_id
        self.accounts.changed(seat.account, outcome.change, session_id, line)

    # --- Inside ---------------------------------------------------------------------------

    async def seat_of(self, session: Session) -> Seat:
        """A seat for a session: its account, its calendar, its counters."""
        existing = self.seats.get(session.key)
        if existing is not None:
            return existing
        identity = session.identity
        account = await self.accounts.open(identity.tenant, identity.account_id)
        try:
            days = await self.tenants.enter(identity)
        except BaseException:
            await self.accounts.close(account)
            raise
        meter = Meter(session, account.projection, days.month, self.uncovered_ms)
        if identity.terms.counts_minutes:
            try:
                meter.member, meter.org = await self.live.month(
                    identity.tenant, identity.user_id, days.month(self.clock.now())
                )
            except BaseException:
                await self.tenants.leave(identity)
                await self.accounts.close(account)
                raise
            meter.changed(self.clock.now())
        seat = Seat(self, meter, account, days, self.node)
        self.seats[session.key] = seat
        name = (identity.tenant, identity.account_id)
        self._by_account.setdefault(name, set()).add(seat)
        return seat

    async def _free_left(self, identity: Identity, seat: Seat) -> int:
        """What is left of a shared allowance; the step that takes it checks it again."""
        used_ms = await self.live.free_used(identity)
        if used_ms is None:
            await self.loader.free_time(identity, seat.day_start_at())
            used_ms = await self.live.free_used(identity) or 0
        return max(0, identity.terms.free_ms - used_ms)

    def _told(self, account: Account, message: dict[str, Any]) -> None:
        """Something was told on an account's channel: by another process, or by this one."""
        now_ms = self.clock.now()
        name = (account.projection.tenant, account.projection.account_id)
        for seat in list(self._by_account.get(name, ())):
            identity = seat.meter.session.identity
            if message.get("moved") and message["session_id"] == identity.session_id:
                move = move_of(message)
                if not _is_own(seat, move, message["node"]):
                    seat.meter.moved(move, now_ms)
                seat.drain()
                self.release(seat)
            if message.get("stop") == identity.session_id and seat.meter.sockets:
                # Asked for where nobody hears the client; here its last seconds are proven.
                seat.meter.request(Event.STOP, now_ms, None, message["reason"])
            if message.get("recall"):
                seat.meter.recall(now_ms)
            # A recall frees nothing yet: only what changed the account is worth a claim.
            if message.get("bumped") or not message.keys() & {"recall", "stop"}:
                seat.meter.changed(now_ms)
            seat.drain()
        for told in list(account.listeners):
            told(account, message)

    def _limits_changed(self, tenant: str, freed: bool) -> None:
        """A limit of the month was changed, or a session gave back its last minute."""
        now_ms = self.clock.now()
        for seat in self:
            session = seat.meter.session
            if session.identity.tenant == tenant and (
                not freed or session.grant.final in {"member_minutes", "org_minutes"}
            ):
                seat.meter.refresh(now_ms)
                seat.drain()

    def lock(self, tenant: str, session_id: str) -> asyncio.Lock:
        """One join or start of a session at a time; locks that nobody holds are dropped."""
        if len(self._locks) > limits.CLAIMS_WAITING_MAX:
            self._locks = {name: lock for name, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(session_key(tenant, session_id), asyncio.Lock())

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("hub_task_failed", error=str(task.exception()))

    @property
    def busy(self) -> bool:
        """Whether something that was begun here is under way."""
        return bool(self._tasks) or self.accounts.busy

    async def idle(self) -> None:
        """Waits until nothing that was begun here is under way."""
        while self.busy or self.claims.waiting:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.accounts.idle()
            await self.claims.idle()


def _missed(kept: tuple[bytes, ...], last_seq: int | None) -> tuple[bytes, ...]:
    """The kept notices that a client has not seen; none where it does not ask for them."""
    if last_seq is None:
        return ()
    return tuple(notice for notice in kept if sequence_number(notice) > last_seq)


def _is_own(seat: Seat, move: Move, node: str) -> bool:
    """Whether a move is the step that the seat has asked for: its answer is on its way, and
    says to whom it is an answer."""
    asked, version = seat.meter.asked, move.session.standing.version
    return asked is not None and node == seat.node and version == asked.standing.version


def _check_owner(identity: Identity, user_id: str) -> None:
    if identity.user_id != user_id:
        raise PeerError(ErrorCode.FORBIDDEN, "the session is another user's")


def _check_watcher(principal: Principal, identity: Identity) -> None:
    if not principal.may_watch(identity.user_id, identity.session_id):
        raise PeerError(ErrorCode.FORBIDDEN, "the session is not yours to watch")


def _check_live(session: Session) -> None:
    if session.standing.phase is Phase.ENDED:
        raise RefusedError(ErrorCode.SESSION_ENDED, "the session has ended")
