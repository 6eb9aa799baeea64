"""Facts, adapters and meters for tests of the inbox."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from server.calls.applier import Applier
from server.calls.billing import CallMapping
from server.calls.facts import CallRun, CallTruth, Fact, FactKind, Presence, ProviderError
from server.calls.inbox import FactInbox
from server.calls.metering import CallMeter, ParticipantFigures
from server.calls.sweep import Sweep
from server.process import Process
from storage.postgres.calls import CallRecords
from tests.fixtures.database import Connection

CALL, RUN = "default:abc", "run-1"


def fact(kind: FactKind = FactKind.JOINED, participant: str | None = "ann", **fields: Any) -> Fact:
    """A fact of a call; its key follows from the other fields."""
    at_ms = fields.pop("at_ms", 1_000)
    if kind in (FactKind.STARTED, FactKind.ENDED):
        participant = None
    values: dict[str, Any] = {
        "provider": "stream",
        "call": CALL,
        "call_session": RUN,
        "participant": participant,
        "device": None if participant is None else f"{participant}-1",
        "kind": kind,
        "at_ms": at_ms,
        **fields,
    }
    key = f"{values['call_session']}:{kind}:{participant}:{values['device']}:{at_ms}"
    return Fact(**{"key": key, **values})


def truth(*presences: Presence, **fields: object) -> CallTruth:
    """What a provider answers about the run."""
    values: dict[str, object] = {
        "asked_at_ms": 100_000, "started_at_ms": 500, "ended": False, "ended_at_ms": None,
        "has_history": True, "complete": True, **fields,
    }  # fmt: skip
    return CallTruth(
        provider="stream",
        call=CALL,
        call_session=RUN,
        presences=presences,
        **values,  # type: ignore[arg-type]
    )


class BookAdapter:
    """A provider whose events are JSON lists of facts."""

    name = "stream"
    has_duration = True
    maps_calls = True

    def __init__(self) -> None:
        self.truth: CallTruth | Exception | None = None
        self.asked: list[CallRun] = []

    def verify(self, headers: Mapping[str, str], body: bytes, now_ms: int) -> None: ...

    def event_key(self, body: bytes) -> str:
        return self.facts(body)[0].key

    def facts(self, body: bytes) -> list[Fact]:
        return msgspec.json.decode(body, type=list[Fact])

    async def sweep(self, run: CallRun) -> CallTruth:
        self.asked.append(run)
        if self.truth is None:
            raise ProviderError("no such call", retryable=False)
        if isinstance(self.truth, Exception):
            raise self.truth
        return self.truth

    async def end(self, run: CallRun, participant: str | None) -> None: ...


class BookMeter(CallMeter):
    """Writes down what is applied, instead of metering it."""

    def __init__(self) -> None:
        self.applied: list[tuple[str, str]] = []
        """Key of a fact, and participant, in order."""
        self.mappings: list[CallMapping] = []
        self.confirmed: list[CallTruth] = []
        self.failing: Exception | None = None
        self.poison: set[str] = set()
        """Keys of facts that always fail."""
        self.gate: asyncio.Event | None = None
        self.at_work = 0
        self.at_work_max = 0

    async def apply(self, fact: Fact, mapping: CallMapping) -> None:
        self.at_work += 1
        self.at_work_max = max(self.at_work, self.at_work_max)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.failing is not None:
                raise self.failing
            if fact.key in self.poison:
                raise ValueError(f"a bug of ours\n in {fact.kind}")
            self.mappings.append(mapping)
            self.applied += [(fact.key, participant) for participant in mapping.participants]
        finally:
            self.at_work -= 1

    async def confirm(self, truth: CallTruth, mapping: CallMapping) -> None:
        self.confirmed.append(truth)

    async def figures(self, provider: str, call_session: str) -> tuple[ParticipantFigures, ...]:
        return ()


class InboxScene:
    """An inbox over a real Postgres, of one process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.records = CallRecords.over(process.records)
        self.adapter = BookAdapter()
        self.meter = BookMeter()
        self.applier = Applier(process, self.records, self.meter, {"stream": self.adapter})
        self.inbox = FactInbox(process, self.records, {"stream": self.adapter}, self.applier)
        self.sweep = Sweep(self.inbox, self.applier)

    async def receive(self, *facts: Fact) -> bool:
        """Receives an event, and waits until it is applied or given up."""
        new = await self.inbox.receive("stream", {}, msgspec.json.encode(list(facts)))
        await self.applier.idle()
        return new

    async def take(self) -> int:
        """Takes over what is due, and waits until it is done."""
        taken = await self.applier.take()
        await self.applier.idle()
        return taken


async def states(connection: Connection) -> dict[str, str]:
    """The state of each fact in the inbox, in order of arrival."""
    rows = await connection.fetch("SELECT fact_key, state FROM call_facts ORDER BY position")
    return {row["fact_key"]: row["state"] for row in rows}
