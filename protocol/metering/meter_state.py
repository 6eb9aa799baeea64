"""A process's view of a session: standing, counters and what follows.

The meter (``protocol.metering.meter``) decides on this basis: the last accepted step, the
projections of account and months, and the notices sent so far. Everything here answers questions,
or computes anew after one of these has changed.
"""

import msgspec

from protocol import limits
from protocol.metering import limit_positions
from protocol.metering.counted_time import CountedTime
from protocol.metering.cover import covered_until, covered_with
from protocol.metering.doubt import Doubt
from protocol.metering.effects import Effect, RemoteStep, Show, Token
from protocol.metering.intents import Intent, Intents
from protocol.metering.moment import Moment
from protocol.metering.notices import Notices
from protocol.metering.projection import AccountProjection, Granted, MonthProjection, burn_line_of
from protocol.metering.quota import NO_REST, MonthOf, Rest, month_ends_at
from protocol.metering.session import SessionState, Standing
from protocol.metering.shared_months import SessionCounters
from protocol.metering.states import Event, Phase
from protocol.metering.steps import StartBasis, Step
from protocol.metering.terms import MINUTE_MS


class MeterState:
    """One session as one process sees it, at any instant."""

    response_ms = 0
    """Response time of Redis, measured by the shell. Claims are made this much ahead."""
    _yields_until = 0
    """Until then the session takes no more of a counter than it needs to run on: another session
    waits for the rest."""
    _final_asked_ms = -1
    """The end of the final grant for which Redis was already asked once more whether it is the
    last."""

    _in_vain = False
    """The last claim could ask for nothing more: the session has its share (``_share_until``), or
    its grant is as long as any offer."""

    kept_open: str | None = None
    """The limit at which Redis calls the grant final, but this process does not, because holders of
    the rest are silent. None: no limit."""

    _since: int | None = None
    """When the time that a return begins has begun, by an outside clock; None: with the return."""

    _doubt: Doubt | None = None
    """The doubt whether the sockets before the last join are alive; None: no doubt."""

    def __init__(
        self,
        session: SessionState,
        account: AccountProjection,
        month_of: MonthOf,
        uncovered_ms: int = limits.UNCOVERED_MS_DEFAULT,
    ) -> None:
        self.session = session
        self.account = account
        self.month_of = month_of
        self.uncovered_ms = uncovered_ms
        self.member = self.org = MonthProjection()
        # The newest figures of those months that sessions here received; the shell shares them.
        self.counters = SessionCounters()
        self._ends = ("", 0)
        """The counters' month, and the instant at which it ends."""
        self.free_left_ms = 0
        self.sockets = 0
        """Sockets here that keep the session alive."""
        self.proof_at = settled_at(session)
        """The last proof of life that arrived here. Settled time was proven to some process; the
        time up to the standing was only counted."""
        self.promised_until = 0
        """The instant, in the future, up to which a heartbeat over HTTP counts as a proof."""
        self.served_from_ms = session.standing.elapsed_ms
        """Counted time at which the first of the sockets here joined."""
        self._farewell_at: int | None = None
        """When the user last took leave of the session here, in a clean way."""
        self.notices = Notices(session.standing)
        self.positions: dict[str, int] = {}
        """Where each limit binds, in counted time; see ``protocol.metering.limit_positions``."""
        self._intents = Intents()
        self._effects: list[Effect] = []
        self._asked: Step | None = None
        self._limited_ms: int | None = None
        """Counted time at which a limit stopped counting; the stop is not recorded yet."""
        self.basis: StartBasis | None = None
        """What the start was decided from, if the session starts here."""
        self._wanted = False
        """A claim is due, regardless of the deadlines."""
        self._refreshed = self._refreshing = False
        """A limit was changed: a claim that gives back the excess is due, or on its way."""
        self._unnoted = False
        """This process has sockets, but no accepted step has noted that yet."""
        self._hopes = False
        """The grant is final but need not be; while that holds, a claim is due."""
        self._recalled: set[bool] = set()
        """What others needed while a step was on its way: credits (False), minutes (True)."""
        self._probed_ms = -1
        """The minute's end up to which sockets were probed for a proof of life."""
        self._exhausted = False
        """The uncovered time is used up too."""
        self._later: tuple[RemoteStep, ...] = ()
        """Remote steps that follow a step not known here. That step may be this process's own,
        whose answer is on its way."""
        self._leaving = False
        """The last claim of this process, which leaves the session to others, is on its way."""
        self._heard_at = session.standing.at
        """When Redis last had a new state of the session, or did not answer."""
        self._stand_on(session, session.standing.at)

    @property
    def alive_at(self) -> int:
        """The last known proof of life; a heartbeat's lies in the future."""
        alive_at = max(self.proof_at, self.promised_until)
        return alive_at if self._doubt is None else min(alive_at, self._doubt.proven_at)

    @property
    def is_in_doubt(self) -> bool:
        """Whether the sockets before the last join are being probed."""
        return self._doubt is not None

    @property
    def is_losing(self) -> bool:
        """Whether the last socket here is gone, perhaps unknown to Redis."""
        return not self.sockets and self._intents.includes(Event.LOST)

    @property
    def doubted_since(self) -> int | None:
        """When the socket joined that caused the doubt; None: no doubt."""
        return None if self._doubt is None else self._doubt.came_at

    @property
    def phase(self) -> Phase:
        """The state that the sockets of this process see."""
        return Phase.STOPPING if self._limiting else self.session.standing.phase

    @property
    def _limiting(self) -> bool:
        """Whether a limit is reached whose stop is not recorded yet."""
        return self._limited_ms is not None

    @property
    def counting(self) -> bool:
        """Whether time runs, so that ticks are due."""
        return self.session.standing.phase is Phase.ACTIVE and not self._limiting

    def _visible_state(self, now_ms: int) -> tuple[object, ...]:
        """What sockets see beside ticks: the state, and where time stopped."""
        if self.counting:
            return (self.phase, self.session.standing.gaps[-1:])
        return (self.phase, self.elapsed_at(now_ms), self.session.standing.free_ms)

    @property
    def asked(self) -> Step | None:
        """The step that is on its way to Redis."""
        return self._asked

    @property
    def is_busy(self) -> bool:
        """Whether a step is on its way or an event waits.

        A client's request may wait for a proof of life, and the loss of the last socket behind it.
        """
        return self._asked is not None or bool(self._intents)

    def elapsed_at(self, now_ms: int) -> int:
        """Counted time at ``now_ms``.

        Counted time never exceeds the grant, except for uncovered time. That does not exceed a
        limit that is known here.
        """
        counted_time = self.counted_time
        elapsed_ms = counted_time.elapsed_at(now_ms)
        if not counted_time.running:
            return elapsed_ms
        if self._limited_ms is not None:
            return min(self._limited_ms, max(counted_time.settled_ms, counted_time.run_on(now_ms)))
        if elapsed_ms > counted_time.granted_ms and counted_time.revision != self._revision:
            self._bind(now_ms)
            elapsed_ms = counted_time.elapsed_at(now_ms)
        return elapsed_ms

    def shown_at(self, now_ms: int) -> int:
        """Counted time as the sockets see it; it never steps back.

        If the step on its way ends the running time, the result is the end that this step leaves.
        If others draw on the same counter, the answer to a claim may leave less than is known here:
        time beyond the claim is shown when the answer is there.
        """
        elapsed_ms, asked = self.elapsed_at(now_ms), self._asked
        if self._doubt is not None and self._doubt.is_told and self.counting:
            elapsed_ms = min(elapsed_ms, self.proven_ms(now_ms))
        if not self.counting or (asked is None and not self._intents):
            return elapsed_ms
        for intent in self._intents:
            if intent.ends_at_request and intent.at < now_ms:
                elapsed_ms = min(elapsed_ms, self.elapsed_at(intent.at))
            elif intent.event is Event.LOST and not self.sockets:
                elapsed_ms = min(elapsed_ms, self.proven_ms(now_ms))
        if asked is None:
            return elapsed_ms
        if self._halting:
            return min(elapsed_ms, asked.standing.elapsed_ms)
        is_unsure = elapsed_ms > self.counted_time.granted_ms and not self.counted_time.is_sure
        if is_unsure and not self._draws_alone:
            return min(elapsed_ms, max(self.counted_time.granted_ms, asked.standing.elapsed_ms))
        return elapsed_ms

    def proven_ms(self, now_ms: int) -> int:
        """Counted time at the last proof of life: what may be settled."""
        if self.counted_time.running:
            return self.elapsed_at(min(now_ms, self.alive_at))
        return self.counted_time.proven_ms(self.alive_at)

    def window_ms(self, now_ms: int) -> int:
        """How long ticks may follow a proof of life, in ms.

        The result is a fraction of the time proven since the first socket here joined, so that no
        more than this fraction can be lost.
        """
        proven_ms = self.elapsed_at(min(now_ms, self.alive_at)) - self.served_from_ms
        part_ms = proven_ms // (self.counted_time.speed * limits.UNPROVEN_SHARE)
        return max(0, min(part_ms, limits.PROOF_FRESH_MS_MAX))

    def fresh_until(self, now_ms: int) -> int:
        """The instant up to which the last proof of life allows ticks."""
        if self._doubt is not None:
            return 0  # time shown now might have to be taken back
        return self.alive_at + self.window_ms(now_ms)

    def credits_at(self, now_ms: int) -> int:
        """The account's balance in micro-credits, after the burn of all its sessions.

        This session counts with its shown time.
        """
        account = self.account
        micros = account.credits_micros(now_ms)
        line = account.lines.get(self.session.identity.session_id)
        if line is not None and line.running and line.price_micros:
            shown_ms = self.shown_at(now_ms)
            if shown_ms != line.elapsed_at(now_ms):
                micros += line.cost_at(now_ms) - line.cost_of(shown_ms)
        return max(0, micros) if account.gross_micros >= 0 else micros

    def paid(self, elapsed_ms: int) -> bool:
        """Whether the time at ``elapsed_ms`` costs credits."""
        terms = self.session.identity.terms
        return terms.price_micros > 0 and elapsed_ms >= self.session.standing.free_ms

    def timer(self) -> int | None:
        """The instant of the next deadline; None: no deadline until something arrives."""
        due_at, doubt = self._deadline(), self._doubt
        if doubt is None or doubt.is_over:
            return due_at
        return doubt.until if due_at is None else min(due_at, doubt.until)

    def _deadline(self) -> int | None:
        """As ``timer``, without the deadline of a doubt."""
        standing = self.session.standing
        first = self._intents.first
        if first is not None and self._asked is None and self._lacks_proof(first, first.at):
            return first.at + limits.STOP_PROOF_WAIT_MS
        if standing.phase is not Phase.ACTIVE:
            return self._grace_end if not self._intents and self._asked is None else None
        if self._limiting or self._halting:
            return None
        ends, ends_at = [], None
        if self.sockets and (self.counted_time.is_final or not self._exhausted):
            # The limit that ends time without a grant is computed only when that time begins.
            is_bound = self.counted_time.is_final or self.counted_time.revision >= 0
            if not is_bound:
                ends.append(self.counted_time.granted_ms)
            if is_bound or self.counted_time.end_limit is not None:
                ends_at = self._ends_at
        if self.counted_time.claim_ms is not None and self.sockets and self._asked is None:
            ends.append(self.counted_time.claim_ms)
        last_call_ms = self._last_call_ms
        if last_call_ms is not None and self._asked is None:
            ends.append(last_call_ms)
        if standing.minute_end_ms > self._probed_ms:
            ends.append(standing.minute_end_ms)
        if self.sockets:
            ends.extend(self.notices.due(self.session, self.positions))
        # Where counting ends without Redis, waiting does not reach a later deadline.
        reached = [end_ms for end_ms in ends if end_ms <= self.counted_time.end_ms]
        due_at = self.counted_time.instant_of(min(reached)) if reached else None
        return ends_at if due_at is None or (ends_at is not None and ends_at < due_at) else due_at

    @property
    def _ends_at(self) -> int:
        """When running time ends, as far as this process can know.

        While a doubt is open, that is no earlier than the doubt's deadline. Time that turns out to
        be a gap is not counted, so the time since the join ends that much later.
        """
        counted_time, doubt = self.counted_time, self._doubt
        ends_at = counted_time.instant_of(counted_time.end_ms)
        if doubt is not None and not doubt.is_over:
            return max(ends_at, doubt.until)
        return ends_at + -(-self._gap_ms // counted_time.speed)

    @property
    def _gap_ms(self) -> int:
        """Counted time that a pending or next step drops as a gap."""
        dropped_ms = 0 if self._asked is None else self._dropped_ms(self._asked.standing)
        if dropped_ms or self._doubt is None or not self._doubt.is_over:
            return dropped_ms
        proven_ms = self.proven_ms(self._doubt.came_at)
        return max(0, self.counted_time.run_on(self._doubt.came_at) - proven_ms)

    def effects(self) -> list[Effect]:
        """Returns the effects in order; each effect is returned once."""
        drained, self._effects = self._effects, []
        return drained

    def _lacks_proof(self, intent: Intent, now_ms: int) -> bool:
        """Whether a stop by others awaits proof of the last seconds."""
        return (
            intent.waits_for_proof
            and self.sockets > 0
            and self.counted_time.running
            and self.alive_at < intent.at
            and now_ms < intent.at + limits.STOP_PROOF_WAIT_MS
        )

    @property
    def _grace_end(self) -> int | None:
        """When the grace is over for this process.

        Only a process with a socket can prove unsettled time before a stop, so that process is left
        to make the end. If it is dead, it is swept and all is settled before the others stop
        waiting for it. While Redis was away, neither was possible.
        """
        standing = self.session.standing
        if standing.grace_until is None or self.sockets or not self._is_unproven:
            return standing.grace_until
        return max(standing.grace_until, self._heard_at) + 2 * limits.NODE_SILENT_MS

    @property
    def _is_unproven(self) -> bool:
        """Whether time before a stop is unsettled because it is unproven."""
        standing = self.session.standing
        return standing.phase is Phase.STOPPING and standing.settled_ms < standing.elapsed_ms

    @property
    def _halting(self) -> bool:
        """Whether the step on its way ends the running time.

        Until its answer, no notice is sent: a step that ends the session has taken the next number.
        """
        return self._asked is not None and self._asked.standing.phase is not Phase.ACTIVE

    @property
    def _is_missed(self) -> bool:
        """Whether the session counts as lost although it has a socket here.

        The socket has just joined, or its process was silent for a while.
        """
        standing = self.session.standing
        return (
            self.sockets > 0
            and self._asked is None
            and not self._limiting
            and standing.lost_at is not None
            and standing.phase in (Phase.SUSPENDED, Phase.PAUSED)
        )

    def _stands_still(self, now_ms: int) -> bool:
        """Whether a billed gap was covered only in part.

        Time stands where the covered part ended, and the stop is announced there. Credits or
        minutes that arrived later cannot fill the rest.
        """
        gaps, grant = self.session.standing.gaps, self.session.grant
        if grant.final is None or not gaps or now_ms < gaps[-1][1]:
            return False
        _, until, is_billed = gaps[-1]
        return is_billed and until > self.counted_time.instant_of(grant.granted_ms)

    def _may_go_on(self, now_ms: int) -> bool:
        """Whether a final grant need not be final, by what is known.

        Of credits, a single further increment is worth a claim: that others burn too is no reason
        to stop before them.
        """
        session, grant = self.session, self.session.grant
        terms, standing = session.identity.terms, session.standing
        if self._stands_still(now_ms):
            return False
        if grant.final == "credits":
            micros = self.account.available_to(session.identity.session_id, now_ms)
            end_ms = terms.affordable_ms(max(0, micros), standing.free_ms)
        else:
            # Where the limit would bind if this grant were not the last.
            open_grant = msgspec.structs.replace(grant, final=None)
            found = self._positions(msgspec.structs.replace(session, grant=open_grant), now_ms)
            end_ms = found.get(grant.final or "")
        return end_ms is None or end_ms > grant.granted_ms

    @property
    def _last_call_ms(self) -> int | None:
        """Counted time at which to ask whether a final grant is last.

        None: that was asked already, or the grant ends soon. The holders of the rest received a
        recall when the grant was made. They may have missed it on a broken connection. There is
        time for another recall and its answer.
        """
        counted_time, granted_ms = self.counted_time, self.session.grant.granted_ms
        if not (counted_time.is_final and self.sockets) or granted_ms == self._final_asked_ms:
            return None
        if self._draws_alone:
            return None
        lead_ms = (limits.RECALL_WAIT_MS + 3 * self.response_ms) * counted_time.speed
        left_ms = granted_ms - self.session.standing.elapsed_ms
        return granted_ms - lead_ms if left_ms > 2 * lead_ms else None

    def _claim_due(self, now_ms: int) -> bool:
        standing = self.session.standing
        if standing.version == 0 or not self.sockets:
            return False  # only a process that can prove the time claims it
        if standing.phase is Phase.ACTIVE and not self._limiting:
            return bool(self.notices.unrecorded) or self._extends(now_ms)
        if standing.phase is Phase.ENDED or self._limiting:
            return False
        # A part is settled too: the process that makes the end may have less proof.
        proven = standing.settled_ms < self.proven_ms(now_ms)
        wanted = self._wanted or self._unnoted
        return proven or wanted or bool(self.notices.unrecorded)

    def _extends(self, now_ms: int) -> bool:
        """Whether running time needs or hopes for a claim, not a note."""
        return (
            self._wanted
            or self._hopes
            or self._unnoted
            or self.proven_ms(now_ms) >= self.session.standing.minute_end_ms
        )

    def _moment(self, now_ms: int) -> Moment:
        session_id = self.session.identity.session_id
        most_micros = self.account.available_to(session_id, now_ms)
        needed_micros = self.account.needed_beside(session_id, now_ms)
        return Moment(
            session=self.session,
            month_of=self.month_of,
            now_ms=now_ms,
            elapsed_ms=self.elapsed_at(now_ms),
            proven_ms=self.proven_ms(now_ms),
            seq=self.notices.seq,
            free_over=self.notices.free_over,
            warned=dict(self.notices.warned),
            notices=tuple(self.notices.unrecorded),
            free_left_ms=self.free_left_ms,
            alive_at=self.alive_at,
            available_micros=(most_micros - needed_micros, most_micros),
            # The answer to a start may be lost, and its socket with it. As long as this process is
            # noted, it looks after that session, or others do when it dies.
            present=self.sockets > 0 or not self.session.standing.version,
            farewell_at=self._farewell_at,
            rest=self._rest(now_ms),
            yields=self._yields(now_ms),
            refreshed=self._refreshed,
            response_ms=self.response_ms,
            share_until=self._share_until(now_ms),
            since=self._since,
        )

    def _share_until(self, now_ms: int) -> int | None:
        """The instant beyond which nothing is claimed; None: no such bound.

        There is one while sessions here run uncovered on a shared account, or did so until they
        stopped: Redis does not know of their use, and would grant it a second time.
        """
        account, identity, standing = self.account, self.session.identity, self.session.standing
        terms, session_id = identity.terms, identity.session_id
        if not account.uncovered or self._burns_alone or not terms.price_micros:
            return None
        if standing.phase is Phase.ACTIVE:
            return covered_until(account)
        # The question is about a step with which time begins to run.
        is_billed = standing.lost_at is not None and terms.gap == "bill"
        at = now_ms if self._since is None else self._since
        at = standing.lost_at if is_billed and standing.lost_at is not None else at
        line = burn_line_of(terms, standing.elapsed_ms, at, standing.free_ms, running=True)
        return covered_with(account, session_id, line)

    @property
    def _burns_alone(self) -> bool:
        return self.account.burns_alone(self.session.identity.session_id)

    def _yields(self, now_ms: int) -> bool:
        """Whether another session waits for credits that this one could hold.

        A session that begins meanwhile was not recalled itself, but yields too.
        """
        return now_ms < max(self._yields_until, self.account.yields_until)

    def _rest(self, now_ms: int) -> Rest:
        """What is left on the counters that the session draws on alone."""
        if self._yields(now_ms):
            return NO_REST
        session, account = self.session, self.account
        session_id, standing = session.identity.session_id, session.standing
        micros = minutes = None
        if account.burns_alone(session_id) and len(account.lines) <= limits.BURN_LINES_EXACT_MAX:
            micros = account.available_to(session_id, now_ms)
        counted, own = standing.counted_minutes, int(standing.phase is Phase.ACTIVE)
        ends_at = self._month_end(self.member.month)
        for month in (self.member, self.org):
            if month.limit_minutes is None or month.active > own:
                continue
            end = max(0, counted + month.limit_minutes - month.used_minutes)
            ahead_ms = (end * MINUTE_MS - standing.elapsed_ms) // session.identity.terms.speed
            if ends_at is None or now_ms + ahead_ms < ends_at:
                minutes = end if minutes is None else min(minutes, end)
        return Rest(micros, minutes)

    def _show(self, token: Token = None, *, only: bool = False) -> None:
        self._effects.append(Show(self.notices.seq, token, only))

    def _stand_on(self, session: SessionState, now_ms: int, *, is_in_vain: bool = False) -> None:
        """Makes ``session`` the present state, and computes anew what follows from it.

        ``is_in_vain``: the claim that led here could ask for nothing more.
        """
        limited_ms, granted_ms = self._limited_ms, self.session.grant.granted_ms
        session, is_opened = self._opened(session)
        if session.standing.gaps[-1:] != self.session.standing.gaps[-1:]:
            self.served_from_ms = session.standing.elapsed_ms  # a client that was away begins anew
        self.session, self._heard_at = session, now_ms
        standing, grant = session.standing, session.grant
        if standing.phase is not Phase.SUSPENDED and standing.version:
            self._since = None
        if self._doubt is not None and (
            standing.phase is not Phase.ACTIVE or standing.run_at >= self._doubt.came_at
        ):
            self._doubt = None
        self.counted_time = CountedTime(session, self.uncovered_ms, self.response_ms)
        if (is_opened or is_in_vain) and self.counted_time.claim_ms is not None:
            # Until other sessions answer, each claim gets the same answer, so the next claim waits.
            paced_ms = standing.elapsed_ms + self._pace_ms * self.counted_time.speed
            self.counted_time.claim_ms = max(self.counted_time.claim_ms, paced_ms)
        self._may_get_ms = 0
        """The end of the longest grant that was asked for since."""
        self._exhausted = False
        # What a claim hoped for while a step was on its way may be there already.
        self._hopes = self._hopes and grant.final is not None
        if limited_ms is not None and not (
            standing.phase is Phase.ACTIVE and grant.granted_ms <= max(granted_ms, limited_ms)
        ):
            # Either the stop is recorded, or another process extended the grant just in time.
            self._limited_ms = None
            self._intents.drop(Event.LIMIT)
        self._note_grant()
        self._project(now_ms)

    @property
    def _pace_ms(self) -> int:
        """How long until a session asks again about silent holders, in ms.

        Thousands of sessions may count on a month, so a bounded number of them asks in each
        ``RECALL_WAIT_MS``, and each within ``KEPT_OPEN_PACE_MS_MAX``. All of them learn when
        minutes are given back.
        """
        active = {"member_minutes": self.member.active, "org_minutes": self.org.active}
        rounds = -(-active.get(self.kept_open or "", 1) // limits.KEPT_OPEN_ASKS_MAX)
        return min(limits.RECALL_WAIT_MS * max(1, rounds), limits.KEPT_OPEN_PACE_MS_MAX)

    def _opened(self, session: SessionState) -> tuple[SessionState, bool]:
        """Returns the session with its grant reopened, and whether it was reopened.

        A grant is reopened if it is final only because of what silent holders have.
        """
        if session.grant.final != self.kept_open:
            self.kept_open = None
        if self.kept_open is None or session.standing.phase is not Phase.ACTIVE:
            return session, False
        grant = msgspec.structs.replace(session.grant, final=None)
        return msgspec.structs.replace(session, grant=grant), True

    def _expect(self, step: Step) -> None:
        """Counts with what a pending step may leave, until its answer.

        The answer may be late or lost, while others draw on what the step gives back or has taken.
        Of a grant that is given back in part, only the rest is sure.
        """
        session_id = self.session.identity.session_id
        best_ms = max((offer.grant.granted_ms for offer in step.offers), default=0)
        # Redis makes the longer ones only in plenty.
        ends = [offer.grant.granted_ms for offer in step.offers if offer.rest or not offer.floor_ms]
        self._may_get_ms = max(self._may_get_ms, *ends, 0)
        rest_ms = best_ms + self._dropped_ms(step.standing)
        if self.counted_time.running and best_ms > 0 and rest_ms < self.counted_time.granted_ms:
            rest = msgspec.structs.replace(self.session.grant, granted_ms=rest_ms, final=None)
            session = msgspec.structs.replace(self.session, grant=rest)
            self.counted_time = CountedTime(session, self.uncovered_ms, self.response_ms)
        is_uncovered = session_id in self.account.uncovered
        self._note_grant()
        if is_uncovered:
            self.account.uncovered.add(session_id)

    def _dropped_ms(self, standing: Standing) -> int:
        """Counted time that a pending step drops as unproven before a join.

        Until the answer, counted time here includes it; the positions of the step's offers do not.
        """
        if not self.counted_time.running or standing.run_at <= self.session.standing.run_at:
            return 0
        return max(0, self.counted_time.run_on(standing.at) - standing.elapsed_ms)

    def _note_grant(self) -> None:
        """Tells the account's other sessions here what this session may use.

        A session that stops counts with what a claim on its way may still be granted too.
        """
        session, may_use, is_uncovered = self.session, None, False
        if self._limited_ms is not None and self.counted_time.running:
            may_use = Granted(max(self._limited_ms, self._may_get_ms), is_final=True)
            # Until the stop is recorded, Redis does not know what the session used beyond its
            # grant.
            is_uncovered = self._limited_ms > self.counted_time.granted_ms
        elif self.counted_time.running:
            until_ms = max(session.grant.granted_ms, self._may_get_ms)
            may_use = Granted(until_ms, is_final=self.counted_time.is_final)
        beginning_micros = 0
        if self._begins and self._asked is not None:
            free_ms = self._asked.standing.free_ms
            cost_micros = session.identity.terms.cost_micros(self._may_get_ms, free_ms)
            beginning_micros = max(0, cost_micros - session.standing.charged_micros)
        session_id = session.identity.session_id
        self.account.grant(session_id, may_use, beginning_micros=beginning_micros)
        if is_uncovered:
            self.account.uncovered.add(session.identity.session_id)

    @property
    def _begins(self) -> bool:
        """Whether time begins to run with the pending step."""
        asked = self._asked
        return (
            asked is not None
            and asked.standing.phase is Phase.ACTIVE
            and not self.counted_time.running
        )

    def _bind(self, now_ms: int) -> None:
        """Ends uncovered time at the first known limit, if any."""
        counted_ms = self.counted_time.elapsed_at(now_ms) if self.counted_time.revision >= 0 else 0
        ends = limit_positions.uncovered_ends(
            self.session,
            self.counted_time,
            now_ms,
            self.account,
            self.counters.member.over(self.member),
            self.counters.org.over(self.org),
            self._month_end(self.member.month),
            kept_open=self.kept_open,
        )
        self.counted_time.bind(ends, self._revision, counted_ms)
        if not self.counted_time.is_final:
            self.account.uncovered.add(self.session.identity.session_id)

    @property
    def _revision(self) -> int:
        """The revision of what ends uncovered time; it rises with every change."""
        return self.account.revision + self.counters.revision

    def know_months(self, member: MonthProjection, org: MonthProjection) -> None:
        """Takes the months' counters of an answer."""
        self.member, self.org = member, org
        if self.session.identity.terms.counts_minutes:
            self.counters.tell(member, org)

    @property
    def _draws_alone(self) -> bool:
        """Whether no other session draws on the counters of this one."""
        terms = self.session.identity.terms
        if terms.price_micros and not self._burns_alone:
            return False
        return not terms.counts_minutes or all(
            month.limit_minutes is None or month.active <= 1 for month in (self.member, self.org)
        )

    def _positions(self, session: SessionState, now_ms: int) -> dict[str, int]:
        elapsed_ms = self.elapsed_at(now_ms)
        return limit_positions.positions(
            session,
            elapsed_ms,
            now_ms,
            self.account,
            self.member,
            self.org,
            self._month_end(self.member.month),
        )

    def _month_end(self, month: str) -> int | None:
        """The instant at which the counters' month ends; None: not known."""
        if not month or not self.session.identity.terms.counts_minutes:
            return None
        if self._ends[0] != month:
            self._ends = (month, month_ends_at(month, self.month_of))
        return self._ends[1]

    def _project(self, now_ms: int) -> None:
        self.positions = self._positions(self.session, now_ms)

    def _warn(self, now_ms: int) -> None:
        """Sends the warnings of crossed thresholds.

        A process without sockets leaves that to others: it can record nothing. If it knew a counter
        differently, its notice and theirs would differ under one number.
        """
        if self.sockets and self.counting and not self._halting:
            self._effects.extend(
                self.notices.warn(self.session, self.elapsed_at(now_ms), self.positions)
            )


def settled_at(session: SessionState) -> int:
    """Returns the instant up to which a session is settled."""
    standing, speed = session.standing, session.identity.terms.speed
    return standing.at - -(-(standing.elapsed_ms - standing.settled_ms) // speed)
