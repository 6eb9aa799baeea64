"""The meter: one session on one process, as a state machine without I/O and without a clock.

How it works
------------
The shell feeds it (a socket attached, a proof of life, a request, an answer of Redis),
each time with the instant ``now_ms``; arms one timer for ``timer()``; and drains
``effects()`` after every call. The meter burns its grant in memory. What changes the
session for everybody is a :class:`~protocol.metering.steps.Step`, one at a time: while one is on
its way, what happens next waits as an intent, and is judged again when the answer is in.

There is no owner: every process with a socket of the session runs the same meter, and
deadlines follow from shared figures, so they agree. The stop at a final grant's end is
said at once, by a local timer; the step that records it follows. A step that comes
second is answered with what the first one left, and that replaces what is here. Where
somebody only watches, time stands still at that end, and whatever is said is what a
process with sockets has recorded: it alone knows what comes before the stop.

Time is billed as far as it is proven. A minute's end is a deadline at which the sockets
are asked for a proof of life; the claim is made when it comes in, and until then the
grant's margin carries the session.
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
from protocol.metering.quota import MonthOf
from protocol.metering.session import SessionState
from protocol.metering.states import Event, Phase
from protocol.metering.steps import StartBasis, Step
from protocol.wire import messages


class Meter(MeterState):
    """One session on one process."""

    # --- What happens ------------------------------------------------------------

    def attach(self, now_ms: int, asked_at: int | None = None, *, has_others: bool = False) -> bool:
        """A socket of this process joined: it ends a grace, and is a proof of life as of when
        the socket asked to, for it may be gone since.

        ``has_others``: other processes have sockets. True: the sockets that were there before
        are to be asked for a proof of life, for they have given none lately.
        """
        came_at = now_ms if asked_at is None else asked_at
        begins = self._begin_doubt(came_at, now_ms, has_others=has_others)
        if not self.sockets:
            self.served_from_ms = self.elapsed_at(now_ms)
        self.sockets += 1
        self.proof_at = max(self.proof_at, came_at)
        self._warn(now_ms)
        self._plan(now_ms)
        return begins

    def _begin_doubt(self, came_at: int, now_ms: int, *, has_others: bool) -> bool:
        """Whether those who were there are to be asked; what they do not prove is a gap."""
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

    def confirm(self, at_ms: int, now_ms: int, came_at: int | None = None) -> None:
        """Who was there before the socket that joined last has proven its life at ``at_ms``.

        ``came_at``: the process that says so asks itself, since a socket joined there.
        """
        if self._doubt is not None and came_at is not None:
            self._doubt.told_of_another(came_at)
        if self._doubt is not None and self._doubt.told(at_ms):
            self._end_doubt(now_ms)

    def _end_doubt(self, now_ms: int) -> None:
        self._doubt = None
        self._intents.drop(Event.UNPROVEN)
        self._show()  # a tick may be far away, and what was shown did not count this
        self._plan(now_ms)

    def _decide_doubt(self, now_ms: int) -> None:
        """Those who were there have not answered in time."""
        doubt = self._doubt
        if doubt is None or doubt.is_over or now_ms < doubt.until:
            return
        doubt.is_over = True
        if doubt.is_told:
            # Before a request that has waited for this: it ends the time since the join.
            self._intents.add_first(Intent(Event.UNPROVEN, doubt.came_at))
        else:
            self._end_doubt(now_ms)  # their process is silent: it is swept, should it be dead

    def entitle(self, token: Token) -> bool:
        """Has a joining socket answered when the step that ends the grace is.

        False: no such step is under way, and the session can be shown as it is.
        """
        return self._intents.entitle(Event.RETURNED, token)

    def alive(self, at_ms: int, now_ms: int) -> bool:
        """A proof of life: a pong or a message came in at ``at_ms``.

        Answers whether there is anything to do now.
        """
        self.proof_at = max(self.proof_at, at_ms)
        self._plan(now_ms)
        return bool(self._effects)

    def promise(self, until_ms: int, now_ms: int) -> bool:
        """A heartbeat over HTTP came in: a proof of life up to ``until_ms``, in advance.

        Answers whether there is anything to do now.
        """
        self.promised_until = max(self.promised_until, until_ms)
        return self.alive(now_ms, now_ms)

    def withdraw(self, at_ms: int) -> None:
        """The promise has ended: it proved what lies before ``at_ms``, and no more. A ``detach``
        of the heartbeat follows."""
        self.promised_until = 0
        self.proof_at = max(self.proof_at, at_ms)

    def detach(
        self, alive_at: int, now_ms: int, *, died: bool = False, farewell: bool = False
    ) -> None:
        """A socket of this process is gone; its last proof of life was at ``alive_at``.

        ``died``: it was another process's, in whose name this one acts. ``farewell``: the
        user took leave, and what other processes have of the session in advance ends too.
        """
        self.sockets -= 1
        self.proof_at = max(self.proof_at, alive_at)
        if farewell:
            self._farewell_at = alive_at
        if self.sockets == 0:
            self._intents.add(Intent(Event.LOST, now_ms, reason="died" if died else ""))
        self._plan(now_ms)

    def farewell_told(self, at_ms: int) -> None:
        """Other processes have heard of a farewell by now; the step of a loss says it no more."""
        if self._farewell_at == at_ms:
            self._farewell_at = None

    def request(self, event: Event, now_ms: int, token: Token, reason: str = "client") -> bool:
        """Somebody wants the session paused, resumed or stopped.

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

    def start(self, now_ms: int, token: Token, basis: StartBasis | None = None) -> None:
        """Starts a session that has none of its steps yet; a socket comes with it.

        ``basis`` is what the session's identity was decided from.
        """
        self.basis = basis
        self.sockets += 1
        self.proof_at = now_ms
        self._intents.add(Intent(Event.RESUME, now_ms, token, starts=True))
        self._plan(now_ms)

    def granted(self, reply: Reply, now_ms: int) -> None:
        """Redis answered the step that was asked for."""
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
        """No answer came. What was asked may have been done: it is asked anew, from the
        same version, and if it was done already the answer says so."""
        intent, self._intents.current = self._intents.current, None
        self._heard_at = max(self._heard_at, now_ms)
        if self._asked is not None:
            self._asked = None
            is_early = self._grace_end is not None and now_ms < self._grace_end
            if intent is None:
                self._wanted = True
                self._refreshed = self._refreshed or self._refreshing
            elif intent.event is not Event.EXPIRED or not is_early:
                # Or else others can prove more, and are waited for again.
                self._intents.add_first(intent)
        if self._has_left():
            self._effects.append(LeaveSession())
        else:
            self._hear_later(now_ms)
            self._plan(now_ms)

    def abandon(self) -> list[Token]:
        """No answer comes for now: hands back whoever waits for one. What they asked for
        is still done, when it can be; a start is followed by the loss of its socket."""
        return self._intents.abandon()

    def misses(self, remote: RemoteStep) -> bool:
        """Whether steps were made before this one of which nothing was heard here."""
        return not remote.complete and remote.session.standing.version > (
            self.session.standing.version + 1
        )

    def is_other(self, remote: RemoteStep) -> bool:
        """Whether a step has the version of the one that is known here, and is another one: this
        one was lost with a Redis that failed. Which of them counts, an assertion decides."""
        session, known = remote.session, self.session
        has_version = session.standing.version == known.standing.version
        return has_version and self._is_news(session)

    def apply_remote(self, remote: RemoteStep, now_ms: int) -> None:
        """Another process made a step. Its notices have numbers; what was said stays said."""
        session = remote.session
        if not self._is_news(session) or (self.is_other(remote) and not remote.complete):
            self._say_minutes(remote.minutes)
            return
        if self.sockets and self.misses(remote):
            if self._asked is not None and len(self._later) < limits.REMOTE_STEPS_WAITING_MAX:
                self._later += (remote,)  # what is missed may be the step on its way
                return
            # A message was missed: the next step is answered with all that was.
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
        """The session was read, with all the notices that are kept. While a step of this process
        is on its way it may be part of that; then its answer tells what there is."""
        if self._asked is None:
            self.apply_remote(RemoteStep(session, notices, complete=True), now_ms)

    def _say_minutes(self, minutes: tuple[bytes, ...]) -> None:
        self._effects.extend(Push(minute) for minute in self.notices.minutes.take(minutes))

    def _hear_later(self, now_ms: int) -> None:
        """Takes what was told of others before the answer to the step that came before it."""
        later, self._later = self._later, ()
        for remote in later:
            self.apply_remote(remote, now_ms)

    def changed(self, now_ms: int) -> None:
        """A counter changed: the account, or a limit of member or organisation."""
        self._project(now_ms)
        if self.counting and self.session.grant.final is not None:
            self._hopes = self._hopes or self._may_go_on(now_ms)
        self._warn(now_ms)
        self._plan(now_ms)

    def refresh(self, now_ms: int) -> None:
        """A limit of the month was changed: ask anew what is left."""
        if self.counting and not self._stands_still(now_ms):
            self._wanted = self._refreshed = True
        self._plan(now_ms)

    def relocate(self, month_of: MonthOf, now_ms: int) -> None:
        """The organisation's time zone was changed: months begin at other instants."""
        self.month_of = month_of
        self._ends = ("", 0)
        self.refresh(now_ms)

    def recall(self, now_ms: int, *, minutes: bool = False) -> bool:
        """Somebody needs the credits, or the ``minutes`` of a month, that this session merely
        holds: settle, and keep no more than is needed to run on. False: it gives nothing back,
        now at least; while a step is on its way, that is looked at when the answer is there."""
        self._yields_until = now_ms + limits.REST_YIELD_MS
        if self._asked is not None:
            self._recalled.add(minutes)
        if not self.counting or self._asked is not None or self._stands_still(now_ms):
            return False
        if not transitions.frees(transitions.claim(self._moment(now_ms)), minutes=minutes):
            return False
        self._wanted = True
        self._plan(now_ms)
        return True

    @property
    def shared_limit(self) -> str | None:
        """The limit that ends the grant, where it depends on what others hold of that counter,
        credits or a month, if the grant is the last; None: on no other session."""
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
        """Those who hold the rest of the counter were told that this session needs it, and had
        the time to answer. While one has not, a grant is not the last: its time runs on, as far
        as the counter is known to cover it. Once all have, the next answer says what there is."""
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
        """The deadline of ``timer()`` has come; early wake-ups are taken as on time."""
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
        """Whether what was answered now, or never will be, is the last claim of a process
        that leaves; one that another socket has joined stays."""
        leaving, self._leaving = self._leaving, False
        return leaving and not self.sockets

    def _run(self, now_ms: int) -> None:
        """The deadlines of running time, in the order in which they lie."""
        standing = self.session.standing
        elapsed_ms = self.elapsed_at(now_ms)
        counted_time = self.counted_time
        if not counted_time.is_final and elapsed_ms >= counted_time.granted_ms:
            self._bind(now_ms)
            elapsed_ms = self.elapsed_at(now_ms)
        is_over = elapsed_ms >= counted_time.end_ms
        if self.sockets:
            self._say_due(elapsed_ms)
        if elapsed_ms >= standing.minute_end_ms > self._probed_ms:
            self._probed_ms = standing.minute_end_ms
            if self.proven_ms(now_ms) < standing.minute_end_ms:
                self._effects.append(Probe())
        if not self.sockets:
            return  # time stands at its end; the stop has the words of those who can record it
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
        """Says which thresholds running time has come to."""
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
        """The auto-stop: said and shown at once, recorded by the step that follows.

        ``elapsed_ms`` is what was counted. The grace begins when it is said; counting stopped
        before that where a gap is billed. ``token`` is whoever came back and is to be answered
        by that step.
        """
        stopped_at = (
            self.counted_time.instant_of(elapsed_ms) if self.counted_time.running else now_ms
        )
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
        self._show()  # no tick comes any more that shows it
        self._effects.append(Probe())
        self._intents.add_first(Intent(Event.LIMIT, now_ms, token, limit))

    def _plan(self, now_ms: int) -> None:
        """Asks for the next step, if one is due and none is on its way."""
        if self._is_missed:
            self._intents.add(Intent(Event.RETURNED, now_ms))
        while self._asked is None and (first := self._intents.first) is not None:
            if self._lacks_proof(first, now_ms) or self._waits_for_answer(first):
                break  # time runs on meanwhile, and so do its claims
            intent = self._intents.take()
            if intent.event is Event.LOST and self.sockets:
                continue  # another socket joined meanwhile
            step = transitions.step_for(intent, self._moment(now_ms))
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
            else:
                step = transitions.note(moment)
            self._wanted = self._hopes = False
            self._ask(step, None)

    def _waits_for_answer(self, intent: Intent) -> bool:
        """Whether a client's request waits until it is known which time was proven before."""
        doubt = self._doubt
        return doubt is not None and not doubt.is_over and intent.ends_at_request

    def _ask(self, step: Step, intent: Intent | None) -> None:
        if self.basis is not None and step.before.standing.version == 0:
            step = msgspec.structs.replace(step, basis=self.basis)
        self._asked, self._intents.current = step, intent
        self._expect(step)
        self._effects.append(Ask(step))

    def _answer(self, intent: Intent) -> None:
        """Answers a request that changes nothing: the session is as it was wanted, or over."""
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
        """The step was made: what it left is what there is, for every process."""
        before, visible_state = self.session.standing.phase, self._visible_state(now_ms)
        token = intent.token if intent is not None else None
        self.basis = None
        self._stand_on(session, now_ms)
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
        """Somebody was faster: what was asked for may still be due, or something else is."""
        if intent.event is Event.LIMIT and not self._limiting:
            # The grant was extended just in time; who came back is answered with that.
            if intent.token is None:
                return
            intent.event = Event.RETURNED
        elif intent.event is Event.RESUME and intent.starts and self.session.standing.version:
            # Somebody else started it: this is a join. The claim that follows notes this
            # process among those that have sockets.
            intent.event = Event.RETURNED
            self._unnoted = True
        self._intents.add_first(intent)

    def _others_stay(self, now_ms: int) -> None:
        """The last socket here is gone, and other processes have some. What was proven
        here only is settled before this process leaves; nobody else knows of it."""
        self._farewell_at = None  # the step that was answered has told the others
        if self.sockets:
            self._unnoted = True  # another joined meanwhile: this process is noted again
            self._plan(now_ms)
        elif self.counting and self.proven_ms(now_ms) > self.session.standing.settled_ms:
            self._leaving = True
            self._ask(transitions.claim(self._moment(now_ms)), None)
        else:
            self._effects.append(LeaveSession())

    def _refused(self, limit: str, intent: Intent | None, now_ms: int) -> None:
        """There is nothing to go on with: said to whoever asked."""
        if intent is None:
            return
        if intent.event is Event.RETURNED:
            self._reach_limit(limit, self.session.standing.elapsed_ms, now_ms, intent.token)
            return
        self._effects.append(Refuse(intent.token, limit))
        if self.session.standing.version == 0:
            self._effects.append(LeaveSession())

    def _is_news(self, session: SessionState) -> bool:
        """Whether another process has left the session otherwise than it is known here. Where a
        step was lost with a Redis that failed, another one may have its version."""
        known = self.session
        if session.standing.version != known.standing.version:
            return session.standing.version > known.standing.version
        return session.mark != known.mark

    def _adopt(self, session: SessionState, kept: tuple[bytes, ...], now_ms: int) -> None:
        """Takes what another process left, and says here what it said there."""
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
        if is_known and self._visible_state(now_ms) != visible_state:
            self._show()
        if self._is_unproven and not is_probed:
            self._effects.append(Probe())  # the last seconds are for those who hear the client
        else:
            self._warn(now_ms)
