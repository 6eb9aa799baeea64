"""A local session: one session's meter, sockets and timers on this process.

The local session is the meter's shell, in the manner of sans-I/O libraries. After every call of the
meter, ``drain`` carries out the meter's effects and arms the meter's one timer anew.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from protocol import limits
from protocol.metering.effects import Ask, Effect, LeaveSession, Probe, Push, Refuse, Reply, Show
from protocol.metering.meter import Meter
from protocol.metering.session import Identity, SessionState
from protocol.metering.snapshots import snapshot
from protocol.metering.states import Phase
from protocol.metering.steps import Step
from protocol.wire import messages
from protocol.wire.codec import encode
from protocol.wire.errors import ErrorCode, PeerError, ProtocolError, ServiceError
from server import limits as server_limits
from server.counters.accounts import Account
from server.counters.calendars import Calendar
from server.runtime.clock import Clock
from server.runtime.isolation import failed, isolated
from server.runtime.metrics import Metrics
from server.runtime.timers import Timer, Timers
from server.runtime.waiting import Signal
from server.sessions.pending_requests import PendingRequest, Subscriber, fail, refusal
from server.sessions.step_pipeline import StepPipeline, retry_after_ms
from server.sessions.ticks import TickService
from server.transport.frames import text_frame
from storage.redis.live import StepOutcome


class SessionOwner(Protocol):
    """What a local session needs of the process around it."""

    clock: Clock
    timers: Timers
    pipeline: StepPipeline
    metrics: Metrics
    node: str

    def leave(self, local: "LocalSession") -> None:
        """Clears a local session that has ended or that nothing here needs."""

    def release(self, local: "LocalSession") -> None:
        """Leaves the session if nothing on this process needs it any more."""

    def keep(self, step: Step, session: SessionState, entry_id: str) -> None:
        """Keeps the records that an accepted step appended, until Postgres has them.

        ``session`` is the session after the step. ``entry_id`` is empty if the reply with the
        entry's id was lost.
        """

    def changed(self, local: "LocalSession", outcome: StepOutcome) -> None:
        """Takes over the account's figures after a step of this session."""

    def look_at_holders(self, local: "LocalSession") -> None:
        """Checks whether the recalled holders of a counter have answered."""

    def ask_elsewhere(self, identity: Identity, came_at: int | None = None) -> None:
        """Asks the session's other processes for a proof of life.

        ``came_at``: a socket joined here at that instant. Then the other processes also report
        their newest proof of life.
        """

    def tell_proven(self, identity: Identity, until_ms: int, at_ms: int, **more: object) -> None:
        """Answers the processes that have asked for a proof of life.

        Ticks may go out up to ``until_ms``; the last proof of life came in at ``at_ms``.
        ``came_at`` is the instant since which this process asks other processes itself; with
        ``gone``, the last socket here has gone at ``at_ms``.
        """


def free_day_of(identity: Identity, days: Calendar) -> tuple[int, int] | None:
    """The day, as (begin, end), that daily free time is of."""
    return days.day_around(identity.started_at) if identity.terms.free_scope == "day" else None


class LocalSession:
    """One session on this process."""

    __slots__ = (
        "_held_until", "_holders", "_retry", "_timer", "_unheard", "account", "calendar",
        "ended_here", "failures", "meter", "node", "owner", "pending_joins", "seen_counts",
        "service", "settled",
    )  # fmt: skip

    def __init__(
        self, owner: SessionOwner, meter: Meter, account: Account, calendar: Calendar, node: str
    ) -> None:
        self.owner = owner
        self.meter = meter
        self.service = TickService(self)
        """The session's sockets on this process, and their ticks."""
        self.account = account
        self.seen_counts = account.event_counts
        """The account's event counts that this session has handled."""
        self.ended_here = False
        """This process made the step that ended the session."""
        self.calendar = calendar
        self.node = node
        """The process in whose name steps are made: a dead process while its sessions are swept."""
        self.failures = 0
        self.pending_joins = 0
        """Joins in progress."""
        self.settled = Signal()
        """Set while no step of this session is on its way or waits."""
        self._timer: Timer | None = None
        self._retry: Timer | None = None
        self._holders: Timer | None = None
        """Due when the holders of the counter's rest should have answered."""
        self._held_until = 0
        """Deadline of the wait for what other sessions hold; 0: no step waits."""
        self._unheard: tuple[Step, ...] = ()
        """Steps since the last reply that Redis may have made."""

    # --- Subscribers -------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The session's name across tenants."""
        return self.meter.session.key

    @property
    def subscribers(self) -> list[Subscriber]:
        """The sockets, as they are now."""
        return self.service.subscribers

    @contextlib.contextmanager
    def join_pending(self) -> Iterator[None]:
        """Keeps the local session while a socket's join reads from Redis.

        Without this, the local session looks unused meanwhile, and any message on the account's
        channel would clear it. The socket would then belong to a local session that hears of no
        step, and would miss the session's end.
        """
        self.pending_joins += 1
        try:
            yield
        finally:
            self.pending_joins -= 1

    # --- Steps ---------------------------------------------------------------------

    def free_day(self) -> tuple[int, int] | None:
        """The day of the start, as (begin, end), for daily free time."""
        return free_day_of(self.meter.session.identity, self.calendar)

    def answered(self, step: Step, outcome: StepOutcome) -> None:
        """Handles the reply of Redis to a step."""
        self.failures = 0
        reply = outcome.reply
        assert reply is not None
        self._keep(step, reply, outcome.entry_id)
        if reply.session is not None and not self._is_ours(reply, step):
            return
        if outcome.change is not None:
            self.owner.changed(self, outcome)
        if outcome.held and self._waits_for_holders():
            return
        self._held_until = 0
        self._count(step, reply)
        self.meter.response_ms = self.owner.pipeline.response_ms(step.before.identity.tenant)
        self.meter.granted(reply, self.owner.clock.now())
        if outcome.change is not None and outcome.change.version < self.account.projection.version:
            # A later change arrived first, while the meter did not know this reply's grant.
            self.meter.changed(self.owner.clock.now())
        self.drain()
        if self._holders is None and self.meter.shared_limit is not None:
            at = self.owner.clock.now() + limits.RECALL_WAIT_MS
            self._holders = self.owner.timers.deadline(at, self._ask_holders, self.account)

    def _keep(self, step: Step, reply: Reply, entry_id: str) -> None:
        """Keeps the records of this step, or of an earlier unanswered one."""
        unheard, self._unheard = self._unheard, ()
        session = reply.session
        if session is None:
            return
        if reply.accepted:
            self.ended_here = session.standing.phase is Phase.ENDED and self.node == self.owner.node
            self.owner.keep(step, session, entry_id)
        else:
            for made in unheard:
                if made.standing == session.standing:
                    self.owner.keep(made, session, "")
                    break

    def _is_ours(self, reply: Reply, step: Step) -> bool:
        """Whether a session that was found at its start is this user's."""
        assert reply.session is not None
        found, wanted = reply.session.identity, step.before.identity
        if step.before.standing.version or found.user_id == wanted.user_id:
            return True
        error = PeerError(ErrorCode.FORBIDDEN, "the session belongs to another user")
        self._fail_all(error)
        self.owner.leave(self)
        return False

    def _count(self, step: Step, reply: Reply) -> None:
        metrics = self.owner.metrics
        if reply.accepted:
            uncovered_ms = step.standing.uncovered_ms - step.before.standing.uncovered_ms
            metrics.uncovered.inc(uncovered_ms / 1000)
            metrics.notices.inc(len(step.notices))
        outcome = "accepted" if reply.accepted else "refused" if reply.refused_by else "stale"
        metrics.claims.labels("left" if reply.left else outcome).inc()
        limit = reply.refused_by or (reply.session.grant.final if reply.session else None)
        if limit:
            metrics.grants_refused.labels(limit).inc()

    def unanswered(self, error: ProtocolError, *, made: bool | None) -> None:
        """Fails the waiting requests, and asks for the step again later.

        ``made`` is False if the step was not made, and None if that is unknown.

        A failed start is refused for good, so that no session begins behind the client's back. If
        Redis made the step after all, that session has lost its socket.
        """
        self.failures += 1
        self._held_until = 0
        if made is None and self.meter.asked is not None:
            # Redis most likely made the first of these steps, or one of the last.
            before = self._unheard
            self._unheard = (
                *before[:1],
                *before[1:][2 - server_limits.UNANSWERED_STEPS_KEPT_MAX :],
                self.meter.asked,
            )
        self._fail_all(error)
        if self.meter.session.standing.version == 0:
            if made is False:
                self.owner.leave(self)
                return
            for subscriber in self.subscribers:
                self.service.remove(subscriber)
                isolated("member", subscriber.left, self, session=self.key)
                self.meter.detach(self.owner.clock.now(), self.owner.clock.now())
        at = self.owner.clock.now() + retry_after_ms(self.failures)
        self._retry = self.owner.timers.deadline(at, self._ask_again, self.account)

    def _waits_for_holders(self) -> bool:
        """Whether a step that lacks only what others hold is tried again.

        The step is tried again as soon as the holders give back what they do not need, and at the
        latest when the wait is over.
        """
        now_ms = self.owner.clock.now()
        self._held_until = self._held_until or now_ms + limits.RECALL_WAIT_MS
        if now_ms >= self._held_until:
            return False
        self._retry = self.owner.timers.deadline(self._held_until, self._try_again, self.account)
        return True

    @property
    def waits_for_holders(self) -> bool:
        """Whether a step waits for what other sessions hold."""
        return self._held_until > 0

    def freed(self) -> None:
        """Tries a waiting step again after a session gave something back."""
        if self._held_until and self._retry is not None:
            self._retry.cancel()
            self._try_again(self.owner.clock.now())

    def _ask_holders(self, _: int) -> None:
        """Checks the holders that were recalled when the last grant was made."""
        self._holders = None
        if self.meter.shared_limit is not None:
            self.owner.look_at_holders(self)

    def _try_again(self, _: int) -> None:
        self._retry = None
        step = self.meter.asked
        assert step is not None
        is_last = self.owner.clock.now() >= self._held_until
        self.owner.pipeline.ask(self, msgspec.structs.replace(step, recalled=True, insists=is_last))

    def _fail_all(self, error: ProtocolError) -> None:
        for pending in self.meter.abandon():
            isolated("answer", fail, pending, error, session=self.key)

    def _ask_again(self, now_ms: int) -> None:
        self._retry = None
        self.meter.unanswered(now_ms)
        self.drain()

    def recover(self) -> None:
        """Retries the session soon after a bug of ours interrupted its work.

        If a step's reply is still due, that reply does so instead. The attempts become rarer.
        """
        self.failures += 1
        if self.meter.asked is None:
            if self._retry is not None:
                self._retry.cancel()
            at = self.owner.clock.now() + retry_after_ms(self.failures)
            self._retry = self.owner.timers.deadline(at, self._ask_again, self.account)

    # --- The meter -------------------------------------------------------------------

    def drain(self) -> None:
        """Carries out the meter's effects, and arms its timer."""
        leaves = False
        for effect in self.meter.effects():
            if isinstance(effect, LeaveSession):
                leaves = True
            elif not (leaves and isinstance(effect, Ask)):
                # Waiting requests still get their answers, but no further step is made.
                try:
                    self._carry_out(effect)
                except Exception:
                    failed("effect", session=self.key, effect=type(effect).__name__)
                    self._not_carried_out(effect)
        if leaves:
            self.owner.leave(self)
            self.settled.set()
            return
        if self.meter.is_busy:
            self.settled.clear()
        else:
            self.settled.set()
        now_ms = self.owner.clock.now()
        self._arm()
        if self.meter.counting:
            for group in self.service.groups:
                group.arm(now_ms)
        self.owner.release(self)

    def _not_carried_out(self, effect: Effect) -> None:
        """Fails the effect's request, or drops a step that cannot be made."""
        if isinstance(effect, Ask):
            self._retry = self.owner.timers.deadline(
                self.owner.clock.now(), self._not_asked, self.account
            )
        elif not isinstance(effect, LeaveSession | Probe):
            error = ServiceError("the server failed to answer; ask again")
            isolated("answer", fail, effect.token, error, session=self.key)

    def _not_asked(self, _: int) -> None:
        self._retry = None
        self.unanswered(ServiceError("the session store accepts no writes now"), made=False)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Ask(step) if step.waits_for_others:
                self._not_carried_out(effect)
            case Ask(step):
                self.owner.pipeline.ask(self, step)
            case Push(message, token):
                self._push(message, token)
            case Show(seq, token, only):
                self._show(token, seq, only=only)
            case Refuse(token, limit):
                fail(token, refusal(limit))
            case Probe():
                self.service.probe()

    def _arm(self) -> None:
        due_at = self.meter.timer()
        if self._timer is not None:
            if self._timer.at == due_at:
                return
            self._timer.cancel()
            self._timer = None
        if due_at is not None:
            self._timer = self.owner.timers.deadline(due_at, self._fire, self.account)

    def _fire(self, now_ms: int) -> None:
        due_at = self._timer.at if self._timer is not None else now_ms
        self._timer = None
        counting = self.meter.counting
        try:
            self.meter.handle_timer(now_ms)
            self.drain()
        except Exception:
            failed("session", session=self.key)
            self.recover()
        if counting and not self.meter.counting:
            lateness_ms = max(0, self.owner.clock.now() - due_at)
            self.owner.metrics.stop_lateness.observe(lateness_ms / 1000)

    def close(self) -> None:
        """Stops the timers, and fails the requests that still wait."""
        self.settled.set()
        self.account.projection.grant(self.meter.session.identity.session_id, None)
        if self.meter.session.standing.phase is Phase.ENDED:
            self._fail_all(refusal(None))
        else:
            self._fail_all(ServiceError("this process does not serve the session any more"))
        self._held_until = 0
        self.service.close()
        for timer in (self._timer, self._retry, self._holders):
            if timer is not None:
                timer.cancel()

    # --- Messages ----------------------------------------------------------------------

    def snapshot(
        self,
        request_id: int | None = None,
        missed: Iterable[bytes] = (),
        seq: int | None = None,
    ) -> messages.Session:
        """The session as it stands now."""
        return snapshot(self.meter, self.owner.clock.now(), tuple(missed), request_id, seq)

    def _push(
        self, message: messages.ServerMessage | bytes, pending: PendingRequest | None
    ) -> None:
        encoded = message if isinstance(message, bytes) else encode(message)
        self._broadcast(text_frame(encoded), pending)
        if pending is None:
            return
        if pending.shown is not None:
            pending.shown(message)
        elif pending.subscriber is not None:
            if pending.request_id is not None:
                # The answer is the same message, with the request's own id in front.
                encoded = b'{"id":%d,' % pending.request_id + encoded[1:]
            pending.subscriber.send(text_frame(encoded))

    def show(self, pending: PendingRequest) -> None:
        """Answers a request with the snapshot."""
        self._show(pending, self.meter.notices.seq, only=True)

    def _show(self, pending: PendingRequest | None, seq: int, *, only: bool) -> None:
        if not only and self.subscribers:
            self._broadcast(text_frame(encode(self.snapshot(seq=seq))), pending)
        if pending is None:
            return
        answer = self.snapshot(pending.request_id, pending.missed, seq)
        if pending.shown is not None:
            pending.shown(answer)
        elif pending.subscriber is not None:
            pending.subscriber.send(text_frame(encode(answer)))

    def _broadcast(self, frame: bytes, pending: PendingRequest | None) -> None:
        tally = self.owner.metrics.tally
        for subscriber in self.subscribers:
            if pending is None or subscriber is not pending.subscriber:
                tally.messages_pushed += isolated("push", subscriber.send, frame, session=self.key)
