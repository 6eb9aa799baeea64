"""Applies the facts of the inbox, each once.

It also takes over what other processes left.

A fact whose participant cannot be mapped is parked, and applied when a backend has put a plan. A
fact of the whole run is applied for every participant who is mapped, and again for a participant
who becomes known later.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from protocol.rate_card import RateCard
from protocol.wire.errors import ServiceError
from server.access.principals import tenant_of
from server.calls import limits as call_limits
from server.calls.billing import Billing, CallMapping, session_id_of
from server.calls.facts import Adapter, CallRun, Fact, FactKind, ProviderError
from server.calls.mapping import HOST, CallPlan, ParkedBecause, billing_of, kept_custom
from server.calls.metering import CallMeter
from server.process import Process
from server.runtime.isolation import AWAY, alone, failed
from storage import limits as storage_limits
from storage.postgres.calls import CallRecords
from storage.rows.calls import CallContext, ParticipantRow, WaitingFact
from storage.tasks import end

log = structlog.get_logger()

RunKey = tuple[str, str]
"""Provider and run."""


class Applier:
    """The facts that this process applies."""

    def __init__(
        self,
        process: Process,
        records: CallRecords,
        meter: CallMeter,
        adapters: Mapping[str, Adapter],
    ) -> None:
        self.process = process
        self.records = records
        self.meter = meter
        self.adapters = adapters
        self.waiting = 0
        """Facts in memory that are to be applied."""
        self._queues: dict[RunKey, deque[tuple[WaitingFact, int]]] = {}
        self._places = asyncio.Semaphore(call_limits.CALL_RUNS_APPLIED_AT_ONCE_MAX)
        self._at_work: dict[RunKey, asyncio.Task[None]] = {}
        self._heard_of: dict[RunKey, None] = {}
        """Runs whose provider has said the call's own data."""
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Applies what waits, and from now on what other processes leave."""
        self._tasks = [asyncio.create_task(self._take_over()), asyncio.create_task(self._prune())]

    async def stop(self) -> None:
        """Ends the work; what is not applied waits in Postgres."""
        await end([*self._tasks, *self._at_work.values()])

    # What is to be applied

    def offer(self, facts: Sequence[WaitingFact], until: int) -> None:
        """Applies facts that this process may apply until an instant.

        Facts beyond ``CALL_FACTS_WAITING_MAX`` stay in Postgres, for this process or another.
        """
        for fact in facts:
            if self.waiting >= call_limits.CALL_FACTS_WAITING_MAX:
                return
            run = (fact.provider, fact.call_session)
            queue = self._queues.get(run)
            self.waiting += 1
            if queue is not None:
                queue.append((fact, until))
                continue
            self._queues[run] = deque([(fact, until)])
            self._at_work[run] = asyncio.create_task(self._apply_run(run))

    def look(self) -> None:
        """Looks for waiting facts at once, after a plan was put."""
        self._news.set()

    async def idle(self) -> None:
        """Waits until every fact in memory is applied or given up."""
        while self._at_work:
            await asyncio.wait(self._at_work.values())

    async def _finish(self) -> None:
        """Waits for the runs at work now: others may always come in."""
        if self._at_work:
            await asyncio.wait(list(self._at_work.values()))

    async def applied(self, run: RunKey) -> None:
        """Waits until a run's facts in memory are applied or given up."""
        if (task := self._at_work.get(run)) is not None:
            await asyncio.wait([task])

    async def take(self) -> int:
        """Takes over facts that were not applied in time; returns how many."""
        room = call_limits.CALL_FACTS_WAITING_MAX - self.waiting
        limit = min(room, call_limits.CALL_FACTS_TAKEN_MAX)
        if limit <= 0:
            return 0
        now_ms = self.process.clock.now()
        until = now_ms + call_limits.CALL_FACT_LEASE_MS
        taken = await self.records.take_facts(now_ms, until, limit)
        self.offer(taken, until)
        return len(taken)

    async def _take_over(self) -> None:
        while True:
            self._news.clear()
            with alone("call facts"):
                while await self.take() == call_limits.CALL_FACTS_TAKEN_MAX:
                    await self._finish()
            try:
                async with asyncio.timeout(call_limits.CALL_FACTS_LOOK_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _prune(self) -> None:
        while True:
            with alone("old call facts"):
                await self.prune()
            await asyncio.sleep(call_limits.CALL_FACTS_PRUNE_INTERVAL_S)

    async def prune(self) -> int:
        """Deletes applied facts after 30 days; returns how many."""
        before_at = self.process.clock.now() - call_limits.CALL_FACTS_KEPT_MS
        count, batch = 0, call_limits.CALL_FACTS_PRUNED_PER_BATCH
        while batch == call_limits.CALL_FACTS_PRUNED_PER_BATCH:
            batch = await self.records.prune_facts(before_at, batch)
            count += batch
        return count

    # One run

    async def _apply_run(self, run: RunKey) -> None:
        """Applies a run's facts in order, until an engine is away."""
        queue = self._queues[run]
        try:
            async with self._places:
                while queue:
                    fact, until = queue[0]
                    # Another process may have taken it over.
                    is_mine = self.process.clock.now() < until
                    if is_mine and not await self._apply_alone(run, fact):
                        break
                    queue.popleft()
                    self.waiting -= 1
        finally:
            # What is left is taken over later, in its order.
            self.waiting -= len(queue)
            del self._queues[run], self._at_work[run]

    # One fact

    async def _apply_alone(self, run: RunKey, waiting: WaitingFact) -> bool:
        """Applies a fact; returns whether those behind it may be applied.

        A fact that fails by itself keeps back no other. It is tried again ever more rarely, and
        after too many attempts parked with its error, until a plan or an operator has it applied
        again.
        """
        try:
            async with asyncio.timeout(_apply_ms(waiting) / 1000):
                await self.apply(waiting)
        except (*AWAY, ServiceError, TimeoutError) as error:
            log.warning("call_fact_not_applied", run=run, error=str(error) or "it took too long")
            if waiting.attempts >= call_limits.CALL_FACT_AWAY_ATTEMPTS_MAX:
                await self._park_failed(waiting, error)
            return False
        except Exception as error:
            failed("call fact", run=run)
            if waiting.attempts >= call_limits.CALL_FACT_ATTEMPTS_MAX:
                await self._park_failed(waiting, error)
        return True

    async def _park_failed(self, waiting: WaitingFact, error: Exception) -> None:
        said = "".join(filter(str.isprintable, f"{type(error).__name__}: {error}"))
        said = said[: call_limits.CALL_FACT_ERROR_CHARACTERS_MAX]
        with alone("call fact that failed"):
            if await self.records.fail_fact(waiting, said):
                log.error(
                    "call_fact_parked", call=waiting.call_id, key=waiting.fact_key, error=said
                )

    async def apply(self, waiting: WaitingFact) -> None:
        """Applies a fact, or parks it, and marks its row."""
        fact = msgspec.json.decode(waiting.fact, type=Fact)
        for _ in range(call_limits.CALL_FACT_MAPPINGS_MAX):
            context = await self.records.context(
                fact.provider, fact.call, fact.call_session, fact.participant
            )
            if fact.participant is None:
                await self._apply_to_run(fact)
                break
            billing = await self._billing(waiting, fact, fact.participant, context)
            if isinstance(billing, Billing):
                await self._apply_to(fact, fact.participant, billing)
                break
            version = context.version
            if await self.records.park_fact(waiting, fact.participant, billing, version):
                log.info("call_parked", call=fact.call, because=billing)
                return
        else:
            return  # the plan changes too fast: the fact waits
        await self.records.fact_applied(fact.provider, waiting.fact_key, self.process.clock.now())

    async def _apply_to(self, fact: Fact, participant: str, billing: Billing) -> None:
        """Applies a participant's fact, and the run's end where it came before."""
        mapping = CallMapping(participants={participant: billing})
        await self.meter.apply(fact, mapping)
        # Read again: a process that takes the end now may not have seen this participant.
        context = await self.records.context(fact.provider, fact.call, fact.call_session, None)
        if context.ended_fact is not None:
            ended = msgspec.convert(context.ended_fact, Fact)
            await self.meter.apply(ended, mapping)

    async def _apply_to_run(self, fact: Fact) -> None:
        """Applies a fact of the run for every mapped participant."""
        mapping = await self.mapping_of(fact.provider, fact.call_session)
        if mapping.participants and fact.kind is FactKind.ENDED:
            await self.meter.apply(fact, mapping)

    async def mapping_of(self, provider: str, call_session: str) -> CallMapping:
        """The participants of a run who are mapped."""
        found: dict[str, Billing] = {}
        after, count = "", storage_limits.CALL_PARTICIPANTS_READ_MAX
        while (
            count == storage_limits.CALL_PARTICIPANTS_READ_MAX
            and len(found) < call_limits.CALL_PARTICIPANTS_ENDED_MAX
        ):
            page = await self.records.participants([(provider, call_session)], after)
            count = len(page)
            for row in page:
                after = row.participant
                if row.mapping is not None:
                    found[row.participant] = msgspec.convert(row.mapping, Billing)
        return CallMapping(participants=found)

    async def _billing(
        self, waiting: WaitingFact, fact: Fact, participant: str, context: CallContext
    ) -> Billing | ParkedBecause:
        """On whom a participant's time is counted.

        The mapping is kept before any time counts.
        """
        row: ParticipantRow | None = context.participant
        if row is None or row.mapping is None:
            plan = None if context.plan is None else msgspec.convert(context.plan, CallPlan)
            custom = context.custom
            if self._is_to_ask(fact, plan, custom):
                custom = {**custom, **await self._asked_custom(fact, waiting.attempts)}
            billing = billing_of(participant, plan, custom, self._rates)
            if not isinstance(billing, Billing):
                return billing
            row = await self.records.map_participant(
                (fact.provider, fact.call_session, participant),
                call_id=fact.call,
                tenant=tenant_of(billing.org_id, billing.user_id),
                session_id=session_id_of(fact.provider, fact.call_session, billing.user_id),
                user_id=billing.user_id,
                org_id=billing.org_id,
                mapping=msgspec.json.encode(billing).decode(),
            )
        assert row.mapping is not None
        return msgspec.convert(row.mapping, Billing)

    def _is_to_ask(self, fact: Fact, plan: CallPlan | None, custom: dict[str, str]) -> bool:
        """Whether only the provider's REST may say whose it is."""
        adapter = self.adapters.get(fact.provider)
        if plan is not None:
            return plan.payer == HOST and not (plan.host or custom.get("host"))
        return adapter is not None and adapter.maps_calls and not custom

    async def _asked_custom(self, fact: Fact, attempts: int) -> dict[str, str]:
        """The call's own data, from the provider's REST, once for each run.

        Not every event carries the data, and a default mapping would stay. A provider that does not
        answer is asked again with the fact's next attempts, and then the default counts. Raises
        ``unavailable`` until then.
        """
        run = (fact.provider, fact.call_session)
        adapter = self.adapters.get(fact.provider)
        if adapter is None or run in self._heard_of:
            return {}
        try:
            async with asyncio.timeout(call_limits.CALL_DATA_MS / 1000):
                truth = await adapter.sweep(
                    CallRun(
                        call=fact.call, call_session=fact.call_session, rest_name=fact.rest_name
                    )
                )
        except (ProviderError, TimeoutError) as error:
            is_retryable = isinstance(error, TimeoutError) or error.retryable
            if is_retryable and attempts < call_limits.CALL_DATA_ATTEMPTS:
                raise ServiceError("the provider does not say whose call it is") from error
            log.warning("call_data_unknown", call=fact.call, error=str(error))
            return {}
        self.heard_of(run)
        custom = kept_custom(truth.custom)
        if custom:
            encoded = msgspec.json.encode(custom, order="sorted").decode()
            await self.records.learn_custom(*run, encoded)
        return custom

    def heard_of(self, run: RunKey) -> None:
        """Notes that a run's provider has said the call's own data."""
        self._heard_of[run] = None
        if len(self._heard_of) > call_limits.CALL_RUNS_HEARD_OF_MAX:
            del self._heard_of[next(iter(self._heard_of))]

    @property
    def _rates(self) -> RateCard:
        return self.process.rates


def _apply_ms(fact: WaitingFact) -> int:
    """How long an attempt may take: less than its lease (``take_facts.sql``)."""
    return call_limits.CALL_FACT_APPLY_MS << min(max(fact.attempts - 1, 0), 6)
