"""The inbox of facts: kept before the answer, applied once afterwards.

A verified event becomes facts, and each fact a row of ``call_facts``, in one statement: the row is
there before the provider is answered. The key of a row comes from the signed body, so the same
event again keeps nothing. The process that kept a fact applies it at once; the row is marked done
afterwards. A process that dies in between, or whose attempt fails, leaves the row waiting, and any
process takes it over when its time has passed. So a fact may be applied twice: the meter takes each
fact by its key, and a repetition changes nothing.

Facts of one run are applied in the order in which they came in, runs side by side. This order is a
courtesy and no promise: providers themselves send in any order.
"""

from collections.abc import Mapping, Sequence

import msgspec
import structlog

from server.calls import limits as call_limits
from server.calls.applier import Applier
from server.calls.facts import Adapter, Fact, FactKind
from server.calls.mapping import kept_custom
from server.process import Process
from storage.postgres.calls import CallRecords
from storage.rows.calls import FactToKeep

log = structlog.get_logger()


class FactInbox:
    """Keeps what providers say, and hands it to the applier."""

    def __init__(
        self,
        process: Process,
        records: CallRecords,
        adapters: Mapping[str, Adapter],
        applier: Applier,
    ) -> None:
        self.process = process
        self.records = records
        self.adapters = adapters
        self.applier = applier

    async def receive(self, provider: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Keeps a verified event before it returns; whether the event is new.

        ``body`` is uncompressed. An event without a meaning for the meter is not kept, and never
        new. Raises ``RefusedEventError`` for a malformed event, and ``UnavailableError`` while
        Postgres is away: the provider sends the event again.
        """
        del headers  # not signed, so nothing of them counts
        return await self.keep(self.adapters[provider].facts(body), body) > 0

    async def keep(
        self, facts: Sequence[Fact], body: bytes | None = None, *, swept: bool = False
    ) -> int:
        """Keeps facts, lets them be applied, and returns how many are new.

        ``swept``: they are a sweep's own, and cause none.
        """
        if not facts:
            return 0
        now_ms = self.process.clock.now()
        sweeps = facts[0].provider in self.adapters and not swept
        kept = await self.records.receive(
            [to_keep(fact, body if number == 0 else None) for number, fact in enumerate(facts)],
            received_at=now_ms,
            due_at=now_ms + call_limits.CALL_FACT_LEASE_MS,
            sweep_at=now_ms + call_limits.CALL_SWEEP_INTERVAL_MS if sweeps else None,
            soon_at=now_ms + call_limits.CALL_SWEEP_SOON_MS if sweeps else None,
        )
        self.applier.offer(kept, now_ms + call_limits.CALL_FACT_LEASE_MS)
        return len(kept)


def to_keep(fact: Fact, body: bytes | None) -> FactToKeep:
    """A fact as the inbox's row."""
    custom = kept_custom(fact.custom)
    edges = {FactKind.STARTED: "started", FactKind.ENDED: "ended"}
    return FactToKeep(
        provider=fact.provider,
        fact_key=fact.key,
        call_id=fact.call,
        call_session=fact.call_session,
        participant=fact.participant,
        fact=msgspec.json.encode(fact).decode(),
        happened_at=fact.at_ms,
        edge=edges.get(fact.kind),  # type: ignore[arg-type]
        rest_name=fact.rest_name,
        custom=msgspec.json.encode(custom, order="sorted").decode(),
        # After the end the provider has its figures.
        wants_sweep=fact.wants_sweep or fact.kind is FactKind.ENDED,
        body=body,
    )
