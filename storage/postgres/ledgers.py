"""The record of credits: accounts, their ledger and grants, holds, and operations."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date

import msgspec

from protocol.metering.records import EntryPosted, MinuteUsed
from storage import limits as storage_limits
from storage.postgres import columns
from storage.postgres.database import SQL, Database
from storage.rows.accounts import (
    AccountRecord,
    AccountTotals,
    Allotments,
    BeforeOperation,
    GrantRow,
    HoldRow,
    InboxEntry,
    LedgerEntry,
    OperationsDone,
    OperationsOfMonth,
    RecentEntry,
    WaitingEntry,
)
from storage.rows.findings import AccountAudited, AuditFinding
from storage.rows.months import AdjustmentRow

MONEY_IN_KINDS = frozenset({"grant", "adjust", "expire"})
"""The kinds of entries that are written to Postgres first; the index knows them too."""

BALANCE_CHECK = "credit_accounts_balance_check"
"""The constraint that money in breaks when the account would have more than it may."""

_FINDING = msgspec.json.Decoder(AuditFinding)


class Ledgers(Database):
    """What the record knows of credits."""

    # Accounts

    async def load_account(
        self, tenant: str, account_id: str, ended_after: int | None = None
    ) -> AccountRecord:
        """The account from one snapshot; one that nobody has written to has a balance of 0.

        Of sessions that have not ended, or ended after an instant (None: of none), it says
        what is in that balance. Who asserts sessions again after Redis came back empty
        takes that as charged, and only the rest as new.
        """
        return await self._one("load_account", AccountRecord, tenant, account_id, ended_after)

    async def post_entry(
        self, entry: EntryPosted, priority: int = 0, expires_at: int | None = None
    ) -> bool:
        """Writes money in: the ledger's entry, and the inbox's, in one transaction.

        Returns whether it was new. If it was not, the process that wrote it may have died
        before it applied it to Redis: ask ``inbox_micros``. When it is applied, tell
        ``inbox_done``. Raises ``RefusedError`` with ``BALANCE_CHECK`` for what would raise
        the balance above ``BALANCE_MICROS_MAX``.
        """
        if entry.entry_kind not in MONEY_IN_KINDS:
            raise ValueError(f"{entry.entry_kind} is decided in Redis and comes by the outbox")
        arguments = columns.money_in_row(entry, priority, expires_at)
        return await self._value("post_entry", *arguments, again=False) is not None

    async def post_allotment(
        self,
        account: tuple[str, str],
        tier: str,
        month: str,
        micros: int,
        *,
        at: int,
        priority: int,
        expires_at: int,
    ) -> tuple[WaitingEntry, ...]:
        """Writes what a tier gives an account (tenant, id) for a month (``2026-11``), less what
        the month has given already, and the inbox's entry with it.

        Answers the account's allotments that Redis has not confirmed: apply them, then tell
        ``inbox_done``. Raises ``RefusedError`` as ``post_entry`` does.
        """
        arguments = (*account, tier, month, micros, at, priority, expires_at)
        return await self._rows("post_allotment", WaitingEntry, *arguments)

    async def allotments(self, tenant: str, account_id: str) -> Allotments:
        """The account's tier, and what tiers have given it by month."""
        return await self._one("allotments", Allotments, tenant, account_id)

    async def inbox(self, limit: int) -> tuple[InboxEntry, ...]:
        """Money in that Redis has not confirmed, of all tenants, oldest first."""
        return await self._rows("inbox", InboxEntry, limit)

    async def inbox_micros(self, tenant: str, account_id: str, entry_id: str) -> int | None:
        """What an entry brings that Redis has not confirmed; None: it has, or there is none."""
        micros = await self._value("inbox_micros", tenant, account_id, entry_id)
        return None if micros is None else int(micros)

    async def inbox_done(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Redis has applied these: ``(tenant, account_id, entry_id)`` each."""
        keys = [[entry[part] for entry in entries] for part in range(3)]
        await self._execute("inbox_done", *keys)

    async def entry(self, tenant: str, account_id: str, entry_id: str) -> LedgerEntry | None:
        """The entry of that id in an account's ledger, or None."""
        return await self._maybe("entry", LedgerEntry, tenant, account_id, entry_id)

    async def entries_since(self, after_at: int, limit: int) -> tuple[RecentEntry, ...]:
        """The newest entries of all ledgers from after an instant, without minutes."""
        return await self._rows("entries_since", RecentEntry, after_at, limit)

    async def entries_after(
        self, tenant: str, account_id: str, position: int
    ) -> tuple[RecentEntry, ...]:
        """What came to an account's ledger after a position, without minutes."""
        return await self._rows("entries_after", RecentEntry, tenant, account_id, position)

    async def ledger(
        self, tenant: str, account_id: str, before_position: int | None, limit: int
    ) -> tuple[LedgerEntry, ...]:
        """A page of the ledger, newest first, below a position; None: from the newest."""
        return await self._rows("ledger", LedgerEntry, tenant, account_id, before_position, limit)

    async def accounts(
        self, tenant: str, after_account_id: str | None, limit: int
    ) -> tuple[AccountTotals, ...]:
        """A page of the tenant's accounts, by id, after one; None: from the first."""
        return await self._rows("accounts", AccountTotals, tenant, after_account_id, limit)

    # Grants

    async def grants(self, tenant: str, account_id: str, limit: int) -> tuple[GrantRow, ...]:
        """The grants of which something is left, in the order in which they burn.

        What was used of them is what Postgres knows of: minutes and operations on their
        way through the outbox are not in it.
        """
        return await self._rows("grants", GrantRow, tenant, account_id, limit)

    async def grants_due(
        self, before_at: int, limit: int, after: GrantRow | None = None
    ) -> tuple[GrantRow, ...]:
        """Grants of all tenants that expired before an instant, in the order of expiry.

        A page of them, after one; None: from the first.
        """
        last = (after.expires_at, after.tenant, after.account_id, after.entry_id) if after else ()
        arguments = last or (None, None, None, None)
        return await self._rows("grants_due", GrantRow, before_at, *arguments, limit)

    # Operations and holds

    async def before_operation(
        self, tenant: str, account_id: str, entry_id: str
    ) -> BeforeOperation:
        """What is to be known before an operation is charged or held for."""
        return await self._one("before_operation", BeforeOperation, tenant, account_id, entry_id)

    async def operations_in_month(
        self, tenant: str, account_id: str, month: date
    ) -> Mapping[str, int]:
        """How often each operation was done in a month, or is held for now."""
        found = await self.operations_of_month(tenant, account_id, month)
        return Counter(found.times) + Counter(found.holds.values())

    async def operations_of_month(
        self, tenant: str, account_id: str, month: date
    ) -> OperationsOfMonth:
        """The operations of a month, and the holds that are open for them."""
        asked = (tenant, account_id, month)
        return await self._one("operations_in_month", OperationsOfMonth, *asked)

    async def operations_since(self, after_at: int, limit: int) -> tuple[OperationsDone, ...]:
        """Operations of all tenants that were done or held for after an instant, the newest,
        and how often in their month."""
        return await self._rows("operations_since", OperationsDone, after_at, limit)

    async def hold(self, tenant: str, hold_id: str) -> HoldRow | None:
        """The hold of that id, or None."""
        return await self._maybe("hold", HoldRow, tenant, hold_id)

    async def tenant_of_hold(self, hold_id: str) -> str | None:
        """The tenant of the only hold of that id, of all tenants; None when it is not alone."""
        found = await self._value("tenant_of_hold", hold_id)
        return None if found is None else str(found)

    async def holds_overdue(self, before_at: int, limit: int) -> tuple[HoldRow, ...]:
        """Holds of all tenants that should have expired before an instant, and are open."""
        return await self._rows("holds_overdue", HoldRow, before_at, limit)

    async def holds_since(self, after_at: int, limit: int) -> tuple[HoldRow, ...]:
        """The newest holds of all tenants that were opened or ended after an instant."""
        return await self._rows("holds_since", HoldRow, after_at, limit)

    # Adjustments of minutes

    async def adjust_minutes(self, adjustment: AdjustmentRow) -> bool:
        """Corrects a month's minutes. Returns whether it was new.

        Apply it to Redis in either case, then tell ``adjustment_applied``. Raises
        ``RefusedError`` where it takes away more minutes than the month has.
        """
        arguments = columns.adjustment_row(adjustment)
        return await self._value("adjust_minutes", *arguments, again=False) is not None

    async def adjustment(self, tenant: str, user_id: str, entry_id: str) -> AdjustmentRow | None:
        """The adjustment of that id, or None. It says whether Redis has confirmed it."""
        return await self._maybe("adjustment", AdjustmentRow, tenant, user_id, entry_id)

    async def adjustments_waiting(self, limit: int) -> tuple[AdjustmentRow, ...]:
        """Adjustments of all tenants that Redis has not confirmed."""
        return await self._rows("adjustments_waiting", AdjustmentRow, limit)

    async def adjustments_since(self, tenant: str, after_at: int) -> tuple[AdjustmentRow, ...]:
        """A tenant's adjustments from after an instant, whoever has applied them."""
        return await self._rows("adjustments_since", AdjustmentRow, tenant, after_at)

    async def newest_adjustments(self, after_at: int, limit: int) -> tuple[AdjustmentRow, ...]:
        """The newest adjustments of all tenants from after an instant, whoever has applied
        them."""
        return await self._rows("newest_adjustments", AdjustmentRow, after_at, limit)

    async def adjustment_applied(self, tenant: str, user_id: str, entry_id: str) -> None:
        """Redis took it."""
        await self._execute("adjustment_applied", tenant, user_id, entry_id)

    # Audit

    async def audit(self) -> tuple[AuditFinding, ...]:
        """What in the record does not add up, as far as one look can tell.

        Reads all of it, in one snapshot: minutes of work in a large installation.
        """
        found = await self._run(
            lambda connection: connection.fetch(
                SQL["audit"], storage_limits.AUDIT_FINDINGS_MAX, timeout=storage_limits.AUDIT_S_MAX
            )
        )
        return tuple(_FINDING.decode(row[0]) for row in found)

    async def audit_account(
        self,
        tenant: str,
        account_id: str,
        entry_ids: Sequence[str],
        minutes: Sequence[MinuteUsed],
    ) -> AccountAudited:
        """An account's balance, and which of these entries and minutes are in it."""
        numbers = ([one.session_id for one in minutes], [one.minute for one in minutes])
        return await self._one(
            "audit_account", AccountAudited, tenant, account_id, list(entry_ids), *numbers
        )
