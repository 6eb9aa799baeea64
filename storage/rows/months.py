"""Months, limits and free time of members and organisations."""

from datetime import date
from typing import Literal

import msgspec

from storage.rows.sessions import RecordedSession


class MonthUsed(msgspec.Struct, frozen=True):
    """The counted minutes of one month, named by its first day."""

    month: date
    member_minutes: int
    org_minutes: int
    """The minutes of all members, with the member's own."""


class MemberRecord(msgspec.Struct, frozen=True):
    """The limits of a member and the organisation, and their use.

    A limit of None is no limit. ``months`` has the requested months, in their order.
    """

    timezone: str
    tier: str
    allow_overage: bool
    """The organisation's limit does not stop sessions; the member's own limit still does."""
    member_limit_minutes: int | None
    org_limit_minutes: int | None
    months: tuple[MonthUsed, ...]
    adjustment_ids: tuple[str, ...] = ()
    """Adjustments in these figures that Redis has not confirmed: ``<user id>/<entry id>``."""
    recorded: tuple[RecordedSession, ...] = ()
    """Sessions that may still run and have minutes in these figures."""


class FreeRecord(msgspec.Struct, frozen=True):
    """What a user has used of an allowance of free time."""

    used_ms: int
    recorded: tuple[RecordedSession, ...] = ()
    """The part of it that sessions have used that may still run."""


class OrganizationRow(msgspec.Struct, frozen=True):
    """An organisation's plan. A limit of None is no limit."""

    tenant: str
    org_id: str
    tier: str
    timezone: str
    monthly_hours_limit: float | None
    allow_overage: bool


class MemberRow(msgspec.Struct, frozen=True):
    """A member's own limit, and the newest month with minutes."""

    tenant: str
    user_id: str
    monthly_hours_limit: float | None
    current_month_minutes_used: int
    current_month_start: date | None


class LimitChange(msgspec.Struct, frozen=True):
    """A limit that was changed, with its present value."""

    tenant: str
    user_id: str
    """The member; empty: the limit is the organisation's own."""
    limit_minutes: int | None
    allow_overage: bool


class AdjustmentRow(msgspec.Struct, frozen=True):
    """A correction of a user's minutes in a month (its first day)."""

    tenant: str
    user_id: str
    entry_id: str
    month: str
    minutes: int
    """The change, signed."""
    reason: str
    created_at: int
    is_applied: bool = False
    """Redis has confirmed the adjustment."""


class UsageLimit(msgspec.Struct, frozen=True):
    """Whether a user may record; the deciding limit, None: no limit."""

    can_record: bool
    minutes_used: int
    minutes_limit: int | None
    minutes_remaining: int | None
    percentage_used: float
    binding: Literal["member_minutes", "org_minutes"] | None
    """The limit that stops the recording when nothing remains."""


class UsageDay(msgspec.Struct, frozen=True):
    """A day in the organisation's time zone.

    Minutes and seconds are of the kinds that count, sessions and credits of every kind.
    """

    day: date
    minutes: int
    seconds: int
    sessions: int
    credits_micros: int
