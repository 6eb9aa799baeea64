"""A user's month at this instant: what is used of it, and which limit decides."""

import msgspec

from server.loading import calendar
from server.process import Process
from server.projections import Month, deciding_limit
from storage.rows import MemberRecord, UsageLimit


class MonthUse(msgspec.Struct, frozen=True):
    """A user's month at this instant."""

    month: Month
    found: MemberRecord
    own_minutes: int
    """The user's own minutes, where ``limit`` may be of the whole organisation."""
    limit: UsageLimit


async def month_use(process: Process, tenant: str, user_id: str) -> MonthUse:
    """The month of a user's organisation, with what Redis knows of it.

    Postgres has what is written down, Redis what is not yet; a counter that is cold in
    Redis is complete in Postgres. So the greater of the two is what was used.
    """
    found = await process.loader.member(tenant, user_id)
    month = Month(calendar(found.timezone), process.clock.now())
    first = month.first
    member, org = await process.live.month(tenant, user_id, first.isoformat())
    written = next(used for used in found.months if used.month == first)
    own_minutes = max(member.used_minutes, written.member_minutes)
    org_minutes = max(org.used_minutes, written.org_minutes)
    return MonthUse(month, found, own_minutes, deciding_limit(found, own_minutes, org_minutes))
