"""The local sessions of a process: how they are made and cleared.

``server.sessions.registry`` joins and leaves sessions; ``server.sessions.channel_events`` decides
what a local session hears of other processes. A local session needs its account, its tenant's
calendar and its counters.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog

from protocol import limits
from protocol.metering.meter import Meter
from protocol.metering.projection import AccountProjection
from protocol.metering.session import Grant, Identity, SessionState, unstarted
from protocol.metering.shared_months import SessionCounters, SharedMonths
from protocol.metering.states import Phase
from protocol.metering.steps import Step
from protocol.wire.errors import ErrorCode, PeerError
from server.counters.accounts import Accounts
from server.counters.calendars import Calendar
from server.counters.loading import Loader
from server.counters.tenants import Tenants
from server.runtime.clock import Clock
from server.runtime.isolation import failed, isolated
from server.runtime.metrics import Metrics
from server.runtime.timers import Timers
from server.runtime.turns import Turns
from server.runtime.waiting import Locks
from server.sessions.holder_looks import HolderLooks
from server.sessions.local_session import LocalSession
from server.sessions.session_counts import SessionCounts
from server.sessions.step_pipeline import StepPipeline, retry_after_ms
from server.sessions.unflushed import UnflushedEntries
from storage.redis.encoding import burn_line_at
from storage.redis.live import FoundSession, Live, LiveError, StepOutcome

log = structlog.get_logger()


class SessionTable:
    """The local sessions of a process, by the session's key.

    The table is the ``SessionOwner`` of each.
    """

    def __init__(
        self,
        live: Live,
        loader: Loader,
        clock: Clock,
        timers: Timers,
        metrics: Metrics,
        uncovered_ms: int,
    ) -> None:
        self.live = live
        self.loader = loader
        self.clock = clock
        self.timers = timers
        self.metrics = metrics
        self.uncovered_ms = uncovered_ms
        self.node = live.node
        self.turns = Turns()
        self.pipeline = StepPipeline(live, loader, clock, metrics, self.turns)
        self.accounts = Accounts(live, loader, self.turns)
        self.unflushed = UnflushedEntries()
        self._unheard = itertools.count()
        self.local_sessions: dict[str, LocalSession] = {}
        self._by_tenant: dict[str, dict[str, LocalSession]] = {}
        self.counts = SessionCounts(clock)
        self.touched: Callable[[LocalSession], None] = lambda _: None
        """Called after anything that may have changed what a session shows, and when it is cleared.
        """
        self.look_at_holders = HolderLooks(self).ask
        self.months = SharedMonths()
        self.tenants = Tenants(live, loader, self.accounts)
        self.before_joining: Callable[[FoundSession], Awaitable[None]] | None = None
        """Checks a session that was found, before it gets a local session; see ``Orphans``."""
        self.provided_told: Callable[[str, str], None] | None = None
        """Told of tenant and session when an outside clock has given its word to another process.
        """
        self.reconcile_due = False
        """This process may be noted in Redis for a session that it does not serve; see ``Orphans``.
        """
        self._locks = Locks()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __iter__(self) -> Iterator[LocalSession]:
        return iter(list(self.local_sessions.values()))

    def release(self, local: LocalSession) -> None:
        """Clears a local session that nothing on this process needs.

        A local session stays while it has a socket here, a join in progress, a step on its way, an
        event that waits for its turn, or a grace that this process looks after.
        """
        standing = local.meter.session.standing
        self.counts.update(local)
        self.touched(local)
        is_taken = local.subscribers or local.pending_joins or local.meter.sockets
        idle = not is_taken and not local.meter.is_busy
        if idle and standing.grace_until is None:
            self.leave(local)

    def leave(self, local: LocalSession) -> None:
        """Clears a local session that has ended or that nothing here needs."""
        if self.local_sessions.get(local.key) is not local:
            return
        session = local.meter.session
        if (
            local.subscribers
            and session.standing.version
            and session.standing.phase is not Phase.ENDED
        ):
            return  # they go on watching it
        if not session.standing.version and local.failures > 1:
            self.reconcile_due = True  # Redis may have carried out an unanswered start
        del self.local_sessions[local.key]
        self._list(local, listed=False)
        for subscriber in local.subscribers:
            isolated("member", subscriber.left, local, session=local.key)
        local.close()
        self.counts.remove(local)
        self.touched(local)
        if session.standing.phase is Phase.ENDED:
            reason = session.standing.reason or ""
            self.metrics.sessions_ended.labels(reason).inc()
        self.run(self._forget(local))

    async def _forget(self, local: LocalSession) -> None:
        """Releases what a cleared local session has used."""
        session = local.meter.session
        identity = session.identity
        await self.turns.take(local.account)
        try:
            await self.accounts.close(local.account)
        finally:
            await self.tenants.leave(identity)
        # The step that ends a session also detaches the process that makes the step.
        if session.standing.phase is Phase.ENDED and not local.ended_here:
            await self.live.leave(identity.tenant, identity.session_id, self.node)

    async def insist(self, local: LocalSession, tell: Callable[[], Awaitable[None]]) -> bool:
        """Informs Redis, and tries again until it answers.

        False: the session has no socket here any more.
        """
        for failures in itertools.count(1):
            try:
                await tell()
                break
            except LiveError as error:
                log.warning("redis_not_informed", session=local.key, error=str(error))
                await asyncio.sleep(retry_after_ms(failures) / 1000)
            if self.local_sessions.get(local.key) is not local or not local.meter.sockets:
                return False
        return True

    def _list(self, local: LocalSession, *, listed: bool) -> None:
        """Lists a local session by account and tenant, or removes it."""
        identity = local.meter.session.identity
        if listed:
            local.account.local_sessions[identity.session_id] = local
            self._by_tenant.setdefault(identity.tenant, {})[local.key] = local
            return
        del local.account.local_sessions[identity.session_id]
        of_tenant = self._by_tenant[identity.tenant]
        del of_tenant[local.key]
        if not of_tenant:
            del self._by_tenant[identity.tenant]

    def check_room(self, local: LocalSession) -> None:
        """Raises ``rate_limited`` if the account has its most live sessions already."""
        check_room(local.account.projection, len(local.account.local_sessions))

    def keep(self, step: Step, session: SessionState, entry_id: str) -> None:
        """Keeps the records that an accepted step appended, until Postgres has them.

        ``session`` is the session after the step.
        """
        if step.records:
            # If the reply was lost, the entry's id is unknown. The id that is made here is later
            # than the true one, so the watermark does not pass it before the entry is flushed.
            entry_id = entry_id or f"{self.clock.now()}-{next(self._unheard)}"
            partition = self.live.keys.partition(step.before.identity.tenant)
            self.unflushed.keep(partition, entry_id, step.records, session, step.notices)

    def changed(self, local: LocalSession, outcome: StepOutcome) -> None:
        """Updates the account's projection after a step of this process."""
        assert outcome.change is not None
        assert outcome.reply is not None
        session = outcome.reply.session
        line = None
        if session is not None and session.standing.phase is not Phase.ENDED:
            line = burn_line_at(session.identity, session.standing)
        session_id = local.meter.session.identity.session_id
        self.accounts.changed(local.account, outcome.change, session_id, line)

    async def local_session_of(self, session: SessionState) -> LocalSession:
        """The local session of a session, made if there is none.

        Setting it up opens its account, its calendar and its counters.
        """
        existing = self.local_sessions.get(session.key)
        if existing is not None:
            return existing
        identity = session.identity
        account = await self.accounts.open(identity.tenant, identity.account_id)
        try:
            days = await self.tenants.enter(identity)
        except BaseException:
            await self.accounts.close(account)
            raise
        counters = self.months.of(identity.tenant, identity.user_id)
        try:
            meter = await self.meter_of(session, account.projection, days, counters)
        except BaseException:
            await self.tenants.leave(identity)
            await self.accounts.close(account)
            raise
        local = LocalSession(self, meter, account, days, self.node)
        self.local_sessions[session.key] = local
        self._list(local, listed=True)
        if not self.tenants.is_current(identity, days):
            self.run(self.read_calendar(identity.tenant))  # it changed during the setup
        return local

    async def meter_of(
        self,
        session: SessionState,
        projection: AccountProjection,
        days: Calendar,
        counters: SessionCounters,
    ) -> Meter:
        """A meter of a session, which knows the session's months."""
        identity = session.identity
        meter = Meter(session, projection, days.month, self.uncovered_ms)
        meter.counters = counters
        if identity.terms.counts_minutes:
            month = days.month(self.clock.now())
            found = await self.live.month(identity.tenant, identity.user_id, month)
            meter.know_months(*found)
            meter.changed(self.clock.now())
        return meter

    async def free_left(self, identity: Identity, free_day: tuple[int, int] | None) -> int:
        """What is left of a shared allowance, in ms.

        The step that takes the allowance checks it again.
        """
        used_ms = await self.live.free_used(identity)
        if used_ms is None:
            await self.loader.free_time(identity, free_day)
            used_ms = await self.live.free_used(identity) or 0
        return max(0, identity.terms.free_ms - used_ms)

    def ask_elsewhere(self, identity: Identity, came_at: int | None = None) -> None:
        """Asks the session's other processes for a proof of life.

        ``came_at``: a socket joined here at that instant. Then the other processes also report
        their newest proof of life.
        """
        message: dict[str, Any] = {"prove": identity.session_id, "node": self.node}
        if came_at is not None:
            message["came_at"] = came_at
        self.run(self._tell_or_not(identity, message))

    def tell_proven(self, identity: Identity, until_ms: int, at_ms: int, **more: Any) -> None:
        """Answers the processes that have asked for a proof of life.

        Ticks may go out up to ``until_ms``; the last proof of life came in at ``at_ms``.
        ``came_at`` is the instant since which this process asks other processes itself; with
        ``gone``, the last socket here has gone at ``at_ms``.
        """
        message: dict[str, Any] = {"proven": identity.session_id, "node": self.node}
        message |= {"until": until_ms, "at": at_ms, **more}
        self.run(self._tell_or_not(identity, message))

    async def _tell_or_not(self, identity: Identity, message: dict[str, Any]) -> None:
        """Publishes a message, unless Redis does not answer.

        Until Redis answers again, observers get no ticks.
        """
        with contextlib.suppress(LiveError):
            await self.live.tell(identity.tenant, identity.account_id, message)

    async def read_calendar(self, tenant: str) -> None:
        """Applies the organisation's current time zone to the tenant's live sessions."""
        for local in self.local_sessions_of(tenant):
            await self.turns.take(tenant)
            days = await self.tenants.calendar_of(local.meter.session.identity)
            if days.zone.key != local.calendar.zone.key:
                isolated_session(local, self._relocate, local, days)

    def _relocate(self, local: LocalSession, days: Calendar) -> None:
        local.calendar = days
        local.meter.relocate(days.month, self.clock.now())
        local.drain()

    def local_sessions_of(self, tenant: str) -> list[LocalSession]:
        """The local sessions of a tenant."""
        return list(self._by_tenant.get(tenant, {}).values())

    def lock(self, tenant: str, session_id: str) -> AbstractAsyncContextManager[None]:
        """Admits one join or start of a session at a time."""
        return self._locks.hold((tenant, session_id))

    def run(self, work: Any) -> None:
        """Starts work in the background; a failure is logged."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("registry_task_failed", error=str(task.exception()))

    @property
    def busy(self) -> bool:
        """Whether background work is under way."""
        return bool(self._tasks) or self.accounts.busy or self.turns.busy

    async def idle(self) -> None:
        """Waits until no background work is under way."""
        while self.busy or self.pipeline.waiting:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.accounts.idle()
            await self.pipeline.idle()


def new_session(identity: Identity, now_ms: int) -> SessionState:
    """A session before its first step."""
    own_ms = 0 if identity.free_key else identity.terms.free_ms
    return SessionState(identity, unstarted(Phase.PAUSED, now_ms, own_ms), Grant())


def check_room(projection: AccountProjection, here: int = 0) -> None:
    """Raises ``rate_limited`` if the account has its most live sessions already.

    ``here`` is the number of its sessions on this process, with the new one.
    """
    if max(here, len(projection.lines) + 1) > limits.LIVE_SESSIONS_PER_ACCOUNT_MAX:
        raise PeerError(ErrorCode.RATE_LIMITED, "this account has too many live sessions")


def isolated_session(local: LocalSession, act: Callable[..., object], *arguments: object) -> None:
    """Does something to one session of many.

    After a failure, this session is retried soon.
    """
    try:
        act(*arguments)
    except Exception:
        failed("session", session=local.key)
        local.recover()
