"""The record of usage: months, credits, sessions, all minutes.

These methods only read, over the record's pool. Their SQL is beside the other files, as
``storage/postgres/sql/usage_*.sql``.
"""

import contextlib
from collections.abc import AsyncIterator
from datetime import date

import msgspec

from storage.postgres.database import Database
from storage.postgres.reports import StreamedQueries
from storage.rows.sessions import SessionMinute


class Totals(msgspec.Struct, frozen=True):
    """Counted minutes and seconds, and sessions of every kind."""

    minutes: int
    seconds: int
    sessions: int


class MonthTotals(msgspec.Struct, frozen=True):
    """A month's counted minutes, and how many are overage.

    Overage is what lies beyond the limit of an organisation that allows it. A backend may bill it
    separately.
    """

    minutes: int
    overage_minutes: int


class SpendingTotals(msgspec.Struct, frozen=True):
    """What an operation, or time, took of an account's credits."""

    by_time: bool
    operation: str | None
    """The operation of the rate card; None: time, or a spend that named none."""
    total_actions: int
    total_micros: int
    day_actions: int
    day_micros: int
    week_actions: int
    week_micros: int
    month_actions: int
    month_micros: int


class UsageReportRow(msgspec.Struct, frozen=True):
    """One line of the report of usage; see ``usage_report.sql``."""

    org_id: str | None
    user_id: str
    account_id: str
    session_id: str
    kind: str
    counterpart_id: str | None
    minute: int
    started_at: str
    """The instant at which the minute began, in UTC (RFC 3339)."""
    day: str
    """The day of that instant in the organisation's calendar."""
    month: str
    seconds: int
    counts: bool
    charged_micros: int
    free_ms: int


class Usage(StreamedQueries):
    """Queries about usage. Make one with ``over``: the pool remains the record's."""

    @classmethod
    def over(cls, database: Database) -> "Usage":
        """Returns the queries over ``database``'s pool, which it also closes."""
        return cls(database._pool, database._timeout_s)

    async def month(self, tenant: str, user_id: str, month: date) -> Totals:
        """Returns a user's totals of a month (its first day)."""
        return await self._one("usage_month", Totals, tenant, user_id, month)

    async def of_month(self, tenant: str, user_id: str | None, month: date) -> MonthTotals:
        """Returns a member's minutes and overage of a month.

        A member of None is the whole organisation.
        """
        return await self._one("usage_of_month", MonthTotals, tenant, month, user_id)

    async def before(self, tenant: str, user_id: str, month: date) -> Totals:
        """Returns a user's totals before a month; sessions of all time."""
        return await self._one("usage_before", Totals, tenant, user_id, month)

    async def spending(
        self, tenant: str, account_id: str, day_at: int, week_at: int, month_at: int
    ) -> tuple[SpendingTotals, ...]:
        """Returns what used an account's credits, in total and by period."""
        arguments = (tenant, account_id, day_at, week_at, month_at)
        return await self._rows("usage_spending", SpendingTotals, *arguments)

    async def money_in(self, tenant: str, account_id: str) -> int:
        """Returns the sum of what was granted, adjusted and expired, in micro-credits."""
        return int(await self._value("usage_money_in", tenant, account_id))

    async def session(
        self, tenant: str, session_id: str, newest: int | None = None
    ) -> tuple[SessionMinute, ...]:
        """Returns the minutes of a session that Postgres has, in their order.

        ``newest`` bounds their number; None: all.
        """
        return await self._rows("usage_session", SessionMinute, tenant, session_id, newest)

    @contextlib.asynccontextmanager
    async def report(
        self, tenant: str | None, from_day: date, to_day: date
    ) -> AsyncIterator[AsyncIterator[list[UsageReportRow]]]:
        """Returns all minutes between two days, inclusive, in one snapshot's batches.

        ``tenant`` of None: all tenants. See ``storage.postgres.reports``.
        """
        asked = (tenant, from_day, to_day)
        async with self.rows("usage_report", UsageReportRow, *asked) as found:
            yield found
