"""Facts of calls for the processes of a virtual cluster.

A desk keeps each fact in the real inbox, and has a process apply it. The provider is an adapter
that remembers what it was told to end.
"""

import itertools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec

from protocol.metering.states import Phase
from protocol.metering.terms import Terms
from protocol.rate_card import RateCard, parse_rate_card
from server.calls.billing import Billing, CallMapping, session_id_of
from server.calls.facts import CallRun, CallTruth, Fact, FactKind, ProviderError
from server.calls.metering import CallMeter
from storage.postgres.calls import CallRecords
from storage.postgres.database import Connection
from storage.rows.calls import FactToKeep
from storage.rows.sessions import SessionRow
from tests.simulation.cluster import Cluster, Node

RUN = "run-1"
CALL = "default:lesson"
MAP = """
INSERT INTO call_participants (
    provider, call_session, participant, call_id, tenant, session_id, user_id, org_id, mapping,
    seen_at
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb, now())
ON CONFLICT DO NOTHING
"""


def card(**changes: object) -> RateCard:
    """A rate card: a call costs a credit a minute."""
    kind = {
        "credits_per_minute": "1",
        "clock": "provider",
        "tolerance_seconds": 2,
        "enforce": "participant",
        **changes,
    }
    return parse_rate_card({"kinds": {"call": kind}})


class Provider:
    """A provider that ends calls, or refuses to."""

    name = "fake"
    has_duration = True
    maps_calls = True

    def __init__(self) -> None:
        self.ended: list[tuple[str, str | None]] = []
        self.is_refusing = False

    def verify(self, headers: Mapping[str, str], body: bytes, now_ms: int) -> None:
        raise AssertionError

    def event_key(self, body: bytes) -> str:
        raise AssertionError

    def facts(self, body: bytes) -> list[Fact]:
        raise AssertionError

    async def sweep(self, run: CallRun) -> CallTruth:
        raise AssertionError

    async def end(self, run: CallRun, participant: str | None) -> None:
        self.ended.append((run.call_session, participant))
        if self.is_refusing:
            raise ProviderError("not now")


class CallDesk:
    """Where facts of one run arrive."""

    def __init__(
        self,
        cluster: Cluster,
        rates: RateCard | None = None,
        billing: dict[str, Billing] | None = None,
    ) -> None:
        self.cluster = cluster
        self.clock = cluster.clock
        self.rates = rates or card()
        self.provider = Provider()
        self.records = CallRecords.over(cluster.records)
        self.billing = billing or {}
        self.meters: dict[str, CallMeter] = {}
        self.facts: list[Fact] = []
        self._keys = itertools.count()

    @property
    def terms(self) -> Terms:
        return self.rates.terms("call")

    def meter(self, node: Node) -> CallMeter:
        """The calls' meter of a process."""
        if node.name not in self.meters:
            process: Any = SimpleNamespace(
                node=node.name,
                registry=node.registry,
                live=node.live,
                clock=node.clock,
                timers=node.timers,
                loader=node.loader,
                records=self.cluster.records,
                rates=self.rates,
                ledger=node.ledger,
                metrics=node.metrics,
                membership=SimpleNamespace(orphans=node.orphans),
                settings=SimpleNamespace(start="open"),
            )
            self.meters[node.name] = CallMeter(process, {"fake": self.provider})
        return self.meters[node.name]

    def billing_of(self, participant: str) -> Billing:
        """On whom a participant's time counts."""
        default = Billing(user_id=participant, account_id=participant)
        return self.billing.setdefault(participant, default)

    @property
    def mapping(self) -> CallMapping:
        """Everybody whom a fact has named."""
        return CallMapping(participants=dict(self.billing))

    def fact(
        self,
        kind: FactKind,
        participant: str | None = None,
        at: int | None = None,
        *,
        device: str | None = "phone",
        duration_ms: int | None = None,
    ) -> Fact:
        """One fact, which no process has heard yet."""
        return Fact(
            provider="fake",
            call=CALL,
            call_session=RUN,
            participant=participant,
            device=device if participant else None,
            kind=kind,
            at_ms=self.clock.now() if at is None else at,
            provider_duration_ms=duration_ms,
            key=f"key-{next(self._keys)}",
        )

    async def keep(self, fact: Fact) -> None:
        """Writes a fact to the inbox, and the participant's mapping."""
        edges: dict[FactKind, Any] = {FactKind.STARTED: "started", FactKind.ENDED: "ended"}
        now_ms = self.clock.now()
        kept = FactToKeep(
            provider=fact.provider,
            fact_key=fact.key,
            call_id=fact.call,
            call_session=fact.call_session,
            participant=fact.participant,
            fact=msgspec.json.encode(fact).decode(),
            happened_at=fact.at_ms,
            edge=edges.get(fact.kind),
        )
        await self.records.receive(
            [kept], received_at=now_ms, due_at=now_ms, sweep_at=None, soon_at=None
        )
        if fact.participant is not None:
            billing = self.billing_of(fact.participant)
            name = (fact.provider, fact.call_session, fact.participant, fact.call)
            session_id = session_id_of(fact.provider, fact.call_session, billing.user_id)
            whose = (billing.tenant, session_id, billing.user_id, billing.org_id)
            mapping = msgspec.json.encode(billing).decode()
            await self.records._run(
                lambda connection: connection.execute(MAP, *name, *whose, mapping)
            )

    async def take(self, node: Node, fact: Fact) -> None:
        """A process takes a fact."""
        await self.keep(fact)
        meter = self.meter(node)
        mapping = self.mapping
        if fact.participant is not None:
            billing = self.billing_of(fact.participant)
            mapping = CallMapping(participants={fact.participant: billing})
        await meter.apply(fact, mapping)
        await self.cluster.settle()

    async def joined(self, node: Node, who: str = "ann", at: int | None = None, **how: Any) -> None:
        """A participant has come."""
        await self.take(node, self.fact(FactKind.JOINED, who, at, **how))

    async def left(self, node: Node, who: str = "ann", at: int | None = None, **how: Any) -> None:
        """A participant has gone."""
        await self.take(node, self.fact(FactKind.LEFT, who, at, **how))

    async def ended(self, node: Node, at: int | None = None) -> None:
        """The run is over."""
        await self.take(node, self.fact(FactKind.ENDED, at=at))

    async def confirm(self, node: Node, truth: CallTruth) -> None:
        """A process has swept the run."""
        await self.meter(node).confirm(truth, self.mapping)
        await self.cluster.settle()

    async def swept(self) -> None:
        """The record notes that the provider has answered now."""
        now_ms = self.clock.now()

        async def note(connection: Connection) -> None:
            await connection.execute("UPDATE call_sessions SET swept_at = instant($1)", now_ms)

        await self.records._run(note)

    def truth(self, **parts: Any) -> CallTruth:
        """What a sweep answers, now."""
        told: dict[str, Any] = {
            "started_at_ms": None,
            "ended": False,
            "ended_at_ms": None,
            "presences": (),
            "has_history": True,
            "complete": True,
            "asked_at_ms": self.clock.now(),
            **parts,
        }
        return CallTruth(provider="fake", call=CALL, call_session=RUN, **told)

    def session_id(self, who: str = "ann") -> str:
        """The id of a participant's session."""
        return session_id_of("fake", RUN, self.billing_of(who).user_id)

    async def standing(self, node: Node, who: str = "ann") -> tuple[Phase, int]:
        """The phase of a session, and what its last step counted."""
        name = (self.billing_of(who).tenant, self.session_id(who))
        found = await node.live.attach(*name, read_only=True)
        assert found is not None
        return found.session.standing.phase, found.session.standing.elapsed_ms

    async def row(self, who: str = "ann") -> SessionRow:
        """A participant's session in the record."""
        await self.cluster.flush()
        row = await self.cluster.records.session(self.billing_of(who).tenant, self.session_id(who))
        assert row is not None
        return row

    async def billed(self, who: str = "ann") -> int:
        """What a participant's session has cost, with all corrections, in micro-credits."""
        row = await self.row(who)
        known = await self.duration(who)
        corrected = sum(one.credits_micros for one in known.corrections) if known else 0
        return row.charged_micros + corrected

    async def duration(self, who: str = "ann") -> Any:
        """Both clocks of a participant's session."""
        meter = next(iter(self.meters.values()))
        return await meter.clocks.duration(self.billing_of(who).tenant, self.session_id(who))
