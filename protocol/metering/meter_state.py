"""Where a process sees a session stand: the session, its counters, and what follows from them.

What the meter (``protocol.metering.meter``) decides is decided on this ground: the last accepted
step, the projections of account and months, and what was said of the session so far.
Everything here answers questions, or measures anew after one of these has changed.
"""

import msgspec

from protocol import limits
from protocol.metering import limit_positions, transitions
from protocol.metering.counted_time import CountedTime
from protocol.metering.cover import covered_until, covered_with
from protocol.metering.doubt import Doubt
from protocol.metering.effects import Effect, RemoteStep, Show, Token
from protocol.metering.intents import Intent, Intents
from protocol.metering.notices import Notices
from protocol.metering.projection import AccountProjection, Granted, MonthProjection, burn_line_of
from protocol.metering.quota import NO_REST, MonthOf, Rest, month_ends_at
from protocol.metering.session import SessionState
from protocol.metering.shared_months import SessionCounters
from protocol.metering.states import Event, Phase
from protocol.metering.steps import StartBasis, Step
from protocol.metering.terms import MINUTE_MS


class MeterState:
    """One session as one process sees it, at any instant."""

    response_ms = 0
    """How long Redis takes to answer: the shell measures it. Claims are made so much ahead."""
    _yields_until = 0
    """Until then it takes no more of a counter than it needs to run on: somebody waits for that."""
    _final_asked_ms = -1
    """The end of a final grant of which was asked once more whether it is the last."""

    kept_open: str | None = None
    """The limit at which the grant is not final here though Redis says so: holders of the rest are
    silent. None: there is none."""

    _doubt: Doubt | None = None
    """Whether the sockets that were here before the last one are there is asked."""

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
        # The same, as sessions here were told of it last; the shell has them share it.
        self.counters = SessionCounters()
        self._ends = ("", 0)
        """The counters' month, and its end."""
        self.free_left_ms = 0
        self.sockets = 0
        """Sockets here that keep the session alive."""
        self.proof_at = settled_at(session)
        """The last proof of life that came in here. What is settled was proven to somebody; where
        the session stands was only counted."""
        self.promised_until = 0
        """The instant up to which a heartbeat over HTTP counts as a proof, in the future."""
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
        """Where counting has stopped at a limit; the step that says so is not accepted yet."""
        self.basis: StartBasis | None = None
        """What the start was decided from, of a session that starts here."""
        self._wanted = False
        """A claim is due, whatever the deadlines say."""
        self._refreshed = self._refreshing = False
        """A limit was changed: a claim that gives back what lies beyond is due, or on its way."""
        self._unnoted = False
        """This process has sockets, and is not noted for it before a step is accepted."""
        self._hopes = False
        """The grant is final, and need not be: a claim is due while that is so."""
        self._recalled: set[bool] = set()
        """Somebody needed what the session holds while a step was on its way: credits (False), or
        minutes (True)."""
        self._probed_ms = -1
        """The minute's end up to which sockets were asked for a proof of life."""
        self._exhausted = False
        """The uncovered time is used up too."""
        self._later: tuple[RemoteStep, ...] = ()
        """Steps of others after one that is not known here: it may be that of this process whose
        answer is on its way."""
        self._leaving = False
        """The last claim of a process that leaves the session to others is on its way."""
        self._heard_at = session.standing.at
        """When Redis last had anything new of the session, or did not answer."""
        self._stand_on(session, session.standing.at)

    @property
    def alive_at(self) -> int:
        """The last proof of life that is known here; a heartbeat's lies in the future."""
        alive_at = max(self.proof_at, self.promised_until)
        return alive_at if self._doubt is None else min(alive_at, self._doubt.proven_at)

    @property
    def is_in_doubt(self) -> bool:
        """Whether those who were here before the last socket joined are asked for a proof."""
        return self._doubt is not None

    @property
    def doubted_since(self) -> int | None:
        """When the socket joined before which others are asked for a proof; None: nobody is."""
        return None if self._doubt is None else self._doubt.came_at

    @property
    def phase(self) -> Phase:
        """The state that the sockets of this process see."""
        return Phase.STOPPING if self._limiting else self.session.standing.phase

    @property
    def _limiting(self) -> bool:
        """Whether a limit is reached, and not recorded yet."""
        return self._limited_ms is not None

    @property
    def counting(self) -> bool:
        """Whether time runs: then ticks are due."""
        return self.session.standing.phase is Phase.ACTIVE and not self._limiting

    def _visible_state(self, now_ms: int) -> tuple[object, ...]:
        """What the sockets see and no tick shows: the state; and where time stands, if it does."""
        if self.counting:
            return (self.phase, self.session.standing.gaps[-1:])
        return (self.phase, self.elapsed_at(now_ms), self.session.standing.free_ms)

    @property
    def asked(self) -> Step | None:
        """The step that is on its way to Redis."""
        return self._asked

    def elapsed_at(self, now_ms: int) -> int:
        """Counted time at ``now_ms``: never beyond the grant, but for uncovered time, and that
        not beyond a limit that is known here."""
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
        """Counted time at ``now_ms`` as it is shown, which never steps back.

        Where the step on its way ends the running time, it is shown as that leaves it. Of a
        counter that others draw on too, the answer to a claim may leave less than is known
        here: what lies beyond the claim is shown when the answer is in.
        """
        elapsed_ms, asked = self.elapsed_at(now_ms), self._asked
        if self._doubt is not None and self._doubt.is_told and self.counting:
            elapsed_ms = min(elapsed_ms, self.proven_ms(now_ms))
        if not self.counting or (asked is None and not self._intents):
            return elapsed_ms
        for intent in self._intents:
            if intent.ends_at_request and intent.at < now_ms:
                elapsed_ms = min(elapsed_ms, self.elapsed_at(intent.at))
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
        """How long after a proof of life ticks may go out: a part of what was proven since the
        first socket here joined, so that no more than that part can be lost."""
        proven_ms = self.elapsed_at(min(now_ms, self.alive_at)) - self.served_from_ms
        part_ms = proven_ms // (self.counted_time.speed * limits.UNPROVEN_SHARE)
        return max(0, min(part_ms, limits.PROOF_FRESH_MS_MAX))

    def fresh_until(self, now_ms: int) -> int:
        """The instant up to which ticks may go out on the proof of life that is there."""
        if self._doubt is not None:
            return 0  # what is shown may be taken back
        return self.alive_at + self.window_ms(now_ms)

    def credits_at(self, now_ms: int) -> int:
        """The account's balance in micro-credits, after the burn of all its sessions: of this one
        as much as is shown."""
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
        """The instant of the next deadline; None: nothing is due until something comes in."""
        due_at, doubt = self._deadline(), self._doubt
        if doubt is None or doubt.is_over:
            return due_at
        return doubt.until if due_at is None else min(due_at, doubt.until)

    def _deadline(self) -> int | None:
        """The same without what those who are asked for a proof of life have to answer."""
        standing = self.session.standing
        first = self._intents.first
        if first is not None and self._asked is None and self._lacks_proof(first, first.at):
            return first.at + limits.STOP_PROOF_WAIT_MS
        if standing.phase is not Phase.ACTIVE:
            return self._grace_end if not self._intents and self._asked is None else None
        if self._limiting or self._halting:
            return None
        ends = []
        if self.sockets and (self.counted_time.is_final or not self._exhausted):
            # Where a limit ends time that no grant covers is looked at when it begins.
            is_bound = self.counted_time.is_final or self.counted_time.revision >= 0
            ends.append(self.counted_time.end_ms if is_bound else self.counted_time.granted_ms)
            if not is_bound and self.counted_time.end_limit is not None:
                ends.append(self.counted_time.end_ms)
        if self.counted_time.claim_ms is not None and self.sockets and self._asked is None:
            ends.append(self.counted_time.claim_ms)
        last_call_ms = self._last_call_ms
        if last_call_ms is not None and self._asked is None:
            ends.append(last_call_ms)
        if standing.minute_end_ms > self._probed_ms:
            ends.append(standing.minute_end_ms)
        if self.sockets:
            ends.extend(self.notices.due(self.session, self.positions))
        # Where counting ends without Redis, what lies beyond is not reached by waiting.
        reached = [end_ms for end_ms in ends if end_ms <= self.counted_time.end_ms]
        return self.counted_time.instant_of(min(reached)) if reached else None

    def effects(self) -> list[Effect]:
        """What is to be done, in order; each effect is handed out once."""
        drained, self._effects = self._effects, []
        return drained

    def _lacks_proof(self, intent: Intent, now_ms: int) -> bool:
        """Whether a stop by others still waits for the client to prove its last seconds."""
        return (
            intent.waits_for_proof
            and self.sockets > 0
            and self.counted_time.running
            and self.alive_at < intent.at
            and now_ms < intent.at + limits.STOP_PROOF_WAIT_MS
        )

    @property
    def _grace_end(self) -> int | None:
        """When the grace is over, as seen from here.

        What is not settled of the time before a stop, only a process with a socket can prove: it
        is left to make the end. Should it be dead, it is swept and all is settled before the
        others stop waiting for it. While Redis was away neither could be done.
        """
        standing = self.session.standing
        if standing.grace_until is None or self.sockets or not self._is_unproven:
            return standing.grace_until
        return max(standing.grace_until, self._heard_at) + 2 * limits.NODE_SILENT_MS

    @property
    def _is_unproven(self) -> bool:
        """Whether time before a stop is not settled yet: nobody has proven it."""
        standing = self.session.standing
        return standing.phase is Phase.STOPPING and standing.settled_ms < standing.elapsed_ms

    @property
    def _halting(self) -> bool:
        """Whether the step on its way ends the running time. Until it is answered nothing
        is said: a step that ends the session has taken the next number already."""
        return self._asked is not None and self._asked.standing.phase is not Phase.ACTIVE

    @property
    def _is_missed(self) -> bool:
        """Whether the session is taken for lost though it has a socket here: one that has
        just joined, or one of a process that was silent for a while."""
        standing = self.session.standing
        return (
            self.sockets > 0
            and self._asked is None
            and not self._limiting
            and standing.lost_at is not None
            and standing.phase in (Phase.SUSPENDED, Phase.PAUSED)
        )

    def _stands_still(self, now_ms: int) -> bool:
        """Whether a billed gap was covered in part only: time stands where that ended, and the
        stop is said there. What came in since cannot fill the rest."""
        gaps, grant = self.session.standing.gaps, self.session.grant
        if grant.final is None or not gaps or now_ms < gaps[-1][1]:
            return False
        _, until, is_billed = gaps[-1]
        return is_billed and until > self.counted_time.instant_of(grant.granted_ms)

    def _may_go_on(self, now_ms: int) -> bool:
        """Whether a grant that was final need not be, as far as can be seen from here.

        Of credits, a single increment more is worth asking for: that the others burn too
        is no reason to stop before them.
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
        """Where it is asked once more whether a final grant is the last; None: it was, or it ends
        soon.

        Whoever holds the rest was told that it is needed when the grant was made, and may not
        have heard that: its line was broken. There is time for another recall, and its answer.
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
            return False  # it is for those to claim who can prove the time
        if standing.phase is Phase.ACTIVE and not self._limiting:
            return bool(self.notices.unrecorded) or self._extends(now_ms)
        if standing.phase is Phase.ENDED or self._limiting:
            return False
        # A part is settled too: whoever makes the end may know of less.
        proven = standing.settled_ms < self.proven_ms(now_ms)
        wanted = self._wanted or self._unnoted
        return proven or wanted or bool(self.notices.unrecorded)

    def _extends(self, now_ms: int) -> bool:
        """Whether running time needs a claim, or hopes for one: not just a note."""
        return (
            self._wanted
            or self._hopes
            or self._unnoted
            or self.proven_ms(now_ms) >= self.session.standing.minute_end_ms
        )

    def _moment(self, now_ms: int) -> transitions.Moment:
        return transitions.Moment(
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
            available_micros=self.account.available_to(self.session.identity.session_id, now_ms),
            present=self.sockets > 0,
            farewell_at=self._farewell_at,
            rest=self._rest(now_ms),
            yields=now_ms < self._yields_until,
            refreshed=self._refreshed,
            response_ms=self.response_ms,
            share_until=self._share_until(now_ms),
        )

    def _share_until(self, now_ms: int) -> int | None:
        """The instant beyond which nothing is asked for, where sessions here run uncovered on a
        shared account, or did until they stopped: what they use Redis does not know of, and
        would grant it again."""
        account, identity, standing = self.account, self.session.identity, self.session.standing
        terms, session_id = identity.terms, identity.session_id
        if not account.uncovered or self._burns_alone or not terms.price_micros:
            return None
        if standing.phase is Phase.ACTIVE:
            return covered_until(account)
        # It is asked about a step with which time begins to run.
        is_billed = standing.lost_at is not None and terms.gap == "bill"
        at = standing.lost_at if is_billed and standing.lost_at is not None else now_ms
        line = burn_line_of(terms, standing.elapsed_ms, at, standing.free_ms, running=True)
        return covered_with(account, session_id, line)

    @property
    def _burns_alone(self) -> bool:
        return self.account.burns_alone(self.session.identity.session_id)

    def _rest(self, now_ms: int) -> Rest:
        """What is left on the counters that the session draws on alone."""
        if now_ms < self._yields_until:
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

    def _stand_on(self, session: SessionState, now_ms: int) -> None:
        """Makes ``session`` the ground, and measures anew what follows from it."""
        limited_ms, granted_ms = self._limited_ms, self.session.grant.granted_ms
        session, is_opened = self._opened(session)
        if session.standing.gaps[-1:] != self.session.standing.gaps[-1:]:
            self.served_from_ms = session.standing.elapsed_ms  # who was away begins anew
        self.session, self._heard_at = session, now_ms
        standing, grant = session.standing, session.grant
        if self._doubt is not None and (
            standing.phase is not Phase.ACTIVE or standing.run_at >= self._doubt.came_at
        ):
            self._doubt = None
        self.counted_time = CountedTime(session, self.uncovered_ms, self.response_ms)
        if is_opened and self.counted_time.claim_ms is not None:
            # Until the holders answer, each claim is answered alike: the next one waits.
            paced_ms = standing.elapsed_ms + limits.RECALL_WAIT_MS * self.counted_time.speed
            self.counted_time.claim_ms = max(self.counted_time.claim_ms, paced_ms)
        self._may_get_ms = 0
        """The end of the longest grant that was asked for since."""
        self._exhausted = False
        # What was hoped for while a step was on its way may be there already.
        self._hopes = self._hopes and grant.final is not None
        if limited_ms is not None and not (
            standing.phase is Phase.ACTIVE and grant.granted_ms <= max(granted_ms, limited_ms)
        ):
            # Either the stop is recorded, or somebody extended the grant just in time.
            self._limited_ms = None
            self._intents.drop(Event.LIMIT)
        self._note_grant()
        self._project(now_ms)

    def _opened(self, session: SessionState) -> tuple[SessionState, bool]:
        """A session with its grant open to more, where it is final only because of what holders
        have who do not answer; and whether that is so."""
        if session.grant.final != self.kept_open:
            self.kept_open = None
        if self.kept_open is None or session.standing.phase is not Phase.ACTIVE:
            return session, False
        grant = msgspec.structs.replace(session.grant, final=None)
        return msgspec.structs.replace(session, grant=grant), True

    def _expect(self, step: Step) -> None:
        """Has a step on its way count with what it may leave, until it is known: its answer may be
        late, or lost, and others draw on what it gives back, or has taken.

        Of a grant that is given back in part, the rest alone is sure.
        """
        session_id = self.session.identity.session_id
        best_ms = max((offer.grant.granted_ms for offer in step.offers), default=0)
        # Longer ones are made only in plenty.
        ends = [offer.grant.granted_ms for offer in step.offers if offer.rest or not offer.floor_ms]
        self._may_get_ms = max(self._may_get_ms, *ends, 0)
        if self.counted_time.running and 0 < best_ms < self.counted_time.granted_ms:
            rest = msgspec.structs.replace(self.session.grant, granted_ms=best_ms, final=None)
            session = msgspec.structs.replace(self.session, grant=rest)
            self.counted_time = CountedTime(session, self.uncovered_ms, self.response_ms)
        is_uncovered = session_id in self.account.uncovered
        self._note_grant()
        if is_uncovered:
            self.account.uncovered.add(session_id)

    def _note_grant(self) -> None:
        """Lets the account's other sessions here count with what this one may use: of one that
        stops, what a claim that is on its way may still be granted too."""
        session, may_use, is_uncovered = self.session, None, False
        if self._limited_ms is not None and self.counted_time.running:
            may_use = Granted(max(self._limited_ms, self._may_get_ms), is_final=True)
            # What it used beyond its grant Redis does not know of before the stop is recorded.
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
        """Whether time begins to run with the step that is on its way."""
        asked = self._asked
        return (
            asked is not None
            and asked.standing.phase is Phase.ACTIVE
            and not self.counted_time.running
        )

    def _bind(self, now_ms: int) -> None:
        """Ends time that no grant covers where a limit is known now."""
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
        """What the end of uncovered time follows from; it rises with every change."""
        return self.account.revision + self.counters.revision

    def know_months(self, member: MonthProjection, org: MonthProjection) -> None:
        """Takes what an answer says of the months' counters."""
        self.member, self.org = member, org
        if self.session.identity.terms.counts_minutes:
            self.counters.tell(member, org)

    @property
    def _draws_alone(self) -> bool:
        """Whether no other session draws on what this one draws on."""
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
        """The instant at which the counters' month ends; None while it is not known."""
        if not month or not self.session.identity.terms.counts_minutes:
            return None
        if self._ends[0] != month:
            self._ends = (month, month_ends_at(month, self.month_of))
        return self._ends[1]

    def _project(self, now_ms: int) -> None:
        self.positions = self._positions(self.session, now_ms)

    def _warn(self, now_ms: int) -> None:
        """Says which thresholds were crossed.

        A process without sockets has others say it: it can record nothing, and where it knows
        of another counter than they do, its word would stand against theirs under one number.
        """
        if self.sockets and self.counting and not self._halting:
            self._effects.extend(
                self.notices.warn(self.session, self.elapsed_at(now_ms), self.positions)
            )


def settled_at(session: SessionState) -> int:
    """The instant up to which a session is settled."""
    standing, speed = session.standing, session.identity.terms.speed
    return standing.at - -(-(standing.elapsed_ms - standing.settled_ms) // speed)
