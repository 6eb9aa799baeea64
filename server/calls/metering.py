"""Calls as sessions: what a call's facts make of its participants' meters.

A participant of one run of a call is one session, ``call:{provider}:{call session}:{user}``. The
facts decide when its time runs: the process that takes a fact holds a presence without a socket,
and the provider's word is the proof of life. Facts may come in any order, repeated, late or never,
so nothing here depends on their order: with each fact, the session is brought to what all facts of
the inbox say together. A repetition, on whichever process, finds nothing to do.

Time that becomes known afterwards is counted at once, as far back as an hour, up to the balance and
the limits of the moment. What that misses is settled after the run's end, by one correction.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec
import structlog

from protocol import limits
from protocol.metering.session import Identity, session_key
from protocol.metering.states import Event, Phase
from protocol.wire.errors import (
    ErrorCode,
    PeerError,
    ProtocolError,
    RefusedError,
    ServiceError,
)
from server import limits as server_limits
from server.calls import limits as call_limits
from server.calls.attendance import PROVIDED, Attendance, EndOfCall, SessionName, Word, ends
from server.calls.billing import Billing, CallMapping, session_id_of
from server.calls.enforcement import Enforcement
from server.calls.facts import Adapter, CallTruth, Fact
from server.calls.settlement import Settlement
from server.calls.timeline import heard_until, timeline
from server.process import Process
from server.runtime.isolation import AWAY
from server.runtime.waiting import Locks
from server.sessions.pending_requests import PendingRequest
from storage.postgres.call_clocks import CallClocks
from storage.postgres.records import UnavailableError
from storage.redis.live import FoundSession
from storage.rows.call_clocks import Correction

log = structlog.get_logger()


class ParticipantFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A participant's session of an ended run, with both clocks."""

    tenant: str
    session_id: str
    user_id: str
    elapsed_ms: int
    """By our clock; 0 where the session never began."""
    provider_ms: int | None
    """By the provider's; None without a figure of its own."""
    difference_ms: int | None
    """The provider's time less ours."""
    reason: str
    """Why there is a correction, or why a difference was left; empty: there is none."""
    uncollected_ms: int
    """Time that neither the balance nor the limits covered when it became known."""
    corrections: tuple[Correction, ...]
    """What was charged further, or given back."""


class CallMeter:
    """The sessions of calls, on one process."""

    def __init__(self, process: Process, adapters: Mapping[str, Adapter]) -> None:
        self.process = process
        self.registry = process.registry
        self.clocks = CallClocks.over(process.records)
        self.settlement = Settlement(process, self.clocks)
        self.enforcement = Enforcement(process, adapters, self.clocks)
        self.attendance = Attendance(process, self.enforcement)
        self._locks = Locks()
        process.registry.provided_told = self.told
        process.membership.orphans.provided = self.adopt

    # --- The provider's word ---------------------------------------------------------------

    async def apply(self, fact: Fact, mapping: CallMapping) -> None:
        """Applies a fact of the inbox, once for each ``fact.key``.

        A repetition changes nothing. Raises ``unknown_kind`` for a kind that the rate card lacks,
        or whose clock is the server's: such a call is parked. Raises ``unavailable``
        (``ServiceError``), ``LiveError`` and ``UnavailableError`` while a store does not answer:
        apply the fact again later. What a limit refuses is no error: the call is ended at the
        provider, as the kind says.
        """
        names: dict[SessionName, Billing] = {}
        for participant, billing in mapping.participants.items():
            if fact.participant in (None, participant):
                names[_name(fact.provider, fact.call_session, billing)] = billing

        async def bring(name: SessionName) -> None:
            self._check_kind(names[name])
            await self._bring(name)

        await _for_each(names, bring)

    async def confirm(self, truth: CallTruth, mapping: CallMapping) -> None:
        """Takes a sweep's answer: proofs of life, and durations.

        The answer's facts were applied before. May be repeated. Raises as :meth:`apply`.
        """
        asked: dict[SessionName, int | None] = {}
        billings: dict[SessionName, Billing] = {}
        for participant, billing in mapping.participants.items():
            name = _name(truth.provider, truth.call_session, billing)
            figure_ms = truth.durations_ms.get(participant) if truth.ended else None
            billings[name] = billing
            before_ms = asked.get(name)
            asked[name] = figure_ms if before_ms is None else before_ms + (figure_ms or 0)
        heard_at = truth.asked_at_ms if truth.complete else None

        async def bring(name: SessionName) -> None:
            self._check_kind(billings[name])
            await self._bring(name, heard_at=heard_at, asked_ms=asked[name])

        await _for_each(asked, bring)

    async def figures(self, provider: str, call_session: str) -> tuple[ParticipantFigures, ...]:
        """Both clocks of a run's ended sessions; raises ``UnavailableError``."""
        found = await self.clocks.durations_of_run(provider, call_session)
        return tuple(
            ParticipantFigures(
                tenant=one.tenant,
                session_id=one.session_id,
                user_id=one.user_id,
                elapsed_ms=one.elapsed_ms,
                provider_ms=one.provider_ms,
                difference_ms=one.difference_ms,
                reason=one.reason,
                uncollected_ms=one.uncollected_ms,
                corrections=tuple(made for made in one.corrections if made.is_done),
            )
            for one in found
        )

    def told(self, tenant: str, session_id: str) -> None:
        """Takes note of a word that another process has taken."""
        local = self.registry.local_sessions.get(session_key(tenant, session_id))
        if local is not None and local.meter.sockets:
            self.registry.run(self._told((tenant, session_id)))

    async def _told(self, name: SessionName) -> None:
        try:
            await self._bring(name, is_told=True)
        except (*AWAY, ProtocolError) as error:
            log.warning("call_not_brought", session=name[1], error=str(error))

    async def adopt(self, identity: Identity) -> None:
        """Looks after the session of a dead process; raises ``ServiceError``."""
        try:
            await self._bring((identity.tenant, identity.session_id))
        except UnavailableError as error:
            raise ServiceError("the record of calls does not answer") from error

    def _check_kind(self, billing: Billing) -> None:
        if not self.process.rates.terms(billing.kind).is_provided:
            raise PeerError(
                ErrorCode.UNKNOWN_KIND, f"kind: {billing.kind} has the server's clock, not a call's"
            )

    # --- Bringing a session to the provider's word -------------------------------------------

    async def _bring(
        self,
        name: SessionName,
        *,
        heard_at: int | None = None,
        asked_ms: int | None = None,
        is_told: bool = False,
    ) -> None:
        """Brings a session to what the provider has said so far.

        ``heard_at``: then the provider has said who is there. ``is_told``: another process does
        what does not need the presence here.
        """
        async with self._locks.hold(name):
            word = await self._word(name, heard_at)
            if word is None:
                return
            line = word.line
            if line.ended_at is not None:
                await self._end(word, asked_ms, is_told=is_told)
            elif line.is_present and self.process.clock.now() < word.until:
                await self._hold(word, is_told=is_told, is_confirmed=heard_at is not None)
            elif line.stretches:
                await self._release(word, is_told=is_told)

    async def _word(self, name: SessionName, heard_at: int | None = None) -> Word | None:
        call = await self.clocks.call_of(*name)
        if call is None:
            return None
        billing = msgspec.json.decode(call.mapping, type=Billing)
        now_ms = self.process.clock.now()
        line = timeline(call.facts, now_ms, billing.devices)
        known = self.attendance.word(name)
        until = heard_until(call, now_ms, heard_at)
        if known is not None:
            until = max(until, known.until)
        return Word(name, call, billing, line, until)

    async def _hold(self, word: Word, *, is_told: bool, is_confirmed: bool) -> None:
        """Keeps a session's time running, with a presence here."""
        presence = self.attendance.presence(word.name)
        if presence is None and is_told:
            return
        if presence is None and is_confirmed:
            found = await self.process.live.attach(*word.name, read_only=True)
            is_active = found is not None and found.session.standing.phase is Phase.ACTIVE
            if is_active and found is not None and found.nodes - {self.process.node}:
                await self._tell(found)  # it is held there, and hears the word
                return
        if presence is None:
            presence = await self.attendance.attach(word)
        if presence is None or presence.local is None:
            return
        self.attendance.follow(presence, word)
        phase = presence.local.meter.phase
        if phase is Phase.PAUSED:
            self.attendance.request(presence.local, Event.RESUME)
        elif phase is Phase.STOPPING:
            self.attendance.enforce(word)
        elif phase is Phase.ACTIVE:
            self.enforcement.done(word.name)

    async def _release(self, word: Word, *, is_told: bool) -> None:
        """Suspends a session whose user has left, or is not confirmed."""
        line = word.line
        self.enforcement.done(word.name)
        left_at = min(line.left_at, word.until) if line.is_present else line.left_at
        if not self.attendance.lose(word.name, left_at) and not is_told:
            await self._visit(word, left_at)
        found = await self.process.live.attach(*word.name, read_only=True)
        if found is None or found.session.standing.phase is not Phase.ACTIVE:
            return
        local = self.registry.local_sessions.get(session_key(*word.name))
        if local is not None and local.meter.sockets:
            # A page is open, but its user is not in the call.
            self.attendance.request(local, Event.PAUSE)
        if not is_told and found.nodes - {self.process.node}:
            await self._tell(found)

    async def _visit(self, word: Word, left_at: int, *, is_over: bool = False) -> None:
        """Counts a stretch that became known when it was over.

        ``is_over``: the run has ended. Time that is too old for the meter, as of a call that is
        mapped a day later, is then a session without time of its own, which the settlement
        corrects.
        """
        now_ms = self.process.clock.now()
        is_old = left_at < now_ms - limits.PROVIDED_SINCE_MS_MAX
        if not word.line.stretches or (is_old and not is_over):
            return
        if await self._known(word.name):
            return
        presence = await self.attendance.attach(word, since=now_ms if is_old else None)
        if presence is not None:
            self.attendance.lose(word.name, now_ms if is_old else left_at)
            if presence.local is not None:
                await self.attendance.settled(presence.local)

    async def _known(self, name: SessionName) -> bool:
        """Whether the session has begun."""
        if await self.process.live.attach(*name, read_only=True) is not None:
            return True
        row = await self.process.records.session(*name)
        return row is not None and row.state != "prepared"

    # --- The end -------------------------------------------------------------------------------

    async def _end(self, word: Word, asked_ms: int | None, *, is_told: bool) -> None:
        """Ends a session with its run, and settles the two clocks."""
        line, name = word.line, word.name
        self.enforcement.done(name)
        left_at = line.left_at if line.stretches else self.process.clock.now()
        is_here = self.attendance.lose(name, left_at)
        if not is_here and not is_told:
            await self._visit(word, left_at, is_over=True)
            self.enforcement.done(name)  # the run is over, whatever a limit has refused
        found = await self.process.live.attach(*name, read_only=True)
        if found is not None and found.session.standing.phase is not Phase.ENDED:
            await self._stop(found, is_told=is_told)
        if is_told:
            return  # the process that took the end settles
        ended = await self.attendance.ended(name)
        if ended is None and await self._known(name):
            raise ServiceError("the session has not ended yet; it will when its store answers")
        if ended is None and not line.stretches:
            return  # the user was never there
        asked_ms = await self._asked_ms(name, asked_ms)
        now_ms = self.process.clock.now()
        line = timeline(word.call.facts, now_ms, word.billing.devices, asked_ms)
        await self.settlement.settle(name, word.call, word.billing, line, ended, asked_ms)

    async def _asked_ms(self, name: SessionName, asked_ms: int | None) -> int | None:
        """What the provider said of all devices, now or before."""
        if asked_ms is not None:
            return asked_ms
        known = await self.clocks.duration(*name)
        return known.asked_ms if known is not None else None

    async def _stop(self, found: FoundSession, *, is_told: bool) -> None:
        """Ends a session as ``call_ended``, and waits for the end."""
        identity = found.session.identity
        waiter = EndOfCall()
        try:
            local = await self.registry.open(waiter, identity.tenant, identity.session_id)
        except RefusedError:
            return  # it ended meanwhile
        if local is None:
            return
        try:
            if not is_told and found.nodes - {self.process.node}:
                # The process with the presence ends it at the instant of the facts.
                await self._tell(found)
                if await ends(waiter, call_limits.CALL_END_WAIT_MS):
                    return
                message = {"stop": identity.session_id, "reason": "call_ended"}
                await self.process.live.tell(identity.tenant, identity.account_id, message)
            if local.meter.sockets or not found.nodes - {self.process.node}:
                pending = PendingRequest(subscriber=None, request_id=None)
                self.registry.request(local, Event.STOP, pending, "call_ended")
            await ends(waiter, server_limits.REQUEST_TIMEOUT_MS)
        finally:
            self.registry.unsubscribe(local, waiter, self.process.clock.now())

    # --- Other processes -----------------------------------------------------------------------

    async def _tell(self, found: FoundSession) -> None:
        """Tells a session's other processes of the provider's word."""
        identity = found.session.identity
        message = {PROVIDED: identity.session_id, "node": self.process.node}
        await self.process.live.tell(identity.tenant, identity.account_id, message)


async def _for_each(
    names: Iterable[SessionName], bring: Callable[[SessionName], Awaitable[None]]
) -> None:
    """Brings sessions side by side; a failure keeps back no other.

    Raises the first failure when every session has had its turn.
    """
    left = iter(names)
    failures: list[Exception] = []

    async def work() -> None:
        for name in left:
            try:
                await bring(name)
            except Exception as error:
                failures.append(error)

    async with asyncio.TaskGroup() as group:
        for _ in range(call_limits.CALL_PARTICIPANTS_BROUGHT_AT_ONCE_MAX):
            group.create_task(work())
    if failures:
        raise failures[0]


def _name(provider: str, call_session: str, billing: Billing) -> SessionName:
    return billing.tenant, session_id_of(provider, call_session, billing.user_id)
