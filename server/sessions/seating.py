"""The seats of a process: how they are set up, what news they are told, and how they are cleared.

Who sits down and stands up is decided in ``server.sessions.registry``. A seat needs its
account, its tenant's calendar and its counters; it hears of what other processes do through the
account's channel, and of changed limits through the tenant's.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog

from protocol import limits
from protocol.metering.effects import Move
from protocol.metering.meter import Meter
from protocol.metering.session import Identity, Session, session_key
from protocol.metering.shared_months import SharedMonths
from protocol.metering.states import Event, Phase
from protocol.metering.steps import Step
from protocol.wire.errors import ErrorCode, PeerError, ProtocolError
from server.counters.accounts import Account, Accounts, Told
from server.counters.calendars import Calendar
from server.counters.loading import Loader
from server.counters.recall import may_free
from server.counters.tenants import Change, Tenants
from server.runtime.clock import Clock
from server.runtime.isolation import failed, isolated
from server.runtime.metrics import Metrics
from server.runtime.timers import Timers
from server.runtime.turns import Turns
from server.runtime.waiting import Locks
from server.sessions.local_session import Seat
from server.sessions.step_pipeline import Claims, retry_after_ms
from server.sessions.unflushed import Unflushed
from storage.redis.encoding import line_at, move_of
from storage.redis.live import Found, Live, LiveError, Outcome

log = structlog.get_logger()


class Seating:
    """The seats of a process, by the session's key, and what they need (``seats.Place``)."""

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
        self.turns = Turns()
        self.claims = Claims(live, loader, clock, metrics, self.turns)
        self.accounts = Accounts(live, loader, self._told, self.turns)
        self.unflushed = Unflushed()
        self._unheard = itertools.count()
        self.seats: dict[str, Seat] = {}
        self._by_tenant: dict[str, dict[str, Seat]] = {}
        self._limits_due: set[tuple[str, Change, str | None]] = set()
        """Changes of limits that a tenant's sessions are about to hear of."""
        self.months = SharedMonths()
        self.tenants = Tenants(live, loader, self.accounts, self._limits_changed)
        self.before_joining: Callable[[Found], Awaitable[None]] | None = None
        """Looks at a session that was found, before it is seated; see ``Orphans``."""
        self.reconcile_due = False
        """This process is noted for a session that it does not serve; see ``Orphans``."""
        self._locks = Locks()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self.seats.values()))

    def release(self, seat: Seat) -> None:
        """Clears a seat that nobody here sits at or is about to, unless its grace is looked
        after here."""
        standing = seat.meter.session.standing
        is_taken = seat.members or seat.awaited or seat.meter.sockets
        idle = not is_taken and seat.meter.asked is None
        if idle and standing.grace_until is None:
            self.leave(seat)

    def leave(self, seat: Seat) -> None:
        """The session ended, or nobody here needs it: its seat is cleared."""
        if self.seats.get(seat.key) is not seat:
            return
        session = seat.meter.session
        if seat.members and session.standing.version and session.standing.phase is not Phase.ENDED:
            return  # they go on watching it
        del self.seats[seat.key]
        self._list(seat, listed=False)
        for member in seat.members:
            isolated("member", member.left, seat, session=seat.key)
        seat.close()
        if session.standing.phase is Phase.ENDED:
            reason = session.standing.reason or ""
            self.metrics.sessions_ended.labels(reason).inc()
        self._run(self._forget(seat))

    async def _forget(self, seat: Seat) -> None:
        """Gives up what a seat that was cleared had need of."""
        session = seat.meter.session
        identity = session.identity
        await self.turns.take(seat.account)
        try:
            await self.accounts.close(seat.account)
        finally:
            await self.tenants.leave(identity)
        # The step that ends a session takes the process off it that makes the step.
        if session.standing.phase is Phase.ENDED and not seat.ended_here:
            await self.live.leave(identity.tenant, identity.session_id, self.node)

    def _list(self, seat: Seat, *, listed: bool) -> None:
        """Has a seat among those of its account and its tenant, or not any more."""
        identity = seat.meter.session.identity
        if listed:
            seat.account.seats[identity.session_id] = seat
            self._by_tenant.setdefault(identity.tenant, {})[seat.key] = seat
            return
        del seat.account.seats[identity.session_id]
        of_tenant = self._by_tenant[identity.tenant]
        del of_tenant[seat.key]
        if not of_tenant:
            del self._by_tenant[identity.tenant]

    def check_room(self, seat: Seat) -> None:
        """Raises ``rate_limited`` for a session more than an account may have at a time."""
        projection = seat.account.projection
        here = len(seat.account.seats)
        if max(here, len(projection.lines) + 1) > limits.LIVE_SESSIONS_PER_ACCOUNT_MAX:
            raise PeerError(ErrorCode.RATE_LIMITED, "too many sessions of this account run")

    def keep(self, step: Step, session: Session, entry_id: str) -> None:
        """A step was made, which left ``session``: what it appended is kept until Postgres
        has it."""
        if step.records:
            # Whoever has not heard the entry's name knows that it is older than this one.
            entry_id = entry_id or f"{self.clock.now()}-{next(self._unheard)}"
            partition = self.live.keys.partition(step.before.identity.tenant)
            self.unflushed.keep(partition, entry_id, step.records, session, step.notices)

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
        meter.counters = self.months.of(identity.tenant, identity.user_id)
        if identity.terms.counts_minutes:
            try:
                month = days.month(self.clock.now())
                found = await self.live.month(identity.tenant, identity.user_id, month)
                meter.know_months(*found)
            except BaseException:
                await self.tenants.leave(identity)
                await self.accounts.close(account)
                raise
            meter.changed(self.clock.now())
        seat = Seat(self, meter, account, days, self.node)
        self.seats[session.key] = seat
        self._list(seat, listed=True)
        if not self.tenants.is_current(identity, days):
            self._run(self._read_calendar(identity.tenant))  # told while this was set up
        return seat

    async def _free_left(self, identity: Identity, seat: Seat) -> int:
        """What is left of a shared allowance; the step that takes it checks it again."""
        used_ms = await self.live.free_used(identity)
        if used_ms is None:
            await self.loader.free_time(identity, seat.free_day())
            used_ms = await self.live.free_used(identity) or 0
        return max(0, identity.terms.free_ms - used_ms)

    def _told(self, account: Account, message: dict[str, Any]) -> None:
        """Something was told on an account's channel: by another process, or by this one."""
        if message.keys() & {"farewell", "prove", "proven"}:
            self._told_of_proof(account.projection.tenant, message)
            return
        concerned = message["session_id"] if message.get("moved") else message.get("stop")
        concerned = message.get("again", concerned)
        told = account.seats.get(concerned) if concerned else None
        if told is not None:
            self._isolated(told, self._tell, told, message)
        # A recall frees nothing yet: only what changed the account is worth a claim.
        is_change = bool(message.get("bumped") or not message.keys() & {"recall", "stop"})
        before = account.told
        account.told = Told(
            changes=before.changes + is_change,
            frees=before.frees + (is_change and may_free(message)),
            recalls=before.recalls + bool(message.get("recall")),
            breaks=before.breaks + (not message or "reload" in message),
        )
        if account.seats and not account.is_looked_at:
            self._look_soon(account)
        if account.listeners:
            self.turns.run((account, "listeners"), self._tell_listeners(account, message))

    def _tell(self, seat: Seat, message: dict[str, Any]) -> None:
        """Tells a session what concerns it alone."""
        now_ms = self.clock.now()
        if "again" in message:
            if message["node"] != self.node:
                self._run(self.read_again(seat))
            return
        if _is_only_watched(seat) and _misses(seat, message):
            self._run(self._catch_up(seat))  # no step from here is answered with that
            return
        if message.get("moved"):
            move = move_of(message)
            if seat.meter.is_other(move):
                self._run(self._decide_fork(seat))
            if not _is_own(seat, move, message["node"]):
                seat.meter.moved(move, now_ms)
            seat.drain()
            self.release(seat)
        elif seat.meter.sockets:
            # Asked for where nobody hears the client; here its last seconds are proven.
            seat.meter.request(Event.STOP, now_ms, None, message["reason"])
            seat.drain()

    def _look_at_all(self, account: Account) -> Iterator[None]:
        """Has every session of an account hear of what it has not heard of, one in each unit,
        until there is none. What is told meanwhile those hear of who are still to be looked at;
        the others are looked at once more."""
        told: Told | None = None
        while told != account.told:
            if told is not None and len(account.seats) > limits.UNITS_PER_TURN:
                # Hundreds of changes come together: again when most of them are there.
                at = self.clock.now() + limits.ACCOUNT_LOOK_PAUSE_MS
                self.timers.deadline(at, lambda _: self._look_soon(account), account)
                return
            told = account.told
            seats: list[Seat] = list(account.seats.values())
            for seat in seats:
                if seat.heard == account.told or seat.key not in self.seats:
                    continue
                heard, seat.heard = seat.heard, account.told
                self._isolated(seat, self._look_at, seat, heard)
                yield
        account.is_looked_at = False

    def _look_soon(self, account: Account) -> None:
        account.is_looked_at = True
        self.turns.run(account, self._look_at_all(account))

    def _look_at(self, seat: Seat, heard: Told) -> None:
        now_ms, told = self.clock.now(), seat.heard
        if told.breaks > heard.breaks and _is_only_watched(seat):
            self._run(self._catch_up(seat))
            return
        if told.recalls > heard.recalls and seat.meter.recall(now_ms):
            self.metrics.recalls.inc()
        if told.changes > heard.changes:
            seat.meter.changed(now_ms)
            if told.frees > heard.frees:
                seat.freed()
        seat.drain()

    @staticmethod
    def _tell_listeners(account: Account, message: dict[str, Any]) -> Iterator[None]:
        for told in list(account.listeners):
            if told in account.listeners:
                isolated("listener", told, account, message)
                yield

    @staticmethod
    def _isolated(seat: Seat, act: Callable[..., object], *arguments: object) -> None:
        """Does something to one session of many. Where it fails, this one is looked at again."""
        try:
            act(*arguments)
        except Exception:
            failed("session", session=seat.key)
            seat.recover()

    def _told_of_proof(self, tenant: str, message: dict[str, Any]) -> None:
        """Something was told of what a client has proven; it changes no figure of the account."""
        if message.get("node") == self.node:
            return  # its own question, or answer
        for told in ("farewell", "prove", "proven"):
            seat = self.seats.get(session_key(tenant, message.get(told, "")))
            if seat is None:
                continue
            if told == "farewell":
                seat.service.farewell(message["at"])
            elif told == "prove":
                seat.service.wanted_elsewhere(self.clock.now(), at_once="came_at" in message)
            else:
                seat.service.proven_elsewhere(
                    message["until"], self.clock.now(), message["at"], message.get("came_at")
                )

    def ask_elsewhere(self, identity: Identity, came_at: int | None = None) -> None:
        """Asks the processes that have the session's sockets for a proof of life; since a
        socket joined at ``came_at``, and what the last one was."""
        message: dict[str, Any] = {"prove": identity.session_id, "node": self.node}
        if came_at is not None:
            message["came_at"] = came_at
        self._run(self._tell_or_not(identity, message))

    def tell_proven(
        self, identity: Identity, until_ms: int, at_ms: int, came_at: int | None = None
    ) -> None:
        """Tells the processes that have asked up to when ticks may go out, and when the last
        proof of life came in; and since when this process asks others itself."""
        message: dict[str, Any] = {"proven": identity.session_id, "node": self.node}
        message |= {"until": until_ms, "at": at_ms}
        if came_at is not None:
            message["came_at"] = came_at
        self._run(self._tell_or_not(identity, message))

    async def _tell_or_not(self, identity: Identity, message: dict[str, Any]) -> None:
        """Without Redis whoever only watches gets no ticks, until it is there again."""
        with contextlib.suppress(LiveError):
            await self.live.tell(identity.tenant, identity.account_id, message)

    async def _catch_up(self, seat: Seat) -> None:
        """Shows watchers what was not heard here, until that has succeeded or nobody needs it."""
        identity = seat.meter.session.identity
        for failures in itertools.count(1):
            if self.seats.get(seat.key) is not seat or not _is_only_watched(seat):
                return
            try:
                found = await self.live.attach(identity.tenant, identity.session_id, read_only=True)
                break
            except LiveError as error:
                log.warning("session_not_read", session=seat.key, error=str(error))
                await asyncio.sleep(retry_after_ms(failures) / 1000)
        if self.seats.get(seat.key) is not seat:
            return
        now_ms = self.clock.now()
        if found is not None:
            seat.meter.read(found.session, found.notices, now_ms)
        seat.meter.changed(now_ms)
        seat.drain()

    async def _decide_fork(self, seat: Seat) -> None:
        """Another process has made the step of a copy that lacks the newest one from here."""
        if self.claims.restore is None or _is_only_watched(seat):
            await self.read_again(seat)
            return
        try:
            await self.claims.restore(seat.meter.session)
        except (LiveError, ProtocolError) as error:
            log.warning("fork_not_decided", session=seat.key, error=str(error))

    async def read_again(self, seat: Seat) -> None:
        """Takes a session as Redis has it, which was put back there: steps that were made here
        of an older copy may not count. Without an answer the next step is told of it."""
        identity = seat.meter.session.identity
        try:
            found = await self.live.attach(identity.tenant, identity.session_id, read_only=True)
        except LiveError as error:
            log.warning("session_not_read", session=seat.key, error=str(error))
            return
        if found is not None and self.seats.get(seat.key) is seat:
            seat.meter.read(found.session, found.notices, self.clock.now())
            seat.drain()

    def _limits_changed(self, tenant: str, change: Change, user_id: str | None = None) -> None:
        """A limit of the month was changed, somebody lacks minutes, or some were given back."""
        due = (tenant, change, user_id)
        if due not in self._limits_due:
            self._limits_due.add(due)
            self.turns.run(tenant, self._refresh_all(*due))
        if change == "changed":
            self._run(self._read_calendar(tenant))

    def _refresh_all(self, tenant: str, change: Change, user_id: str | None) -> Iterator[None]:
        # Whoever is told of another change from here on begins anew, behind this.
        self._limits_due.discard((tenant, change, user_id))
        for seat in self._seats_of(tenant):
            identity, final = seat.meter.session.identity, seat.meter.session.grant.final
            if change == "recalled":
                is_theirs = user_id is None or identity.user_id == user_id
                concerned = is_theirs and identity.terms.counts_minutes
            elif change == "freed":
                concerned = seat.waits_for_holders or final in {"member_minutes", "org_minutes"}
            else:
                concerned = True
            if concerned and self.seats.get(seat.key) is seat:
                self._isolated(seat, self._refresh, seat, change)
                yield

    def _refresh(self, seat: Seat, change: Change) -> None:
        if change == "recalled":
            if seat.meter.recall(self.clock.now(), minutes=True):
                self.metrics.recalls.inc()
        else:
            seat.freed()
            seat.meter.refresh(self.clock.now())
        seat.drain()

    async def _read_calendar(self, tenant: str) -> None:
        """Live sessions count by the time zone that their organisation has now."""
        for seat in self._seats_of(tenant):
            await self.turns.take(tenant)
            days = await self.tenants.calendar_of(seat.meter.session.identity)
            if days.zone.key != seat.calendar.zone.key:
                self._isolated(seat, self._relocate, seat, days)

    def _relocate(self, seat: Seat, days: Calendar) -> None:
        seat.calendar = days
        seat.meter.relocate(days.month, self.clock.now())
        seat.drain()

    def _seats_of(self, tenant: str) -> list[Seat]:
        return list(self._by_tenant.get(tenant, {}).values())

    def lock(self, tenant: str, session_id: str) -> AbstractAsyncContextManager[None]:
        """One join or start of a session at a time."""
        return self._locks.hold((tenant, session_id))

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
        return bool(self._tasks) or self.accounts.busy or self.turns.busy

    async def idle(self) -> None:
        """Waits until nothing that was begun here is under way."""
        while self.busy or self.claims.waiting:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.accounts.idle()
            await self.claims.idle()


def _is_only_watched(seat: Seat) -> bool:
    """Whether sockets here see a session that only other processes keep alive."""
    return bool(seat.members) and not seat.meter.sockets


def _misses(seat: Seat, message: dict[str, Any]) -> bool:
    """Whether a message to a session shows that something was told of it before that was not
    heard here."""
    return bool(message.get("moved")) and seat.meter.misses(move_of(message))


def _is_own(seat: Seat, move: Move, node: str) -> bool:
    """Whether a move is the step that the seat has asked for: its answer is on its way, and
    says to whom it is an answer."""
    asked, version = seat.meter.asked, move.session.standing.version
    return asked is not None and node == seat.node and version == asked.standing.version
