"""A session: its owner, where it stands, and what it holds.

The three values are immutable. They are kept as fields of the session's hash in Redis, and are the
same on every process. The :class:`Identity` never changes; the :class:`Standing` changes with every
accepted step; the :class:`Grant` is what that step was given.
"""

from typing import Any

import msgspec

from protocol import limits
from protocol.metering.states import Phase
from protocol.metering.terms import MINUTE_MS, Terms, minutes_begun


class Identity(msgspec.Struct, frozen=True):
    """A session's owner and terms, fixed when it starts."""

    tenant: str
    """``org:<id>``, or ``user:<id>`` for a user without an organisation."""
    session_id: str
    user_id: str
    org_id: str | None
    account_id: str
    counterpart_id: str | None
    kind: str
    started_at: int
    terms: Terms
    free_key: str | None = None
    """The shared allowance that free time comes from; None: the session has its own."""
    metadata: dict[str, Any] | None = None
    """Data of the client or its backend; Taximeter does not interpret it."""
    is_reported: bool = False
    """The client counts the minutes itself and reports each."""


class Grant(msgspec.Struct, frozen=True):
    """What a session may still use: reserved on each of its counters."""

    granted_ms: int = 0
    """The counted time up to which every counter has reserved."""
    held_micros: int = 0
    """Micro-credits that the account holds for the time between settled and granted."""
    held_minutes: dict[str, int] = {}
    """Minutes held for the session, by month (``2026-11-01``)."""
    final: str | None = None
    """The limit that this grant exhausts. The session stops at the end of the grant."""


class Standing(msgspec.Struct, frozen=True):
    """Where a session stands after its last accepted step.

    ``elapsed_ms`` is the counted time at ``at``; while the session is active, counted time runs on
    from there. Settled time never exceeds proven time.
    """

    version: int
    """Rises by one with each accepted step; the sequence number of claims."""
    phase: Phase
    elapsed_ms: int
    at: int
    run_at: int
    """The instant at which the current or last segment began."""
    free_ms: int = 0
    """Free time that this session has used, or that is reserved for it."""
    settled_ms: int = 0
    charged_micros: int = 0
    minutes_kept: int = 0
    """Rows of ``usage_tracking`` appended so far: completed minutes."""
    minute_at: int = 0
    """The instant at which the minute after the kept minutes began."""
    minute_month: str = ""
    """The month that has counted that minute; empty until a part of the minute is settled. The
    minute keeps this month if the organisation's time zone changes meanwhile."""
    minute_charged_micros: int = 0
    """The session's charge in micro-credits at ``minute_at``."""
    seq: int = 0
    """The number of the last notice."""
    free_over: bool = False
    """The notice ``free_time`` was sent."""
    warned: dict[str, int] = {}
    """The lowest threshold with a warning, by limit."""
    limit: str | None = None
    grace_until: int | None = None
    lost_at: int | None = None
    """The last proof of life of a session without sockets."""
    ended_at: int | None = None
    reason: str | None = None
    uncovered_ms: int = 0
    """Counted time that had no grant when it was used: debt."""
    ungranted: tuple[tuple[int, int], ...] = ()
    """The parts of such time that are not proven and settled yet. A later grant reaches beyond
    these parts, so the grant does not show them any more."""
    segments: tuple[tuple[int, int], ...] = ()
    gaps: tuple[tuple[int, int, bool], ...] = ()

    @property
    def counted_minutes(self) -> int:
        """Minutes that the month's counters have counted for this session."""
        return minutes_begun(self.settled_ms)

    @property
    def minute_end_ms(self) -> int:
        """The counted time at which the current minute is complete."""
        return (self.minutes_kept + 1) * MINUTE_MS


class SessionState(msgspec.Struct, frozen=True):
    """A session after a step: the result of every operation on it."""

    identity: Identity
    standing: Standing
    grant: Grant
    mark: str = ""
    """The name of the step that left this state. Two steps may have one version: the first was lost
    with a Redis that failed, and the second was made from the older copy. No two steps have one
    mark."""

    @property
    def key(self) -> str:
        """The session's name within Redis and a process: tenant and id."""
        return session_key(self.identity.tenant, self.identity.session_id)


def session_key(tenant: str, session_id: str) -> str:
    """Returns a session's name across tenants; no part may contain ``/``."""
    return f"{tenant}/{session_id}"


def free_key(terms: Terms, user_id: str, counterpart_id: str | None, day: str) -> str | None:
    """Returns the allowance of a kind's free time, if sessions share one.

    Sessions with the same counterpart share one, or sessions of the same day (``2026-11-25``).
    None: the session has its own.
    """
    if terms.free_ms == 0 or terms.free_scope == "session":
        return None
    if terms.free_scope == "pair":
        if counterpart_id is None:
            return None
        return f"{user_id}/{terms.kind}/pair/{counterpart_id}"
    return f"{user_id}/{terms.kind}/day/{day}"


def joined_segments(
    segments: tuple[tuple[int, int], ...], from_at: int, to_at: int
) -> tuple[tuple[int, int], ...]:
    """Returns ``segments`` with one more, and bounds their number.

    An empty segment is left out.
    """
    if to_at <= from_at:
        return segments
    if segments and (from_at < segments[-1][0] or to_at < segments[-1][1]):
        # A client that counts its minutes itself has dated a minute ahead.
        return segments_in_order((*segments, (from_at, to_at)))
    if segments and segments[-1][1] >= from_at:
        return (*segments[:-1], (segments[-1][0], to_at))
    if len(segments) >= limits.SEGMENTS_PER_RECEIPT_MAX:
        segments = ((segments[0][0], segments[1][1]), *segments[2:])
    return (*segments, (from_at, to_at))


def segments_in_order(parts: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Returns ``parts`` in order, joined where they touch; their number is bounded."""
    joined: list[tuple[int, int]] = []
    for from_at, to_at in sorted(parts):
        if joined and joined[-1][1] >= from_at:
            joined[-1] = (joined[-1][0], max(joined[-1][1], to_at))
        else:
            joined.append((from_at, to_at))
    if len(joined) > limits.SEGMENTS_PER_RECEIPT_MAX:
        joined[:2] = [(joined[0][0], joined[1][1])]
    return tuple(joined)


def unstarted(phase: Phase, now_ms: int, free_ms: int) -> Standing:
    """Returns the standing before the first step: nothing counted, nothing held."""
    return Standing(
        version=0,
        phase=phase,
        elapsed_ms=0,
        at=now_ms,
        run_at=now_ms,
        minute_at=now_ms,
        free_ms=free_ms,
    )
