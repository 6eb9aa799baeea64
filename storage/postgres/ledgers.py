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
from storage.rows.idempotency import KeyClaim
from storage.rows.months import AdjustmentRow

MONEY_IN_KINDS = frozenset({"grant", "adjust", "expire"})
"""The kinds of entries that are written to Postgres first. The index has the same list."""

BALANCE_CHECK = "credit_accounts_balance_check"
"""The constraint that money in breaks if the account would have more than allowed."""

_FINDING = msgspec.json.Decoder(AuditFinding)


class Ledgers(Database):
    """The record's methods for credits."""

    # Accounts

    async def load_account(
        self, tenant: str, account_id: str, ended_after: int | None = None
    ) -> AccountRecord:
        """Returns the account from one snapshot; without entries, its balance is 0.

        The answer includes, for sessions that have not ended, or ended after an instant (None: of
        no ended session), their share of that balance. A process that asserts sessions, after Redis
        came back empty, takes this share as charged, and only the rest as new.
        """
        return await self._one("load_account", AccountRecord, tenant, account_id, ended_after)

    async def post_entry(
        self,
        entry: EntryPosted,
        priority: int = 0,
        expires_at: int | None = None,
        claim: KeyClaim | None = None,
    ) -> bool:
        """Writes money in: the entries of ledger and inbox, in one transaction.

        With a ``claim`` that is over, nothing is written: the key was answered meanwhile.

        Returns whether the entry was new. If it was not, the process that wrote it may have died
        before it applied the entry to Redis: ask ``inbox_micros``. After applying it, call
        ``inbox_done``. Raises ``RejectedError`` with ``BALANCE_CHECK`` if the balance would exceed
        ``BALANCE_MICROS_MAX``.
        """
        if entry.entry_kind not in MONEY_IN_KINDS:
            raise ValueError(f"{entry.entry_kind} is decided in Redis and comes by the outbox")
        arguments = columns.money_in_row(entry, priority, expires_at, claim)
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
        """Writes a tier's monthly allotment, less what the month has given.

        The account is (tenant, id), the month ``2026-11``. The inbox's entry is written with it.
        Returns the account's allotments that Redis has not confirmed: apply them, then call
        ``inbox_done``. Raises ``RejectedError`` as ``post_entry`` does.
        """
        arguments = (*account, tier, month, micros, at, priority, expires_at)
        return await self._rows("post_allotment", WaitingEntry, *arguments)

    async def allotments(self, tenant: str, account_id: str) -> Allotments:
        """Returns the account's tier, and its allotments by month."""
        return await self._one("allotments", Allotments, tenant, account_id)

    async def inbox(self, limit: int) -> tuple[InboxEntry, ...]:
        """Returns all tenants' money in that Redis lacks, oldest first."""
        return await self._rows("inbox", InboxEntry, limit)

    async def inbox_micros(self, tenant: str, account_id: str, entry_id: str) -> int | None:
        """Returns an unconfirmed entry's micro-credits; None: confirmed, or unknown."""
        micros = await self._value("inbox_micros", tenant, account_id, entry_id)
        return None if micros is None else int(micros)

    async def inbox_done(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Records that Redis has applied entries: ``(tenant, account_id, entry_id)`` each."""
        keys = [[entry[part] for entry in entries] for part in range(3)]
        await self._execute("inbox_done", *keys)

    async def entry(self, tenant: str, account_id: str, entry_id: str) -> LedgerEntry | None:
        """Returns the entry of that id in an account's ledger, or None."""
        return await self._maybe("entry", LedgerEntry, tenant, account_id, entry_id)

    async def entries_since(self, after_at: int, limit: int) -> tuple[RecentEntry, ...]:
        """Returns the newest entries of all ledgers after an instant, without minutes."""
        return await self._rows("entries_since", RecentEntry, after_at, limit)

    async def entries_after(
        self, tenant: str, account_id: str, position: int
    ) -> tuple[RecentEntry, ...]:
        """Returns the entries of an account's ledger after a position, without minutes."""
        return await self._rows("entries_after", RecentEntry, tenant, account_id, position)

    async def ledger(
        self, tenant: str, account_id: str, before_position: int | None, limit: int
    ) -> tuple[LedgerEntry, ...]:
        """Returns a page of the ledger, newest first, below a position.

        A position of None begins with the newest entry.
        """
        return await self._rows("ledger", LedgerEntry, tenant, account_id, before_position, limit)

    async def accounts(
        self, tenant: str, after_account_id: str | None, limit: int
    ) -> tuple[AccountTotals, ...]:
        """Returns a page of the tenant's accounts, after an id.

        An id of None begins with the first account.
        """
        return await self._rows("accounts", AccountTotals, tenant, after_account_id, limit)

    # Grants

    async def grants(self, tenant: str, account_id: str, limit: int) -> tuple[GrantRow, ...]:
        """Returns grants with a rest, in the order of their burn.

        Their use is as far as Postgres knows: it lacks minutes and operations that are on their way
        through the outbox.
        """
        return await self._rows("grants", GrantRow, tenant, account_id, limit)

    async def grants_due(
        self, before_at: int, limit: int, after: GrantRow | None = None
    ) -> tuple[GrantRow, ...]:
        """Returns all tenants' grants that expired before an instant, in order.

        The result is a page after one grant; None: from the first.
        """
        last = (after.expires_at, after.tenant, after.account_id, after.entry_id) if after else ()
        arguments = last or (None, None, None, None)
        return await self._rows("grants_due", GrantRow, before_at, *arguments, limit)

    # Operations and holds

    async def before_operation(
        self, tenant: str, account_id: str, entry_id: str
    ) -> BeforeOperation:
        """Returns what an operation's charge or hold must know."""
        return await self._one("before_operation", BeforeOperation, tenant, account_id, entry_id)

    async def operations_in_month(
        self, tenant: str, account_id: str, month: date
    ) -> Mapping[str, int]:
        """Returns how often each operation was done or held in a month."""
        found = await self.operations_of_month(tenant, account_id, month)
        return Counter(found.times) + Counter(found.holds.values())

    async def operations_of_month(
        self, tenant: str, account_id: str, month: date
    ) -> OperationsOfMonth:
        """Returns the operations of a month, and the open holds for them."""
        asked = (tenant, account_id, month)
        return await self._one("operations_in_month", OperationsOfMonth, *asked)

    async def operations_since(self, after_at: int, limit: int) -> tuple[OperationsDone, ...]:
        """Returns all tenants' newest operations, with their months' counts.

        They were done, or were held for, after that instant.
        """
        return await self._rows("operations_since", OperationsDone, after_at, limit)

    async def hold(self, tenant: str, hold_id: str) -> HoldRow | None:
        """Returns the hold of that id, or None."""
        return await self._maybe("hold", HoldRow, tenant, hold_id)

    async def tenant_of_hold(self, hold_id: str) -> str | None:
        """Returns a hold's tenant; None: no hold or several have the id."""
        found = await self._value("tenant_of_hold", hold_id)
        return None if found is None else str(found)

    async def holds_overdue(self, before_at: int, limit: int) -> tuple[HoldRow, ...]:
        """Returns all tenants' open holds that should have expired."""
        return await self._rows("holds_overdue", HoldRow, before_at, limit)

    async def holds_since(self, after_at: int, limit: int) -> tuple[HoldRow, ...]:
        """Returns all tenants' newest holds, opened or ended after an instant."""
        return await self._rows("holds_since", HoldRow, after_at, limit)

    # Adjustments of minutes

    async def adjust_minutes(
        self, adjustment: AdjustmentRow, claim: KeyClaim | None = None
    ) -> bool:
        """Corrects a month's minutes. Returns whether the correction was new.

        With a ``claim`` that is over, nothing is written, as in ``post_entry``. Otherwise apply the
        correction to Redis in either case, then call ``adjustment_applied``. Raises
        ``RejectedError`` if it removes more minutes than the month has.
        """
        arguments = columns.adjustment_row(adjustment, claim)
        return await self._value("adjust_minutes", *arguments, again=False) is not None

    async def adjustment(self, tenant: str, user_id: str, entry_id: str) -> AdjustmentRow | None:
        """Returns an adjustment or None; ``is_applied``: Redis has confirmed it."""
        return await self._maybe("adjustment", AdjustmentRow, tenant, user_id, entry_id)

    async def adjustments_waiting(self, limit: int) -> tuple[AdjustmentRow, ...]:
        """Returns adjustments of all tenants that Redis has not confirmed."""
        return await self._rows("adjustments_waiting", AdjustmentRow, limit)

    async def adjustments_since(self, tenant: str, after_at: int) -> tuple[AdjustmentRow, ...]:
        """Returns a tenant's adjustments after an instant, applied or not."""
        return await self._rows("adjustments_since", AdjustmentRow, tenant, after_at)

    async def newest_adjustments(self, after_at: int, limit: int) -> tuple[AdjustmentRow, ...]:
        """Returns all tenants' newest adjustments, applied or not."""
        return await self._rows("newest_adjustments", AdjustmentRow, after_at, limit)

    async def adjustment_applied(self, tenant: str, user_id: str, entry_id: str) -> None:
        """Records that Redis has applied the adjustment."""
        await self._execute("adjustment_applied", tenant, user_id, entry_id)

    # Audit

    async def audit(self) -> tuple[AuditFinding, ...]:
        """Returns the record's errors, as far as one look shows them.

        Reads the whole record in one snapshot, which takes minutes in a large installation.
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
        """Returns an account's balance, and which entries and minutes it includes."""
        numbers = ([one.session_id for one in minutes], [one.minute for one in minutes])
        return await self._one(
            "audit_account", AccountAudited, tenant, account_id, list(entry_ids), *numbers
        )
