"""Who is present: the sockets of participants, held by this process."""

import asyncio

import msgspec
import structlog

from protocol import limits
from protocol.metering.records import SessionEnded
from protocol.metering.states import Event, Phase
from protocol.metering.steps import ended_record
from protocol.wire import messages
from protocol.wire.errors import (
    ErrorCode,
    PeerError,
    ProtocolError,
    RefusedError,
    ServiceError,
)
from server import limits as server_limits
from server.access.principals import Principal
from server.calls import limits as call_limits
from server.calls.billing import Billing
from server.calls.enforcement import Enforcement
from server.calls.facts import CallRun
from server.calls.presence import CallPresence
from server.calls.timeline import Timeline
from server.gateway.session_start import identity_of
from server.process import Process
from server.runtime.waiting import Signal
from server.sessions.local_session import LocalSession
from server.sessions.pending_requests import PendingRequest
from storage.redis.spending import AccountName
from storage.rows.call_clocks import CallOfSession

log = structlog.get_logger()

SessionName = tuple[str, str]
"""Tenant and session."""
PROVIDED = "provided"
"""Why an outside clock pauses or resumes a session that a page keeps alive."""


class Word(msgspec.Struct, frozen=True):
    """What a provider has said about a session's user."""

    name: SessionName
    call: CallOfSession
    billing: Billing
    line: Timeline
    until: int
    """Up to when the word that the user is there counts."""

    @property
    def run(self) -> CallRun:
        """The run, as adapters take it."""
        call = self.call
        return CallRun(call=call.call_id, call_session=call.call_session, rest_name=call.rest_name)


class Attendance:
    """The presences of this process, and the words that they follow."""

    def __init__(self, process: Process, enforcement: Enforcement) -> None:
        self.process = process
        self.registry = process.registry
        self.enforcement = enforcement
        self._presences: dict[SessionName, CallPresence] = {}
        self._words: dict[SessionName, Word] = {}
        """The last word about each session with a presence here."""

    def word(self, name: SessionName) -> Word | None:
        """The word that the presence of a session follows."""
        return self._words.get(name)

    def presence(self, name: SessionName) -> CallPresence | None:
        """The presence of a session here."""
        return self._presences.get(name)

    def follow(self, presence: CallPresence, word: Word) -> None:
        """Takes a further word about a presence."""
        self._words[word.name] = word
        presence.extend(word.until)

    async def attach(self, word: Word, *, since: int | None = None) -> CallPresence | None:
        """Joins or starts the session; None: it may not run.

        ``since``: from when its time counts; None: as the facts say.
        """
        if len(self._presences) >= call_limits.CALL_PRESENCES_MAX:
            raise ServiceError("too many participants of calls are present on this process")
        presence = CallPresence(self, *word.name)
        try:
            local = await self._joined(word, presence, since)
        except RefusedError as error:
            if error.code is ErrorCode.LIMIT_REACHED or await self._is_at_limit(word.name):
                self.enforce(word)
            return None
        except PeerError as error:
            # Another user's session, or too many live ones: it is settled at the run's end.
            log.warning("call_not_metered", session=word.name[1], error=str(error))
            return None
        if presence not in local.subscribers:
            return None  # the session ended a moment after it was joined
        presence.local = local
        self._presences[word.name] = presence
        self._words[word.name] = word
        presence.extend(word.until)
        return presence

    async def _joined(self, word: Word, presence: CallPresence, since: int | None) -> LocalSession:
        """The session, once the step that adds the presence is answered."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def shown(message: messages.ServerMessage | bytes) -> None:
            if not answered.done():
                answered.set_result(None)

        def failed(error: ProtocolError) -> None:
            if not answered.done():
                answered.set_exception(error)

        pending = PendingRequest(None, None, failed=failed, shown=shown)
        local = await self._join_or_start(word, presence, pending, since)
        try:
            async with asyncio.timeout(server_limits.REQUEST_TIMEOUT_MS / 1000):
                await answered
        except BaseException as error:
            if self.registry.local_sessions.get(local.key) is local:
                self.registry.unsubscribe(local, presence, self.process.clock.now())
            if isinstance(error, TimeoutError):
                raise ServiceError("the session store does not answer") from None
            raise
        return local

    async def _join_or_start(
        self, word: Word, presence: CallPresence, pending: PendingRequest, since: int | None
    ) -> LocalSession:
        process, billing, (tenant, session_id) = self.process, word.billing, word.name
        line = word.line
        if since is None:
            is_running = line.is_present or not line.stretches
            since = line.since if is_running else line.stretches[-1][0]
        for _ in range(2):
            local = await self.registry.join(
                presence,
                tenant,
                session_id,
                billing.user_id,
                pending,
                tick_ms=limits.TICK_MS_MAX,
                since=since,
            )
            if local is not None:
                return local
            principal = Principal(
                kind="user",
                user_id=billing.user_id,
                org_id=billing.org_id,
                account_id=billing.account_id,
                tenant=tenant,
            )
            start = messages.Start(session_id=session_id, kind=billing.kind)
            identity, basis = await identity_of(process, principal, start, may_prepare=True)
            began_at = max(since, identity.started_at - limits.PROVIDED_SINCE_MS_MAX)
            identity = msgspec.structs.replace(identity, started_at=began_at)
            await process.ledger.ensure_allotment_at_start(AccountName(tenant, identity.account_id))
            local = await self.registry.start(
                presence, identity, pending, limits.TICK_MS_MAX, basis, since
            )
            if local is not None:
                return local
        raise ServiceError("the session is being started")

    def lose(self, name: SessionName, at_ms: int) -> bool:
        """Ends the presence here as of an instant; False: there is none."""
        presence = self._presences.get(name)
        if presence is None:
            return False
        self.forget(presence)
        if presence.local is not None:
            at_ms = min(at_ms, self.process.clock.now())
            presence.local.meter.withdraw(at_ms)
            self.registry.unsubscribe(presence.local, presence, at_ms)
        return True

    def forget(self, presence: CallPresence) -> None:
        """Forgets a presence whose session has ended."""
        presence.stop()
        name = (presence.tenant, presence.session_id)
        if self._presences.get(name) is presence:
            del self._presences[name]
            self._words.pop(name, None)

    def unconfirmed(self, presence: CallPresence) -> None:
        """Loses a presence that the provider has not confirmed for long."""
        log.warning("call_unconfirmed", session=presence.session_id)
        self.lose((presence.tenant, presence.session_id), presence.alive_until)

    def reached_limit(self, presence: CallPresence) -> None:
        """Has the provider end the call of a presence at its limit."""
        word = self._words.get((presence.tenant, presence.session_id))
        if word is not None:
            self.enforce(word)

    def enforce(self, word: Word) -> None:
        """Has the provider end a participant's call, as the kind says."""
        terms = self.process.rates.kinds.get(word.billing.kind)
        if terms is not None:
            self.enforcement.begin(
                word.name, word.call.provider, word.run, word.call.participants, terms.enforce
            )

    async def _is_at_limit(self, name: SessionName) -> bool:
        """Whether a session has ended at a limit."""
        ended = await self.ended(name)
        return ended is not None and ended.reason == "limit"

    def request(self, local: LocalSession, event: Event) -> None:
        """Pauses or resumes, in the provider's name, a page's session."""
        pending = PendingRequest(subscriber=None, request_id=None)
        self.registry.request(local, event, pending, PROVIDED)

    async def ended(self, name: SessionName) -> SessionEnded | None:
        """The record of a session's end; None: there is none."""
        found = await self.process.live.attach(*name, read_only=True)
        if found is not None:
            if found.session.standing.phase is not Phase.ENDED:
                return None
            return ended_record(found.session.identity, found.session.standing)
        row = await self.process.records.session(*name)
        return row.end if row is not None and row.state == "ended" else None

    async def settled(self, local: LocalSession) -> None:
        """Waits until no step of the session is on its way here."""
        try:
            async with asyncio.timeout(2 * limits.REDIS_TIMEOUT_MS / 1000):
                await local.settled.wait()
        except TimeoutError:
            raise ServiceError("the session store does not answer") from None


class EndOfCall:
    """Waits for a session's end, as a subscriber without a socket."""

    def __init__(self) -> None:
        self.has_left = Signal()

    def send(self, frame: bytes) -> None:
        """Ignores the frame."""

    def send_tick(self, frame: bytes) -> bool:
        """Ignores the tick."""
        return True

    def probe(self) -> None:
        """Does nothing: it proves no life."""

    def farewell(self, at_ms: int) -> None:
        """Does nothing: it proves nothing in advance."""

    def left(self, local: LocalSession) -> None:
        """Notes the session's end."""
        self.has_left.set()


async def ends(waiter: EndOfCall, within_ms: int) -> bool:
    """Waits for a session's end; returns whether it came in time."""
    try:
        async with asyncio.timeout(within_ms / 1000):
            await waiter.has_left.wait()
    except TimeoutError:
        return False
    return True
