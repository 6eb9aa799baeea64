"""Study sessions: a user's part in a call.

Where a call's provider is set up, its events and its REST decide, and a page's word changes no
bill. Where none is, the page's word is all there is: it becomes facts of a provider of its own,
named :data:`PAGE`, which the meter takes like any other. A page that has begun counts for half an
hour after its last word. Its end is believed up to ``STUDY_PAGE_MS_MAX`` after its word before: an
old page says nothing in between. A page that begins anew after the half hour has not ended before,
and the time in which it was silent is not counted.
"""

import asyncio
import hashlib
from collections.abc import Mapping

import msgspec

from server.calls import limits as call_limits
from server.calls.billing import Billing, session_id_of
from server.calls.facts import Adapter, CallRun, CallTruth, Fact, FactKind, ProviderError
from server.calls.service import Calls
from server.calls.timeline import Timeline, timeline
from storage.rows.calls import CallRunRow, ParticipantRow

PAGE = "application"
"""The provider's name of calls that only a page reports."""
PROVIDER = "stream"
"""The provider that existing applications have."""
KIND = "call"


class StudyUser(msgspec.Struct, frozen=True):
    """The user of a study session, and the account that pays."""

    tenant: str
    user_id: str
    org_id: str | None
    account_id: str


class StudyPart(msgspec.Struct, frozen=True):
    """A user's part in one run."""

    run: CallRunRow
    person: ParticipantRow
    line: Timeline
    heard_at: int
    """The newest fact about the user, or the run's first."""

    @property
    def joined_at(self) -> int | None:
        """When the user first came in; None: not at all yet."""
        return self.line.stretches[0][0] if self.line.stretches else None

    @property
    def left_at(self) -> int | None:
        """When the user went last; None: is there, or never was."""
        is_there = self.line.is_present or not self.line.stretches
        return None if is_there else self.line.left_at

    def ms_within(self, span: tuple[int, int]) -> int:
        """The user's time in the call between two instants."""
        overlaps = (
            min(to_at, span[1]) - max(from_at, span[0]) for from_at, to_at in self.line.stretches
        )
        return sum(max(0, overlap_ms) for overlap_ms in overlaps)


class AskedTruths:
    """What providers said lately about runs.

    One question at a time about a run, and few in all: pages ask as often as they like.
    """

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        self._adapters = adapters
        self._places = asyncio.Semaphore(call_limits.STUDY_ASKS_AT_ONCE_MAX)
        self._known: dict[tuple[str, str], tuple[int, CallTruth | None]] = {}

    async def of(self, run: CallRunRow, now_ms: int) -> CallTruth | None:
        """The truth about a run; None: there is no answer.

        It is at most ``STUDY_ASK_MS`` old.
        """
        adapter, name = self._adapters.get(run.provider), (run.provider, run.call_session)
        if adapter is None or not adapter.has_duration:
            return None
        if self._is_known(name, now_ms):
            return self._known[name][1]
        try:
            async with asyncio.timeout(call_limits.STUDY_ASK_MS / 1000), self._places:
                if self._is_known(name, now_ms):  # by who had a place before
                    return self._known[name][1]
                self._keep(name, now_ms, None)
                asked = CallRun(
                    call=run.call_id, call_session=run.call_session, rest_name=run.rest_name
                )
                truth = await adapter.sweep(asked)
                self._keep(name, now_ms, truth)
                return truth
        except (ProviderError, TimeoutError):
            return None

    def _is_known(self, name: tuple[str, str], now_ms: int) -> bool:
        return name in self._known and self._known[name][0] + call_limits.STUDY_ASK_MS > now_ms

    def _keep(self, name: tuple[str, str], now_ms: int, truth: CallTruth | None) -> None:
        self._known.pop(name, None)
        self._known[name] = (now_ms, truth)
        if len(self._known) > call_limits.STUDY_ASKS_KEPT_MAX:
            del self._known[next(iter(self._known))]


class StudySessions:
    """The study sessions of one process."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._truths = AskedTruths(calls.adapters)

    # --- What is known -----------------------------------------------------------------------

    async def newest(self, user: StudyUser, call_id: str) -> StudyPart | None:
        """The user's part in the newest run of a call."""
        found = await self._parts(user, 1, call_id=call_id)
        return found[0] if found else None

    async def present(self, user: StudyUser) -> list[StudyPart]:
        """The calls that the user is in, newest first."""
        found = await self._parts(user, call_limits.STUDY_CALLS_MAX, going_on=True)
        return [part for part in found if part.line.is_present and not self._is_silent(part)]

    async def _parts(
        self,
        user: StudyUser,
        limit: int,
        *,
        call_id: str | None = None,
        provider: str | None = None,
        going_on: bool = False,
    ) -> list[StudyPart]:
        found = await self.calls.records.runs_of_user(
            user.tenant,
            user.user_id,
            limit,
            call_id=call_id,
            provider=provider,
            going_on=going_on,
        )
        now_ms = self.calls.process.clock.now()
        parts = []
        for one in found:
            assert one.person.session_id is not None
            call = await self.calls.meter.clocks.call_of(user.tenant, one.person.session_id)
            billing = msgspec.convert(one.person.mapping, Billing)
            facts = call.facts if call is not None else ()
            heard_at = max((fact.at_ms for fact in facts if fact.device), default=one.run.seen_at)
            line = timeline(facts, now_ms, billing.devices)
            parts.append(StudyPart(one.run, one.person, line, heard_at))
        return parts

    async def provider_ms(self, part: StudyPart) -> int | None:
        """The provider's own figure of the user's time; None without one.

        Once the user has gone, that of the provider's events, else that of its REST.
        """
        if part.line.provider_ms is not None and not part.line.is_present:
            return part.line.provider_ms
        truth = await self._truths.of(part.run, self.calls.process.clock.now())
        if truth is None:
            return None
        participant = part.person.participant
        is_there = any(
            one.participant == participant and one.to_at_ms is None for one in truth.presences
        )
        return None if is_there and not truth.ended else truth.durations_ms.get(participant)

    # --- A page's word -----------------------------------------------------------------------

    @property
    def has_provider(self) -> bool:
        """Whether a provider says who is in calls, instead of pages."""
        return PROVIDER in self.calls.adapters

    async def begin(self, user: StudyUser, call_id: str, *, is_trusted: bool) -> None:
        """A page says that its user is in the call.

        Raises ``rate_limited`` for a user who begins too much; ``is_trusted``: a backend says it,
        which has no such bound.
        """
        now_ms = self.calls.process.clock.now()
        found = await self._parts(user, 1, call_id=call_id, provider=PAGE)
        before = found[0] if found else None
        if before is not None and before.run.ended_at is None:
            if not self._is_silent(before):
                await self._join(user, call_id, before.run.call_session, now_ms)
                return
            await self._end(user, before, self._heard_until(before))
        if not is_trusted:
            self.calls.process.starts.take(user.tenant, user.user_id)
        run = _run_name(user, call_id, before)
        await self._keep(_fact(user, call_id, run, FactKind.STARTED, now_ms))
        billing = Billing(
            user_id=user.user_id, org_id=user.org_id, account_id=user.account_id, kind=KIND
        )
        # Two tabs at once: the name is the same, so it is one run.
        await self.calls.records.map_participant(
            (PAGE, run, user.user_id),
            call_id=call_id,
            tenant=user.tenant,
            session_id=session_id_of(PAGE, run, user.user_id),
            user_id=user.user_id,
            org_id=user.org_id,
            mapping=msgspec.json.encode(billing).decode(),
        )
        await self._join(user, call_id, run, now_ms)

    async def finish(self, user: StudyUser, part: StudyPart) -> None:
        """A page says that its user has gone.

        Does nothing for a run of a provider's.
        """
        if part.run.provider != PAGE or part.run.ended_at is not None:
            return
        now_ms = self.calls.process.clock.now()
        # The bound is for time that only this word proves: each word before proves the time up to
        # it.
        await self._end(user, part, min(now_ms, part.heard_at + call_limits.STUDY_PAGE_MS_MAX))

    def _heard_until(self, part: StudyPart) -> int:
        """Up to when a page's last word counts."""
        return part.heard_at + call_limits.CALL_PROOF_MS

    def _is_silent(self, part: StudyPart) -> bool:
        """Whether a page has said nothing for too long."""
        is_page = part.run.provider == PAGE
        return is_page and self._heard_until(part) <= self.calls.process.clock.now()

    async def _join(self, user: StudyUser, call_id: str, run: str, now_ms: int) -> None:
        await self._keep(_fact(user, call_id, run, FactKind.JOINED, now_ms))
        await self.calls.applier.applied((PAGE, run))

    async def _end(self, user: StudyUser, part: StudyPart, at_ms: int) -> None:
        run, call_id = part.run.call_session, part.run.call_id
        await self._keep(
            _fact(user, call_id, run, FactKind.LEFT, at_ms),
            _fact(user, call_id, run, FactKind.ENDED, at_ms),
        )
        await self.calls.applier.applied((PAGE, run))

    async def _keep(self, *facts: Fact) -> None:
        await self.calls.inbox.keep(facts)


def _run_name(user: StudyUser, call_id: str, before: StudyPart | None) -> str:
    """The name of the user's next run of a call."""
    name = f"{user.tenant}\n{user.user_id}\n{call_id}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:24]
    number = 0 if before is None else int(before.run.call_session.rpartition("-")[2]) + 1
    return f"{digest}-{number}"


def _fact(user: StudyUser, call_id: str, run: str, kind: FactKind, at_ms: int) -> Fact:
    of_run = kind in (FactKind.STARTED, FactKind.ENDED)
    # A start that a page repeats is a further proof of life, and no further beginning.
    number = at_ms // call_limits.STUDY_WORD_MS if kind is FactKind.JOINED else 0
    return Fact(
        provider=PAGE,
        call=call_id,
        call_session=run,
        participant=None if of_run else user.user_id,
        device=None if of_run else "page",
        kind=kind,
        at_ms=at_ms,
        key=f"{run}:{kind.value}:{number}",
    )
