"""Calls as sessions: what a call's facts make of its participants' meters.

A participant of one run of a call is one session, ``call:{provider}:{call session}:{user}``. The
facts decide when its time runs: the process that takes a fact holds a presence without a socket,
and the provider's word is the proof of life. Facts may come in any order, repeated, late or never,
so nothing here depends on their order: each fact is kept by its key, and the session is brought to
what all facts of the participant say together.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from server.calls.facts import Adapter, CallTruth, Fact
from server.process import Process

Devices = Literal["union", "sum"]
"""How two devices of one participant count: once, or each for itself."""


class Billing(msgspec.Struct, frozen=True, kw_only=True):
    """On whom a participant's time is counted.

    The first billing of a participant stays.
    """

    user_id: str
    """The user of the session: it is in the session's id, and sees it."""
    org_id: str | None = None
    """The session's tenant is this organisation, or the user without one."""
    account_id: str
    """The credit account in the same tenant that pays."""
    kind: str = "call"
    """A kind of the rate card with ``clock = "provider"``."""
    devices: Devices = "union"


class CallMapping(msgspec.Struct, frozen=True, kw_only=True):
    """Who pays for whom in a run, by the provider's user ids.

    A participant that is not in it is not metered; apply its facts again when it is.
    """

    participants: dict[str, Billing]


class ParticipantFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A participant of a run, as the record has it."""

    participant: str
    session_id: str
    tenant: str
    billing: Billing
    elapsed_ms: int | None
    """By our clock; None while the session lives, or where it never began."""
    provider_ms: int | None
    """By the provider's; None without a figure of its own."""
    difference_ms: int | None
    credits_micros: int
    """Corrections so far, signed: negative gives back."""
    minutes: int
    """Corrected minutes so far, signed."""
    uncollected_ms: int
    """Time that neither the balance nor the limits of the moment covered."""
    reason: str | None
    """Why there is a difference or a correction; None: there is none."""


class CallMeter:
    """The sessions of calls, on one process."""

    def __init__(self, process: Process, adapters: Mapping[str, Adapter]) -> None:
        self.process = process
        self.adapters = adapters
        """By their names: they end calls at a limit."""

    async def apply(self, fact: Fact, mapping: CallMapping) -> None:
        """Applies a fact, once for each ``fact.key``; a repetition changes nothing.

        Raises ``unknown_kind`` for a kind that the rate card lacks, or whose clock is the server's:
        such a call is parked. Raises ``unavailable`` (``ServiceError``), ``LiveError`` and
        ``UnavailableError`` while a store does not answer: apply the fact again later. What a limit
        refuses is no error: the provider is asked to end the call, as the kind says.
        """
        raise NotImplementedError

    async def confirm(self, truth: CallTruth, mapping: CallMapping) -> None:
        """Takes a sweep's answer: proofs of life, and lost facts.

        May be repeated. Raises as :meth:`apply`.
        """
        raise NotImplementedError

    async def figures(self, provider: str, call_session: str) -> tuple[ParticipantFigures, ...]:
        """The participants of a run with both clocks; raises ``UnavailableError``."""
        raise NotImplementedError
