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
    """Those of all members, the member's own included."""


class MemberRecord(msgspec.Struct, frozen=True):
    """The limits of a member and the organisation, and what was used of them.

    A limit of None is none. ``months`` has those that were asked for, in their order.
    """

    timezone: str
    tier: str
    allow_overage: bool
    """The organisation's limit does not stop; the member's own does all the same."""
    member_limit_minutes: int | None
    org_limit_minutes: int | None
    months: tuple[MonthUsed, ...]
    adjustment_ids: tuple[str, ...] = ()
    """Adjustments in these figures that Redis has not confirmed: ``<user id>/<entry id>``."""
    recorded: tuple[RecordedSession, ...] = ()
    """Sessions that may still be running and have minutes in these figures."""


class FreeRecord(msgspec.Struct, frozen=True):
    """What a user has had of an allowance of free time."""

    used_ms: int
    recorded: tuple[RecordedSession, ...] = ()
    """What of it sessions have had that may still be running."""


class OrganizationRow(msgspec.Struct, frozen=True):
    """An organisation's plan. A limit of None is none."""

    tenant: str
    org_id: str
    tier: str
    timezone: str
    monthly_hours_limit: float | None
    allow_overage: bool


class MemberRow(msgspec.Struct, frozen=True):
    """A member's own limit, and the minutes of the newest month with any."""

    tenant: str
    user_id: str
    monthly_hours_limit: float | None
    current_month_minutes_used: int
    current_month_start: date | None


class LimitChange(msgspec.Struct, frozen=True):
    """A limit that was changed: it is now so."""

    tenant: str
    user_id: str
    """Empty: it is the organisation's own."""
    limit_minutes: int | None
    allow_overage: bool


class AdjustmentRow(msgspec.Struct, frozen=True):
    """A correction of the minutes that a user has in a month (its first day)."""

    tenant: str
    user_id: str
    entry_id: str
    month: str
    minutes: int
    """Signed: what it adds."""
    reason: str
    created_at: int
    is_applied: bool = False
    """Redis has confirmed it."""


class UsageLimit(msgspec.Struct, frozen=True):
    """Whether a user may record, and the limit that decides it; None: no limit."""

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
