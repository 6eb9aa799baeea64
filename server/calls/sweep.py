"""The sweep: asks providers for the truth about runs, within a budget.

Events are lost, and a run whose end was lost would never end. So a run is swept again and again
while it lives, and once more after its end, for the provider's figures. What the provider answers
becomes facts with keys of their own: the same answer again keeps nothing.

Several processes share the runs: each takes those that are due, a few at a time.
"""

import asyncio
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import structlog

from protocol import limits
from protocol.wire.errors import ProtocolError
from server.calls import limits as call_limits
from server.calls.applier import Applier
from server.calls.facts import Adapter, CallRun, CallTruth, Fact, FactKind, Presence, ProviderError
from server.calls.inbox import FactInbox
from server.runtime.isolation import AWAY, alone, failed
from storage.postgres.calls import CallRecords
from storage.rows.calls import SweepDue
from storage.tasks import end

log = structlog.get_logger()

Device = tuple[str | None, str | None]
"""Participant and device."""


class Sweep:
    """The sweeps of one process."""

    def __init__(self, inbox: FactInbox, applier: Applier) -> None:
        self.inbox = inbox
        self.applier = applier
        self.meter = applier.meter
        self.clock = inbox.process.clock
        self.records: CallRecords = inbox.records
        self.adapters: Mapping[str, Adapter] = inbox.adapters
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Sweeps what is due from now on, with a provider to ask."""
        if self.adapters:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends the sweep."""
        await end([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(call_limits.CALL_SWEEP_LOOK_S)
            with alone("sweep of calls"):
                await self.sweep_due()

    async def sweep_due(self) -> int:
        """Sweeps due runs within the budget; returns how many."""
        now_ms = self.clock.now()
        until = now_ms + call_limits.CALL_SWEEP_LEASE_MS
        due = await self.records.take_sweeps(
            now_ms, until, list(self.adapters), call_limits.CALL_SWEEPS_PER_LOOK_MAX
        )
        await asyncio.gather(*(self._sweep_alone(run, until) for run in due))
        return len(due)

    async def _sweep_alone(self, run: SweepDue, until: int) -> None:
        """Sweeps one run; a failure is noted for a later sweep."""
        try:
            async with asyncio.timeout(call_limits.CALL_SWEEP_MS / 1000):
                truth = await self.sweep(run)
        except (*AWAY, ProtocolError, ProviderError, TimeoutError) as error:
            log.warning("call_not_swept", call=run.call_id, error=str(error) or "it took too long")
        except Exception:
            failed("sweep of a call", call=run.call_id)
        else:
            now_ms = self.clock.now()
            await self.records.swept(run, until, _next_at(run, truth, now_ms), truth.asked_at_ms)
            return
        await self.records.swept(run, until, _again_at(run, self.clock.now()), None)

    async def sweep(self, run: SweepDue) -> CallTruth:
        """Asks a run's provider, and keeps and applies what it answers.

        Raises ``ProviderError``, and the errors of Redis and Postgres.
        """
        adapter = self.adapters[run.provider]
        truth = await adapter.sweep(
            CallRun(call=run.call_id, call_session=run.call_session, rest_name=run.rest_name)
        )
        known = []
        for number, row in enumerate(await self.records.last_facts(run.provider, run.call_session)):
            known.append(msgspec.json.decode(row.fact, type=Fact))
            if number % call_limits.CALL_FACTS_SWEPT_PER_BATCH == 0:
                await asyncio.sleep(0)
        self.applier.heard_of((run.provider, run.call_session))
        made = _facts_of_truth(truth, run, known)
        # Thousands of participants are no long turn of the loop, and no long statement.
        while batch := list(itertools.islice(made, call_limits.CALL_FACTS_SWEPT_PER_BATCH)):
            await self.inbox.keep(batch, swept=True)
        await self.applier.applied((run.provider, run.call_session))
        mapping = await self.applier.mapping_of(run.provider, run.call_session)
        if mapping.participants:
            await self.meter.confirm(truth, mapping)
        return truth


def _next_at(run: SweepDue, truth: CallTruth, now_ms: int) -> int | None:
    """When a swept run is swept again; None when it is settled.

    An empty run whose provider says no end is swept ever more rarely, and no more when its sessions
    have ended by themselves.
    """
    if truth.ended and truth.complete:
        return None
    if not truth.complete or any(one.to_at_ms is None for one in truth.presences):
        return now_ms + call_limits.CALL_SWEEP_INTERVAL_MS
    said_at = [one.to_at_ms for one in truth.presences if one.to_at_ms is not None]
    idle_ms = now_ms - max([truth.started_at_ms or 0, run.seen_at, *said_at])
    is_over = run.ended_at is not None  # by an event; the provider's figures may still come
    longest_ms = call_limits.CALL_SWEEP_IDLE_MS_MAX if is_over else limits.PROVIDED_SILENCE_MS_MAX
    if idle_ms > longest_ms:
        return None
    pause_ms = min(idle_ms // call_limits.CALL_SWEEP_IDLE_SHARE, call_limits.CALL_SWEEP_IDLE_MS_MAX)
    return now_ms + max(call_limits.CALL_SWEEP_INTERVAL_MS, pause_ms)


def _again_at(run: SweepDue, now_ms: int) -> int | None:
    """When a failed sweep is repeated; None after too many failures."""
    if run.sweep_failures >= call_limits.CALL_SWEEP_FAILURES_MAX:
        return None
    pause_ms = call_limits.CALL_SWEEP_INTERVAL_MS << min(run.sweep_failures, 6)
    return now_ms + pause_ms


# --- The truth as facts ---------------------------------------------------------------


def facts_of_truth(truth: CallTruth, run: SweepDue, known: Sequence[Fact]) -> list[Fact]:
    """What a provider's answer says, as facts with keys of their own.

    ``known`` are the last facts of the run and of its devices. A device that the record has in the
    call, and that a complete answer lacks, has left: as of its last proof, because absence is never
    billed.
    """
    return list(_facts_of_truth(truth, run, known))


def _facts_of_truth(truth: CallTruth, run: SweepDue, known: Sequence[Fact]) -> Iterator[Fact]:
    ended_at = _ended_at(truth, run, known)
    last = _last(known)
    if truth.started_at_ms is not None:
        started = _fact(truth, run, FactKind.STARTED, None, truth.started_at_ms)
        # The event that had the call's own data may be lost, and the data name the payer.
        yield msgspec.structs.replace(started, custom=truth.custom)
    for presence in truth.presences:
        yield _fact(truth, run, FactKind.JOINED, presence, presence.from_at_ms)
        before = last.get((presence.participant, presence.device))
        is_here = presence.to_at_ms is None and not truth.ended
        if (
            before is not None
            and before.is_guess
            and is_here
            and presence.from_at_ms <= before.at_ms
        ):
            # An earlier answer lacked the device, which was there all the time.
            yield _fact(truth, run, FactKind.JOINED, presence, before.at_ms)
        left_at = presence.to_at_ms
        if left_at is None and truth.ended:
            left_at = max(presence.from_at_ms, ended_at)
        if left_at is not None:
            yield _fact(truth, run, FactKind.LEFT, presence, left_at)
    if truth.complete and not truth.has_history and not truth.ended:
        yield from _absent(truth, run, known)
    if truth.ended and not any(fact.kind is FactKind.ENDED for fact in known):
        yield _fact(truth, run, FactKind.ENDED, None, ended_at)


def _ended_at(truth: CallTruth, run: SweepDue, known: Sequence[Fact]) -> int:
    """When a run ended, or the last proof that it lived."""
    if truth.ended_at_ms is not None:
        return truth.ended_at_ms
    if run.ended_at is not None:
        return run.ended_at
    proofs = [fact.at_ms for fact in known]
    proofs += [one.to_at_ms or one.from_at_ms for one in truth.presences]
    return min(truth.asked_at_ms, max([run.swept_at or 0, *proofs]))


def _last(known: Sequence[Fact]) -> dict[Device, Fact]:
    """The last fact of each device."""
    last: dict[Device, Fact] = {}
    for fact in known:
        name = (fact.participant, fact.device)
        if fact.participant is not None and fact.at_ms >= last.get(name, fact).at_ms:
            last[name] = fact
    return last


def _absent(truth: CallTruth, run: SweepDue, known: Sequence[Fact]) -> list[Fact]:
    """The leaving of devices that only the record has in the call."""
    here = {(presence.participant, presence.device) for presence in truth.presences}
    gone = [
        fact
        for name, fact in _last(known).items()
        # A device that joined while the provider answered is not gone.
        if fact.kind is FactKind.JOINED and name not in here and fact.at_ms < truth.asked_at_ms
    ]
    made = [
        _fact(
            truth,
            run,
            FactKind.LEFT,
            Presence(
                participant=fact.participant or "",
                device=fact.device,
                from_at_ms=fact.at_ms,
                to_at_ms=None,
            ),
            max(fact.at_ms, run.swept_at or 0),
        )
        for fact in gone
    ]
    # The event of the leaving may still come, and knows better.
    return [msgspec.structs.replace(fact, is_guess=True) for fact in made]


def _fact(
    truth: CallTruth, run: SweepDue, kind: FactKind, presence: Presence | None, at_ms: int
) -> Fact:
    participant = presence.participant if presence is not None else None
    device = presence.device if presence is not None else None
    begun_at = presence.from_at_ms if presence is not None else 0
    parts = msgspec.json.encode((run.call_session, kind, participant, device, begun_at, at_ms))
    return Fact(
        provider=truth.provider,
        call=run.call_id,
        call_session=run.call_session,
        participant=participant,
        device=device,
        kind=kind,
        at_ms=at_ms,
        key=f"sweep:{hashlib.sha256(parts).hexdigest()}",
        rest_name=run.rest_name,
        custom=truth.custom,
    )
