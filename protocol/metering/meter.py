"""The meter: one session on one process, without I/O or clock.

The shell feeds the meter (a socket attached, a proof of life, a request, an answer of Redis), each
time with the instant ``now_ms``. The shell also arms one timer for ``timer()``, and drains
``effects()`` after every call. The meter burns its grant in memory. A change that all processes see
is a :class:`~protocol.metering.steps.Step`. Only one step is on its way at a time: what happens
meanwhile waits as an intent, and is judged again when the answer has arrived.

No process owns a session. Every process with a socket of the session runs the same meter, and
deadlines follow from shared figures, so the processes agree. A local timer announces the stop at a
final grant's end at once; the step that records the stop follows. A step that comes second is
answered with the result of the first, which replaces the state here. On a process that has
observers only, time stands still at that end, and the process sends only what a process with
sockets has recorded: only that process knows what comes before the stop.

Time is billed as far as it is proven. At the deadline of a minute's end, the meter probes the
sockets for a proof of life. The claim is made when the proof arrives; until then the grant's margin
carries the session.
"""

import msgspec

from protocol import limits
from protocol.metering import transitions
from protocol.metering.doubt import Doubt
from protocol.metering.effects import (
    Ask,
    LeaveSession,
    Probe,
    Push,
    Refuse,
    RemoteStep,
    Reply,
    Token,
)
from protocol.metering.intents import Intent
from protocol.metering.meter_state import MeterState, settled_at
from protocol.metering.moment import Moment
from protocol.metering.quota import MonthOf, keeps_more_minutes
from protocol.metering.session import SessionState
from protocol.metering.states import Event, Phase
from protocol.metering.steps import StartBasis, Step
from protocol.wire import messages


class Meter(MeterState):
    """One session on one process."""

    # --- What happens ------------------------------------------------------------

    def attach(
        self,
        now_ms: int,
        asked_at: int | None = None,
        *,
        has_others: bool = False,
        since: int | None = None,
    ) -> bool:
        """Adds a socket of this process, which ends a grace.

        ``since``: an outside clock says since when the user has been back.

        The join is a proof of life at ``asked_at``, when the socket asked to join; the socket may
        be gone since. ``has_others``: other processes have sockets. Returns whether the shell must
        probe the earlier sockets for a proof of life, because they have given none lately.
        """
        came_at = now_ms if asked_at is None else asked_at
        begins = self._begin_doubt(came_at, now_ms, has_others=has_others)
        if not (self.sockets or has_others):
            self._part_from_lost(came_at, now_ms)
        if not self.sockets:
            self.served_from_ms = self.elapsed_at(now_ms)
        self.sockets += 1
        self.proof_at = max(self.proof_at, came_at)
        self._since = since if self.session.standing.phase is Phase.SUSPENDED else None
        self._warn(now_ms)
        self._plan(now_ms)
        return begins

    def _begin_doubt(self, came_at: int, now_ms: int, *, has_others: bool) -> bool:
        """Returns whether the earlier sockets must be probed.

        Time that they do not prove is a gap.
        """
        if self._doubt is not None or not self.counting or self._halting:
            return False
        if self.session.identity.terms.gap == "bill" or not (self.sockets or has_others):
            return False
        proven_at = max(self.alive_at, settled_at(self.session))
        if proven_at >= came_at - limits.DOUBT_MS:
            return False
        until = now_ms + limits.DOUBT_WAIT_MS
        self._doubt = Doubt(came_at, proven_at, is_told=self.sockets > 0, until=until)
        return True

    def _part_from_lost(self, came_at: int, now_ms: int) -> None:
        """Makes a gap from the last socket's end to a join.

        The loss is not recorded yet, and nothing is to be asked: no earlier socket is left. If the
        loss is recorded after all, the gap has no effect.
        """
        if not self._intents.includes(Event.LOST) or not self.counting:
            return
        if self.session.identity.terms.gap == "bill" or self._intents.end_at_request:
            return
        self._intents.drop(Event.UNPROVEN)
        self._doubt = Doubt(came_at, self.alive_at, is_told=True, until=now_ms, is_over=True)
        self._intents.add_first(Intent(Event.UNPROVEN, came_at))

    def confirm(
        self, at_ms: int, now_ms: int, came_at: int | None = None, *, is_gone: bool = False
    ) -> None:
        """Takes a proof of a socket from before the last join.

        ``came_at``: the process that reports the proof is in doubt itself, because a socket joined
        there. ``is_gone``: the process has lost its last socket at ``at_ms``.
        """
        if self._doubt is not None and came_at is not None:
            self._doubt.told_of_another(came_at)
        if self._doubt is not None and self._doubt.told(at_ms, is_gone=is_gone):
            self._end_doubt(now_ms)

    def _end_doubt(self, now_ms: int) -> None:
        self._doubt = None
        self._intents.drop(Event.UNPROVEN)
        self._show()  # the next tick may be far away, and the time shown so far lacks this proof
        self._plan(now_ms)

    def _decide_doubt(self, now_ms: int) -> None:
        """Decides a doubt whose deadline has passed without an answer."""
        doubt = self._doubt
        if doubt is None or doubt.is_over or now_ms < doubt.until:
            return
        doubt.is_over = True
        if doubt.is_told:
            # The gap goes before a request that has waited for the answer: the request ends the
            # time since the join.
            self._intents.add_first(Intent(Event.UNPROVEN, doubt.came_at))
        else:
            # Their process is silent. If it is dead, a sweep settles its sessions.
            self._end_doubt(now_ms)

    def entitle(self, token: Token) -> bool:
        """Answers a joining socket once the step ending the grace is answered.

        False: no such step is under way; the shell can show the session as it is.
        """
        return self._intents.entitle(Event.RETURNED, token)

    def alive(self, at_ms: int, now_ms: int) -> bool:
        """Takes a proof of life: a message or pong received at ``at_ms``.

        Returns whether there are effects to drain now.
        """
        self.proof_at = max(self.proof_at, at_ms)
        self._plan(now_ms)
        return bool(self._effects)

    def promise(self, until_ms: int, now_ms: int) -> bool:
        """Takes an HTTP heartbeat: proof of life in advance, to ``until_ms``.

        Returns whether there are effects to drain now.
        """
        self.promised_until = max(self.promised_until, until_ms)
        return self.alive(now_ms, now_ms)

    def withdraw(self, at_ms: int) -> None:
        """Ends the promise of a heartbeat at ``at_ms``.

        A ``detach`` of the heartbeat follows.
        """
        self.promised_until = 0
        self.proof_at = max(self.proof_at, at_ms)

    def detach(
        self, alive_at: int, now_ms: int, *, died: bool = False, farewell: bool = False
    ) -> None:
        """Removes a socket of this process, alive until ``alive_at``.

        ``died``: the socket belonged to a dead process, for which this one acts. ``farewell``: the
        user took leave, so promises that other processes have of the session end too.
        """
        self.sockets -= 1
        self._since = None
        self.proof_at = max(self.proof_at, alive_at)
        if farewell:
            self._farewell_at = alive_at
        if self.sockets == 0:
            self._intents.add(Intent(Event.LOST, now_ms, reason="died" if died else ""))
        self._plan(now_ms)

    def farewell_told(self, at_ms: int) -> None:
        """Notes that other processes know of a farewell: no step repeats it."""
        if self._farewell_at == at_ms:
            self._farewell_at = None

    def request(self, event: Event, now_ms: int, token: Token, reason: str = "client") -> bool:
        """Takes a request to pause, resume or stop the session.

        A client's own request is a proof of life. False: too many requests wait.
        """
        if self._intents.full:
            return False
        if reason == "client":
            self.proof_at = max(self.proof_at, now_ms)
        else:
            self._effects.append(Probe())
        self._intents.add(Intent(event, now_ms, token, reason))
        self._plan(now_ms)
        return True

    def start(
        self,
        now_ms: int,
        token: Token,
        basis: StartBasis | None = None,
        since: int | None = None,
    ) -> None:
        """Starts a session without steps, and adds its first socket.

        ``basis`` is what the session's identity was decided from; ``since`` as in ``attach``.
        """
        self.basis, self._since = basis, since
        self.sockets += 1
        self.proof_at = now_ms
        self._intents.add(Intent(Event.RESUME, now_ms, token, starts=True))
        self._plan(now_ms)

    def granted(self, reply: Reply, now_ms: int) -> None:
        """Takes the answer of Redis to the step on its way."""
        step, intent = self._asked, self._intents.current
        begins = self._begins
        self._asked = self._intents.current = None
        if begins:
            self._note_grant()
        if self._has_left():
            self._effects.append(LeaveSession())
            return
        if step is None or reply.session is None:
            self._others_stay(now_ms)
            return
        self.know_months(reply.member, reply.org)
        if reply.free_left_ms is not None:
            self.free_left_ms = reply.free_left_ms
        if reply.accepted:
            self.notices.recorded(len(step.notices))
            self._unnoted = self._unnoted and not step.present
            self._accept(step, reply.session, intent, now_ms)
        else:
            self._adopt(reply.session, reply.notices, now_ms)
            if reply.refused_by is not None:
                self._refused(reply.refused_by, intent, now_ms)
            elif intent is not None:
                self._judge_again(intent)
        self._hear_later(now_ms)
        recalled, self._recalled = self._recalled, set()
        for minutes in recalled:
            self.recall(now_ms, minutes=minutes)
        self._plan(now_ms)

    def unanswered(self, now_ms: int) -> None:
        """Takes note that no answer came to the step on its way.

        Redis may have made the step. It is sent again from the same version; if it was made
        already, the answer shows that.
        """
        intent, self._intents.current = self._intents.current, None
        self._heard_at = max(self._heard_at, now_ms)
        if self._asked is not None:
            # Redis may have noted another socket's join before it removed this process.
            self._unnoted = self._unnoted or (self._asked.leaving and self.sockets > 0)
            self._asked = None
            is_early = self._grace_end is not None and now_ms < self._grace_end
            if intent is None:
                self._wanted = True
                self._refreshed = self._refreshed or self._refreshing
            elif intent.event is not Event.EXPIRED or not is_early:
                # Otherwise other processes can prove more, and this one waits for them again.
                self._intents.add_first(intent)
        if self._has_left():
            self._effects.append(LeaveSession())
        else:
            self._hear_later(now_ms)
            self._plan(now_ms)

    def abandon(self) -> list[Token]:
        """Returns the tokens of waiting requests, which get no answer for now.

        The requests are still carried out when that is possible. After a start, the loss of its
        socket follows.
        """
        return self._intents.abandon()

    def note_again(self, now_ms: int) -> None:
        """Claims, because Redis does not list this process for the session."""
        self._unnoted = self._unnoted or self.sockets > 0
        self._plan(now_ms)

    def misses(self, remote: RemoteStep) -> bool:
        """Whether this process missed steps that were made before this one."""
        return not remote.complete and remote.session.standing.version > (
            self.session.standing.version + 1
        )

    def is_other(self, remote: RemoteStep) -> bool:
        """Whether another step has the version of the step known here.

        One of the two was lost with a Redis that failed. An assertion decides which of them counts.
        """
        session, known = remote.session, self.session
        has_version = session.standing.version == known.standing.version
        return has_version and self._is_news(session)

    def apply_remote(self, remote: RemoteStep, now_ms: int) -> None:
        """Takes a step of another process; notices already sent stay valid."""
        session = remote.session
        if not self._is_news(session) or (self.is_other(remote) and not remote.complete):
            self._say_minutes(remote.minutes)
            return
        if self.sockets and self.misses(remote):
            if self._asked is not None and len(self._later) < limits.REMOTE_STEPS_WAITING_MAX:
                self._later += (remote,)  # the missed step may be the one on its way
                return
            # A message was missed. The answer to the next step contains everything that was missed.
            self._say_minutes(remote.minutes)
            self._wanted = True
            self._plan(now_ms)
            return
        if remote.member is not None and remote.org is not None:
            self.know_months(remote.member, remote.org)
        self._adopt(session, remote.notices, now_ms)
        self._say_minutes(remote.minutes)
        self._plan(now_ms)

    def read(self, session: SessionState, notices: tuple[bytes, ...], now_ms: int) -> None:
        """Takes the session as read from Redis, with all kept notices.

        While a step of this process is on its way, the call changes nothing: what was read may
        include that step, and the answer to the step gives the present state.
        """
        if self._asked is None:
            self.apply_remote(RemoteStep(session, notices, complete=True), now_ms)
            # The account may have changed before this process heard of its changes.
            self._hope(now_ms)
            self._plan(now_ms)

    def _say_minutes(self, minutes: tuple[bytes, ...]) -> None:
        self._effects.extend(Push(minute) for minute in self.notices.minutes.take(minutes))

    def _hear_later(self, now_ms: int) -> None:
        """Takes remote steps that overtook the answer to the preceding one."""
        later, self._later = self._later, ()
        for remote in later:
            self.apply_remote(remote, now_ms)

    def changed(self, now_ms: int) -> None:
        """Takes note of a changed counter: the account, or a month's limit."""
        self._project(now_ms)
        self._hope(now_ms)
        self._warn(now_ms)
        self._plan(now_ms)

    def _hope(self, now_ms: int) -> None:
        if self.counting and self.session.grant.final is not None:
            self._hopes = self._hopes or self._may_go_on(now_ms)

    def refresh(self, now_ms: int) -> None:
        """Asks Redis again what is left, after a change of month limits."""
        if self.counting and not self._stands_still(now_ms):
            self._wanted = self._refreshed = True
        self._plan(now_ms)

    def relocate(self, month_of: MonthOf, now_ms: int) -> None:
        """Takes a new time zone, in which months begin at other instants."""
        self.month_of = month_of
        self._ends = ("", 0)
        self.refresh(now_ms)

    def recall(self, now_ms: int, *, minutes: bool = False) -> bool:
        """Gives back what this session merely holds, which another session needs.

        That is credits, or ``minutes`` of a month. The session settles, and keeps no more than it
        needs to run on. False: it gives nothing back, at least now. While a step is on its way, the
        recall is considered when its answer is there.
        """
        self._yields_until = now_ms + limits.REST_YIELD_MS
        if self._asked is not None:
            self._recalled.add(minutes)
        if not self.counting or self._asked is not None or self._stands_still(now_ms):
            return False
        if minutes and not keeps_more_minutes(self.session, now_ms):
            return False  # most of thousands of sessions: saves the computation of a step
        if not transitions.frees(transitions.claim(self._moment(now_ms)), minutes=minutes):
            return False
        self._wanted = True
        self._plan(now_ms)
        return True

    @property
    def shared_limit(self) -> str | None:
        """The limit that ends the grant, if others hold of its counter.

        The counter is credits or a month. Whether the grant is the last depends on those holders.
        None: it depends on no other session.
        """
        limit = self.session.grant.final or self.kept_open
        if not (self.counting and self.sockets > 0):
            return None
        is_shared = {
            "credits": not self._burns_alone,
            "member_minutes": self.member.active > 1,
            "org_minutes": self.org.active > 1,
        }
        return limit if limit is not None and is_shared.get(limit, False) else None

    def know_holders(self, now_ms: int, *, are_silent: bool) -> None:
        """Takes whether a counter's holders have answered the session's recall.

        The holders had the time to answer. While one of them is silent, a grant is not the last:
        its time runs on, as far as the counter is known to cover it. Once all have answered, the
        next answer of Redis shows what is left.
        """
        limit = self.shared_limit
        if limit is None or self._stands_still(now_ms):
            return
        was_open, self.kept_open = self.kept_open is not None, limit if are_silent else None
        if self._asked is not None:
            return
        if are_silent and not was_open:
            self._stand_on(self.session, now_ms)
        elif was_open and not are_silent:
            self._wanted = True
        self._plan(now_ms)

    def handle_timer(self, now_ms: int) -> None:
        """Handles the deadline of ``timer()``; an early wake-up counts as on time."""
        due_at = self.timer()
        if due_at is None:
            return
        now_ms = max(now_ms, due_at)
        self._decide_doubt(now_ms)
        standing = self.session.standing
        if standing.phase is not Phase.ACTIVE:
            if self._grace_end is not None and now_ms >= self._grace_end:
                self._intents.add(Intent(Event.EXPIRED, now_ms))
        elif not (self._limiting or self._halting):
            self._run(now_ms)
        self._plan(now_ms)

    # --- Inside ------------------------------------------------------------------

    def _has_left(self) -> bool:
        """Whether this process is done, with no claim's answer to come.

        A process that another socket has joined stays. Redis may have noted the join before it
        removed this process, so the process is noted again.
        """
        leaving, self._leaving = self._leaving, False
        self._unnoted = self._unnoted or (leaving and self.sockets > 0)
        return leaving and not self.sockets

    def _run(self, now_ms: int) -> None:
        """Handles the deadlines of running time, in the order of their instants."""
        standing = self.session.standing
        elapsed_ms = self.elapsed_at(now_ms)
        counted_time = self.counted_time
        if not counted_time.is_final and elapsed_ms >= counted_time.granted_ms:
            self._bind(now_ms)
            elapsed_ms = self.elapsed_at(now_ms)
        is_over = elapsed_ms >= counted_time.end_ms and now_ms >= self._ends_at
        if self.sockets:
            self._say_due(elapsed_ms)
        if elapsed_ms >= standing.minute_end_ms > self._probed_ms:
            self._probed_ms = standing.minute_end_ms
            if self.proven_ms(now_ms) < standing.minute_end_ms:
                self._effects.append(Probe())
        if not self.sockets:
            return  # time stands at its end; a process that can record the stop announces it
        if is_over and counted_time.end_limit is not None:
            self._reach_limit(counted_time.end_limit, counted_time.end_ms, now_ms)
        elif counted_time.claim_ms is not None and elapsed_ms >= counted_time.claim_ms:
            self._wanted = True
            if is_over:
                self._exhausted = True
                self._intents.add(Intent(Event.STOP, now_ms, reason="unavailable"))
        elif self._last_call_ms is not None and elapsed_ms >= self._last_call_ms:
            self._final_asked_ms = counted_time.granted_ms
            self._hopes = self._hopes or self._may_go_on(now_ms)

    def _say_due(self, elapsed_ms: int) -> None:
        """Sends the notices of the thresholds that running time has reached."""
        if (
            not self.notices.free_over
            and self.session.identity.terms.price_micros
            and elapsed_ms >= self.session.standing.free_ms
        ):
            push = self.notices.end_free_time(self.session)
            if push is not None:
                self._effects.append(push)
        self._effects.extend(self.notices.warn(self.session, elapsed_ms, self.positions))

    def _reach_limit(self, limit: str, elapsed_ms: int, now_ms: int, token: Token = None) -> None:
        """Announces the stop at a limit; the step that records it follows.

        ``elapsed_ms`` is the counted time. The grace begins with the announcement; where a gap is
        billed, counting stopped before that. ``token`` is a returning socket's request, which that
        step answers.
        """
        stopped_at = now_ms
        if self.counted_time.running:
            gap_ms = -(-self._gap_ms // self.counted_time.speed)
            stopped_at = self.counted_time.instant_of(elapsed_ms) + gap_ms
        self._limited_ms = elapsed_ms
        self._note_grant()
        self._effects.append(
            self.notices.say(
                messages.LimitReached,
                self.session,
                limit=limit,
                stopped_at=stopped_at,
                elapsed_ms=elapsed_ms,
                grace_ms=self.session.identity.terms.stop_grace_ms,
            )
        )
        self._show()  # no further tick shows this
        self._effects.append(Probe())
        self._intents.add_first(Intent(Event.LIMIT, now_ms, token, limit))

    def _plan(self, now_ms: int) -> None:
        """Sends the next step if one is due and none is pending."""
        if self._is_missed:
            self._intents.add(Intent(Event.RETURNED, now_ms))
        while self._asked is None and (first := self._intents.first) is not None:
            if self._lacks_proof(first, now_ms) or self._waits_for_answer(first):
                break  # time runs on meanwhile, with its claims
            intent = self._intents.take()
            if intent.event is Event.LOST and self.sockets:
                continue  # another socket has joined
            step = transitions.step_for(intent, self._moment_of(intent, now_ms))
            if step is None:
                if intent.event is Event.UNPROVEN:
                    self._doubt = None
                self._answer(intent)
            else:
                self._ask(step, intent)
        if self._asked is None and self._claim_due(now_ms):
            moment = self._moment(now_ms)
            if self.session.standing.phase is not Phase.ACTIVE:
                step = transitions.stand(moment)
            elif self._extends(now_ms) or moment.elapsed_ms > self.session.grant.granted_ms:
                step = transitions.claim(moment)
                self._refreshing, self._refreshed = self._refreshed, False
                self._in_vain = not step.offers
            else:
                step, self._in_vain = transitions.note(moment), False
            self._wanted = self._hopes = False
            self._ask(step, None)

    def _moment_of(self, intent: Intent, now_ms: int) -> Moment:
        """The moment in which an intent is judged.

        If the last socket went after its client's request, a socket that joined since proves
        nothing of the time between.
        """
        moment = self._moment(now_ms)
        if not (intent.ends_at_request and self._intents.waits(Event.LOST)):
            return moment
        ended_ms = max(self.session.standing.settled_ms, self.elapsed_at(intent.at))
        return msgspec.structs.replace(moment, proven_ms=min(moment.proven_ms, ended_ms))

    def _waits_for_answer(self, intent: Intent) -> bool:
        """Whether a client's request waits for the proof of earlier time."""
        doubt = self._doubt
        return doubt is not None and not doubt.is_over and intent.ends_at_request

    def _ask(self, step: Step, intent: Intent | None) -> None:
        if self.basis is not None and step.before.standing.version == 0:
            step = msgspec.structs.replace(step, basis=self.basis)
        self._asked, self._intents.current = step, intent
        self._expect(step)
        self._effects.append(Ask(step))

    def _answer(self, intent: Intent) -> None:
        """Answers a request that changes nothing: so already, or ended."""
        if intent.token is None:
            return
        standing = self.session.standing
        if standing.phase is Phase.ENDED:
            self._effects.append(Refuse(intent.token, None))
        elif intent.event is Event.RESUME and standing.phase is Phase.STOPPING:
            self._effects.append(Refuse(intent.token, standing.limit))
        else:
            self._show(intent.token, only=True)

    def _accept(
        self, step: Step, session: SessionState, intent: Intent | None, now_ms: int
    ) -> None:
        """Takes an accepted step: its result holds for every process."""
        before, visible_state = self.session.standing.phase, self._visible_state(now_ms)
        token = intent.token if intent is not None else None
        self.basis = None
        self._stand_on(session, now_ms, is_in_vain=self._in_vain and intent is None)
        self.notices.seq = max(self.notices.seq, session.standing.seq)
        self._say_minutes(step.minute_messages)
        phase = session.standing.phase
        if phase is Phase.ENDED:
            self._effects += [Push(step.notices[-1], token), LeaveSession()]
            return
        if phase is Phase.ACTIVE and before is not Phase.ACTIVE:
            self.notices.free_over = session.standing.free_over
        is_new = self._visible_state(now_ms) != visible_state
        if is_new or token is not None:
            self._show(token, only=not is_new)
        self._warn(now_ms)

    def _judge_again(self, intent: Intent) -> None:
        """Queues an intent again whose step was too late.

        A different event may be due by now.
        """
        if intent.event is Event.LIMIT and not self._limiting:
            # The grant was extended just in time; a returning socket gets that as its answer.
            if intent.token is None:
                return
            intent.event = Event.RETURNED
        elif intent.event is Event.RESUME and intent.starts and self.session.standing.version:
            # Another process started the session, so this is a join. The claim that follows notes
            # that this process has sockets.
            intent.event = Event.RETURNED
            self._unnoted = True
        self._intents.add_first(intent)

    def _others_stay(self, now_ms: int) -> None:
        """Leaves the session to others once its last local socket is gone.

        Time that is proven here only is settled before: no other process knows of it.
        """
        self._farewell_at = None  # the answered step has informed the other processes
        if self.sockets:
            self._unnoted = True  # another socket has joined: this process is noted again
            self._plan(now_ms)
        elif self.counting and self.proven_ms(now_ms) > self.session.standing.settled_ms:
            self._leaving = True
            self._ask(transitions.claim(self._moment(now_ms)), None)
        else:
            self._effects.append(LeaveSession())

    def _refused(self, limit: str, intent: Intent | None, now_ms: int) -> None:
        """Answers a request refused by a limit: nothing is left."""
        if intent is None:
            return
        if intent.event is Event.RETURNED:
            self._reach_limit(limit, self.session.standing.elapsed_ms, now_ms, intent.token)
            return
        self._effects.append(Refuse(intent.token, limit))
        if self.session.standing.version == 0:
            self._effects.append(LeaveSession())

    def _is_news(self, session: SessionState) -> bool:
        """Whether another process left the session different from what is known here.

        If a step was lost with a Redis that failed, another step may have its version.
        """
        known = self.session
        if session.standing.version != known.standing.version:
            return session.standing.version > known.standing.version
        return session.mark != known.mark

    def _adopt(self, session: SessionState, kept: tuple[bytes, ...], now_ms: int) -> None:
        """Takes the session from another process, and sends its notices here."""
        if not self._is_news(session):
            return
        for notice in self.notices.adopt(session.standing, kept):
            self._effects.append(Push(notice))
        is_probed, visible_state = self._limiting, self._visible_state(now_ms)
        is_known = self.session.standing.version > 0
        self._stand_on(session, now_ms)
        if session.standing.phase is Phase.ENDED:
            self._effects.append(LeaveSession())
            return
        if self._limiting:
            stops = self.notices.repeat_stop(session.standing)
            self._effects.extend(Push(notice) for notice in stops)
        if is_known and self._visible_state(now_ms) != visible_state:
            self._show()
        if self._is_unproven and not is_probed:
            self._effects.append(Probe())  # processes that hear the client prove the last seconds
        else:
            self._warn(now_ms)
