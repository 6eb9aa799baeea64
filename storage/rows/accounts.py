"""Accounts, their ledger, and the operations that are charged to them."""

from typing import Any, NamedTuple

import msgspec

from protocol.metering.records import HoldState
from storage.rows.sessions import RecordedSession


class OpenHold(NamedTuple):
    """A hold that is reserved in an account."""

    hold_id: str
    amount_micros: int


class AccountRecord(msgspec.Struct, frozen=True):
    """A credit account in the ledger, from one snapshot."""

    balance_micros: int
    """The sum of the ledger."""
    debt_allowed: bool
    """True exactly while the balance is negative; no permission to lower it further."""
    recent_entry_ids: tuple[str, ...]
    """Money in that the balance includes: the newest 256, and all in the inbox."""
    position: int = 0
    """The position of the newest entry in the balance."""
    holds: tuple[str, ...] = ()
    """Open holds, which are reserved in the balance: ``<hold id>/<micro-credits>``."""
    recorded: tuple[RecordedSession, ...] = ()
    """The account's sessions that may still run and have minutes in the balance."""

    @property
    def open_holds(self) -> tuple[OpenHold, ...]:
        """The open holds, with id and amount separated."""
        parts = (hold.rpartition("/") for hold in self.holds)
        return tuple(OpenHold(hold_id, int(micros)) for hold_id, _, micros in parts)


class InboxEntry(msgspec.Struct, frozen=True):
    """Money in the ledger that Redis has not confirmed."""

    tenant: str
    account_id: str
    entry_id: str
    amount_micros: int
    entry_kind: str
    reason: str | None
    operation: str | None
    priority: int
    expires_at: int | None
    created_at: int


class GrantRow(msgspec.Struct, frozen=True):
    """A grant with its used and expired parts in Postgres."""

    tenant: str
    account_id: str
    entry_id: str
    amount_micros: int
    used_micros: int
    expired_micros: int
    priority: int
    expires_at: int | None
    granted_at: int
    name: str | None

    @property
    def left_micros(self) -> int:
        """Micro-credits that are neither used nor expired."""
        return self.amount_micros - self.used_micros - self.expired_micros


class WaitingEntry(msgspec.Struct, frozen=True):
    """Money in of one account that Redis has not confirmed."""

    entry_id: str
    amount_micros: int


class Allotments(msgspec.Struct, frozen=True):
    """An account's monthly allotments: its tier, and what was given so far."""

    timezone: str
    tier: str
    """The organisation's tier; ``free`` for a user without an organisation."""
    is_known: bool
    """The account has been used: it is not merely a name in a request."""
    given: dict[str, int]
    """Micro-credits given, by month (``2026-11``)."""


class BeforeOperation(msgspec.Struct, frozen=True):
    """What must be known before an operation is charged or held for."""

    timezone: str
    tier: str
    """The organisation's tier; ``free`` for a user without an organisation."""
    spent_micros: int | None
    """Micro-credits charged already under the same id; None: the operation is new here."""
    spent_operation: str | None = None
    """The operation charged then; None: an amount without one, or a new operation."""


class HoldRow(msgspec.Struct, frozen=True):
    """Credits held for an operation, with the state of the hold."""

    tenant: str
    hold_id: str
    account_id: str
    state: HoldState
    amount_micros: int
    posted_micros: int
    """Micro-credits charged; 0 unless the hold is ``posted``."""
    operation: str | None
    user_id: str | None
    month: str
    """The first day of the month in which the operation counts."""
    created_at: int
    expires_at: int
    changed_at: int
    metadata: dict[str, Any] | None = None


class RecentEntry(msgspec.Struct, frozen=True):
    """An entry of the ledger that Redis may lack after a loss."""

    tenant: str
    account_id: str
    entry_id: str
    amount_micros: int
    position: int


class OperationsDone(msgspec.Struct, frozen=True):
    """An operation's count in a month (its first day), held included."""

    tenant: str
    account_id: str
    month: str
    operation: str
    times: int
    """How often it was done."""
    holds: tuple[str, ...]
    """The ids of the open holds for the operation; each counts once."""


class OperationsOfMonth(msgspec.Struct, frozen=True):
    """An account's counts of operations in a month, held included."""

    times: dict[str, int]
    """How often each operation was done."""
    holds: dict[str, str]
    """The operation of each open hold, by the hold's id; each counts once."""


class LedgerEntry(msgspec.Struct, frozen=True):
    """An entry of an account's ledger; ``position`` is a page's cursor."""

    position: int
    entry_id: str
    entry_kind: str
    amount_micros: int
    reason: str | None
    operation: str | None
    session_id: str | None
    minute: int | None
    priority: int
    expires_at: int | None
    metadata: dict[str, Any] | None
    created_at: int


class AccountTotals(msgspec.Struct, frozen=True):
    """An account in a list, with the sums of its ledger.

    ``balance_micros`` is ``in_micros - burnt_micros - spent_micros``.
    """

    account_id: str
    balance_micros: int
    debt_allowed: bool
    entries: int
    in_micros: int
    """What was granted, adjusted and expired."""
    burnt_micros: int
    """What the time of sessions cost."""
    spent_micros: int
    """What operations cost, and what is held for them."""
