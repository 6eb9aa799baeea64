"""What is known of a session: who it belongs to, where it stands, and what it holds.

Three immutable values, kept as fields of the session's hash in Redis and the
same on every process: the :class:`Identity` never changes, the :class:`Standing`
changes with every accepted step, and the :class:`Grant` is what that step was given.
"""

from typing import Any

import msgspec

from protocol import limits
from protocol.metering.states import Phase
from protocol.metering.terms import MINUTE_MS, Terms, minutes_begun


class Identity(msgspec.Struct, frozen=True):
    """Who a session belongs to and what it is charged by: fixed when it starts."""

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
    """The shared allowance that free time is drawn from; None: the session's own."""
    metadata: dict[str, Any] | None = None
    """The client's or its backend's: nothing in it means anything here."""
    is_reported: bool = False
    """Its client counts for itself, and reports minute by minute."""


class Grant(msgspec.Struct, frozen=True):
    """What a session may still use: reserved on every counter that limits it."""

    granted_ms: int = 0
    """The counted time up to which everything is reserved."""
    held_micros: int = 0
    """What the account holds for the time between settled and granted."""
    held_minutes: dict[str, int] = {}
    """Minutes held for it, by month (``2026-11-01``)."""
    final: str | None = None
    """The limit that this grant exhausts: at its end the session stops."""


class Standing(msgspec.Struct, frozen=True):
    """Where a session stands after its last accepted step.

    ``elapsed_ms`` is the counted time at ``at``; while the session is active it goes on
    from there. What is settled never exceeds what was proven.
    """

    version: int
    """Rises by one with each accepted step: the claim's sequence number."""
    phase: Phase
    elapsed_ms: int
    at: int
    run_at: int
    """The instant at which the current or last segment began."""
    free_ms: int = 0
    """Free time that this session has: used, or reserved for it."""
    settled_ms: int = 0
    charged_micros: int = 0
    minutes_kept: int = 0
    """Rows of ``usage_tracking`` appended so far: completed minutes."""
    minute_at: int = 0
    """The instant at which the minute after those began."""
    minute_month: str = ""
    """The month that has counted that minute; empty until it is settled in part. It stays
    the minute's, if the organisation's time zone is changed meanwhile."""
    minute_charged_micros: int = 0
    """The session's charge at that instant."""
    seq: int = 0
    """The number of the last notice."""
    free_over: bool = False
    """``free_time`` was said."""
    warned: dict[str, int] = {}
    """The lowest threshold that was warned of, by limit."""
    limit: str | None = None
    grace_until: int | None = None
    lost_at: int | None = None
    """The last proof of life of a session without sockets."""
    ended_at: int | None = None
    reason: str | None = None
    uncovered_ms: int = 0
    """Counted time for which no grant was there when it was used: debt."""
    ungranted: tuple[tuple[int, int], ...] = ()
    """Where such time lies that is not proven and settled yet: a grant that was made since
    reaches beyond it, and no longer tells."""
    segments: tuple[tuple[int, int], ...] = ()
    gaps: tuple[tuple[int, int, bool], ...] = ()

    @property
    def counted_minutes(self) -> int:
        """Minutes that the month's counters have taken for this session."""
        return minutes_begun(self.settled_ms)

    @property
    def minute_end_ms(self) -> int:
        """The counted time at which the minute under way is complete."""
        return (self.minutes_kept + 1) * MINUTE_MS


class SessionState(msgspec.Struct, frozen=True):
    """A session as one step left it: the answer to every operation on it."""

    identity: Identity
    standing: Standing
    grant: Grant
    mark: str = ""
    """Names the step that left it. Two steps may have one version, where the first was lost with
    a Redis that failed and the second was made of the older copy; no two have one mark."""

    @property
    def key(self) -> str:
        """Its name within Redis and a process: tenant and id."""
        return session_key(self.identity.tenant, self.identity.session_id)


def session_key(tenant: str, session_id: str) -> str:
    """The name of a session across tenants; ``/`` is in the charset of neither."""
    return f"{tenant}/{session_id}"


def free_key(terms: Terms, user_id: str, counterpart_id: str | None, day: str) -> str | None:
    """The allowance that a kind's free time is drawn from, when sessions share one: with a
    counterpart, or of a day (``2026-11-25``)."""
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
    """``segments`` with one more; an empty one is left out, and their number is bounded."""
    if to_at <= from_at:
        return segments
    if segments and (from_at < segments[-1][0] or to_at < segments[-1][1]):
        # A client that counts its minutes itself has dated one ahead.
        return segments_in_order((*segments, (from_at, to_at)))
    if segments and segments[-1][1] >= from_at:
        return (*segments[:-1], (segments[-1][0], to_at))
    if len(segments) >= limits.SEGMENTS_PER_RECEIPT_MAX:
        segments = ((segments[0][0], segments[1][1]), *segments[2:])
    return (*segments, (from_at, to_at))


def segments_in_order(parts: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """``parts`` in their order, joined where they touch; their number is bounded."""
    joined: list[tuple[int, int]] = []
    for from_at, to_at in sorted(parts):
        if joined and joined[-1][1] >= from_at:
            joined[-1] = (joined[-1][0], max(joined[-1][1], to_at))
        else:
            joined.append((from_at, to_at))
    if len(joined) > limits.SEGMENTS_PER_RECEIPT_MAX:
        joined[:2] = [(joined[0][0], joined[1][1])]
    return tuple(joined)
