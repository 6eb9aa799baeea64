"""A user's month now: what is used, and which limit decides."""

import msgspec
from starlette.requests import Request

from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.counters.calendars import calendar
from server.counters.projections import Month, deciding_limit
from server.process import Process
from storage.rows.months import MemberRecord, UsageLimit


class MonthUse(msgspec.Struct, frozen=True):
    """A user's month at this instant."""

    month: Month
    found: MemberRecord
    own_minutes: int
    """The user's own minutes; ``limit`` may be the whole organisation's."""
    limit: UsageLimit


class Months:
    """The months of users, as one process sees them."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._remembered: dict[tuple[str, str], MemberRecord] = {}
        """The last reply of Postgres for each user.

        Limits do not change while Postgres does not answer, because every change is written there
        first.
        """

    async def use(self, tenant: str, user_id: str) -> MonthUse:
        """The month of a user and the organisation, from both stores.

        Postgres has the written records, Redis also those on their way; a counter that is cold in
        Redis is complete in Postgres. So the greater of the two figures is what was used.
        """
        found = await self.plan(tenant, user_id)
        month = Month(calendar(found.timezone), self._process.clock.now())
        first = month.first
        member, org = await self._process.live.month(tenant, user_id, first.isoformat())
        own_minutes, org_minutes = member.used_minutes, org.used_minutes
        for written in found.months:
            if written.month == first:
                own_minutes = max(own_minutes, written.member_minutes)
                org_minutes = max(org_minutes, written.org_minutes)
        return MonthUse(month, found, own_minutes, deciding_limit(found, own_minutes, org_minutes))

    async def plan(self, tenant: str, user_id: str) -> MemberRecord:
        """The limits and the time zone of a user.

        While Postgres does not answer, these are its last reply. Raises ``unavailable`` for a user
        that was not read before.
        """
        key = (tenant, user_id)
        try:
            found = await self._process.loader.member(tenant, user_id)
        except ServiceError:
            if key not in self._remembered:
                raise
            return self._remembered[key]
        self._remembered.pop(key, None)
        self._remembered[key] = found
        if len(self._remembered) > server_limits.ACCOUNTS_CACHED_MAX:
            del self._remembered[next(iter(self._remembered))]
        return found


def months_of(request: Request) -> Months:
    """The months, as the process's application holds them."""
    months: Months = request.app.state.months
    return months
