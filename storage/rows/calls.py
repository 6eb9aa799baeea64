"""Calls of outside providers: facts, runs, participants, and plans.

A fact, a plan and a mapping are JSON here: ``server.calls`` knows their types.
"""

from typing import Any, Literal

import msgspec

FactState = Literal["waiting", "parked", "applied"]
CallState = Literal["active", "parked", "ended"]


class FactToKeep(msgspec.Struct, frozen=True):
    """One fact for the inbox, with what its queries need."""

    provider: str
    fact_key: str
    call_id: str
    call_session: str
    participant: str | None
    fact: str
    """The fact as JSON."""
    happened_at: int
    """The provider's instant, in epoch ms."""
    edge: Literal["started", "ended"] | None = None
    """The fact is the run's beginning or end."""
    rest_name: str = ""
    custom: str = "{}"
    """What the call's own data says about whose call it is, as a JSON object."""
    wants_sweep: bool = False
    body: bytes | None = None
    """The signed body, with the first of its facts."""


class WaitingFact(msgspec.Struct, frozen=True):
    """A fact that is to be applied."""

    provider: str
    fact_key: str
    position: int
    call_id: str
    call_session: str
    fact: msgspec.Raw
    attempts: int = 0


class FactRow(msgspec.Struct, frozen=True):
    """A fact in the inbox, for a reader of the call."""

    position: int
    state: FactState
    received_at: int
    fact: msgspec.Raw


class FailedFact(msgspec.Struct, frozen=True):
    """A fact that failed each time it was applied, and is parked."""

    provider: str
    call_session: str
    call_id: str
    participant: str | None
    kind: str
    happened_at: int
    received_at: int
    attempts: int
    error: str


class ParticipantRow(msgspec.Struct, frozen=True):
    """A participant of a run, by the provider's name."""

    provider: str
    call_session: str
    participant: str
    call_id: str
    parked_because: str | None
    """Why it is not known who pays; None for a mapped participant."""
    tenant: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    org_id: str | None = None
    mapping: dict[str, Any] | None = None


class CallContext(msgspec.Struct, frozen=True):
    """What decides whose a fact is."""

    plan: dict[str, Any] | None
    """What a backend put; None: nothing."""
    version: int
    """Rises with each plan; 0 without one."""
    custom: dict[str, str]
    ended_fact: dict[str, Any] | None
    participant: ParticipantRow | None


class CallRunRow(msgspec.Struct, frozen=True):
    """One run of a call."""

    provider: str
    call_session: str
    call_id: str
    rest_name: str
    state: CallState
    seen_at: int
    """When its first fact came in, in epoch ms; pages are in this order."""
    started_at: int | None
    ended_at: int | None
    swept_at: int | None


class UserRun(msgspec.Struct, frozen=True):
    """A run, and one user's part in it."""

    run: CallRunRow
    person: ParticipantRow


class SweepDue(msgspec.Struct, frozen=True):
    """A run whose provider is to be asked for the truth."""

    provider: str
    call_session: str
    call_id: str
    rest_name: str
    ended_at: int | None
    swept_at: int | None
    sweep_failures: int
    seen_at: int
    """When its first fact came in, in epoch ms."""


class PlanRow(msgspec.Struct, frozen=True):
    """What a backend put for a call."""

    provider: str
    call_id: str
    version: int
    plan: msgspec.Raw
    changed_at: int


class CallFilter(msgspec.Struct, frozen=True):
    """Which runs a page shows; None lets all pass.

    The fields are in the order of the query's parameters.
    """

    state: CallState | None = None
    user_id: str | None = None
    org_id: str | None = None
    provider: str | None = None
