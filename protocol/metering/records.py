"""Records of sessions and operations on their way to Postgres.

A claim or a spend appends its records to the outbox of its partition, in the same atomic step that
settles them. The flusher decodes the records and writes each to Postgres once. Each record has a
natural key, and contains everything that its writing needs, without any other record. Records may
arrive twice, or in another order than they were made.
"""

from typing import Any, Literal

import msgspec

from protocol.metering.terms import Terms


class SessionStarted(msgspec.Struct, frozen=True, tag_field="t", tag="session"):
    """A session exists. Key: ``tenant``, ``session_id``."""

    tenant: str
    session_id: str
    user_id: str
    org_id: str | None
    account_id: str
    counterpart_id: str | None
    kind: str
    started_at: int
    terms: Terms
    metadata: dict[str, Any] | None = None
    is_reported: bool = False


class MinuteUsed(msgspec.Struct, frozen=True, tag_field="t", tag="minute"):
    """A minute of a session was used. Key: ``tenant``, ``session_id``, ``minute``.

    ``seconds`` is 1 to 60: only a session's last minute may be short. ``credits_micros`` is what
    the minute cost: the session's cost at the minute's end minus the cost at its start. So the
    minutes add up to the session's charge, without a rounding of their own. ``started_at`` is the
    instant at which the minute began. ``month`` is the first day of the calendar month of that
    instant in the organisation's time zone (``2026-11-01``). ``counts``: the minute counts against
    the month of member and organisation.
    """

    tenant: str
    session_id: str
    minute: int
    seconds: int
    user_id: str
    org_id: str | None
    account_id: str
    counterpart_id: str | None
    kind: str
    started_at: int
    month: str
    counts: bool
    credits_micros: int
    free_ms: int


class SessionEnded(msgspec.Struct, frozen=True, tag_field="t", tag="ended"):
    """A session ended; the figures of its receipt. Key: ``tenant``, ``session_id``.

    ``segments`` are ``[from_at, to_at]``; ``gaps`` are ``[from_at, to_at, billed]``.
    """

    tenant: str
    session_id: str
    user_id: str
    org_id: str | None
    account_id: str
    counterpart_id: str | None
    kind: str
    started_at: int
    ended_at: int
    reason: str
    limit: str | None
    elapsed_ms: int
    free_ms: int
    billed_ms: int
    minutes: int
    credits_micros: int
    uncovered_ms: int
    segments: list[tuple[int, int]]
    gaps: list[tuple[int, int, bool]]
    terms: Terms
    metadata: dict[str, Any] | None = None
    is_reported: bool = False


class EntryPosted(msgspec.Struct, frozen=True, tag_field="t", tag="entry"):
    """A ledger entry that Redis decided. Key: ``tenant``, ``account_id``, ``entry_id``.

    ``amount_micros`` is the signed change of the balance. A spend or post of 0 moved nothing and is
    not in the ledger. An entry of an ``operation`` is also kept as its usage: then ``month`` is the
    first day of the organisation's month that it counts in, and ``metadata`` describes the
    operation (``service``, ``tokens_used``, ``response_time_ms``, ``success``, any others).
    """

    tenant: str
    account_id: str
    entry_id: str
    entry_kind: str
    amount_micros: int
    at: int
    reason: str | None = None
    operation: str | None = None
    metadata: dict[str, Any] | None = None
    user_id: str | None = None
    month: str | None = None


HoldState = Literal["open", "posted", "voided", "expired"]


class HoldChanged(msgspec.Struct, frozen=True, tag_field="t", tag="hold"):
    """A hold was opened or ended for good.

    Key: ``tenant``, ``hold_id``, ``state``.

    The hold reserves ``amount_micros`` while it is ``open``; a ``posted`` hold charged
    ``posted_micros``. Each record is complete, and may arrive before the record of the opening.
    """

    tenant: str
    account_id: str
    hold_id: str
    state: HoldState
    amount_micros: int
    posted_micros: int
    operation: str | None
    user_id: str | None
    month: str
    created_at: int
    expires_at: int
    changed_at: int
    metadata: dict[str, Any] | None = None


Record = SessionStarted | MinuteUsed | SessionEnded | EntryPosted | HoldChanged
"""The content of an outbox entry: a JSON array of these under the stream field ``r``."""
