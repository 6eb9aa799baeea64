"""What the record answers: frozen values, with instants as epoch milliseconds.

Most are decoded from one JSON column that a query in ``storage/postgres/sql`` makes, so the
names here are the names there.
"""

import hashlib
from datetime import date, datetime
from typing import Any, Literal, NamedTuple

import msgspec

from protocol.metering.records import HoldState
from protocol.metering.session import Identity
from protocol.metering.terms import Terms

SessionState = Literal["prepared", "live", "ended"]


class RecordedSession(msgspec.Struct, frozen=True):
    """What of a session's time is in Postgres already."""

    session_id: str
    minutes: int
    """How many of its minutes those are: the first ones, for they are written in order."""
    charged_micros: int
    free_ms: int
    user_id: str | None = None


class OpenHold(NamedTuple):
    """A hold that is reserved out of an account."""

    hold_id: str
    amount_micros: int


class AccountRecord(msgspec.Struct, frozen=True):
    """A credit account as the ledger has it; all of it from one snapshot."""

    balance_micros: int
    """The sum of the ledger."""
    debt_allowed: bool
    """True exactly while the balance is negative; no permission to go further down."""
    recent_entry_ids: tuple[str, ...]
    """Money in that is in the balance: the newest 256, and all that wait in the inbox."""
    position: int = 0
    """That of the newest entry in the balance."""
    holds: tuple[str, ...] = ()
    """Open holds, which are reserved out of the balance: ``<hold id>/<micro-credits>``."""
    recorded: tuple[RecordedSession, ...] = ()
    """Its sessions that may still be running and have minutes in the balance."""

    @property
    def open_holds(self) -> tuple[OpenHold, ...]:
        """The open holds, taken apart."""
        parts = (hold.rpartition("/") for hold in self.holds)
        return tuple(OpenHold(hold_id, int(micros)) for hold_id, _, micros in parts)


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


class SessionPrepared(msgspec.Struct, frozen=True):
    """A session that a backend prepared for a user, with terms of its own."""

    tenant: str
    session_id: str
    user_id: str
    org_id: str | None
    account_id: str
    counterpart_id: str | None
    kind: str
    terms: Terms
    expires_at: int
    """It may be started before that instant."""
    metadata: dict[str, Any] | None = None

    @property
    def preparation(self) -> str:
        """The fingerprint by which a start says what it was decided from."""
        parts = (self.user_id, self.account_id, self.counterpart_id, self.terms, self.expires_at)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


class SessionRow(msgspec.Struct, frozen=True):
    """A chat, recording or call; the figures are final when its state is ``ended``."""

    tenant: str
    session_id: str
    state: SessionState
    kind: str
    user_id: str
    org_id: str | None
    account_id: str
    counterpart_id: str | None
    started_at: int | None
    ended_at: int | None
    reason: str | None
    limit_name: str | None
    elapsed_ms: int
    free_ms: int
    billed_ms: int
    minutes: int
    charged_micros: int
    uncovered_ms: int
    segments: list[tuple[int, int]]
    gaps: list[tuple[int, int, bool]]
    terms: Terms
    metadata: dict[str, Any] | None
    is_reported: bool = False
    """Its client counts for itself."""
    expires_at: int | None = None
    """A prepared session may be started before that instant."""

    @property
    def prepared(self) -> SessionPrepared | None:
        """The preparation, of a session that has not started."""
        if self.state != "prepared":
            return None
        names = SessionPrepared.__struct_fields__
        return SessionPrepared(**{name: getattr(self, name) for name in names})

    @property
    def identity(self) -> Identity:
        """Who a session that has started belongs to. The allowance that it shares is not
        written down; see ``protocol.metering.session.free_key``."""
        assert self.started_at is not None
        return Identity(
            tenant=self.tenant,
            session_id=self.session_id,
            user_id=self.user_id,
            org_id=self.org_id,
            account_id=self.account_id,
            counterpart_id=self.counterpart_id,
            kind=self.kind,
            started_at=self.started_at,
            terms=self.terms,
            metadata=self.metadata,
            is_reported=self.is_reported,
        )


class LiveSession(msgspec.Struct, frozen=True):
    """A session that runs as far as the record knows."""

    tenant: str
    session_id: str
    is_reported: bool
    """Its client counts for itself."""


class InboxEntry(msgspec.Struct, frozen=True):
    """Money in that is in the ledger, and that Redis has not confirmed."""

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
    """A grant, and what became of it as far as Postgres knows."""

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
        """Neither used nor expired."""
        return self.amount_micros - self.used_micros - self.expired_micros


class WaitingEntry(msgspec.Struct, frozen=True):
    """Money in of one account that Redis has not confirmed."""

    entry_id: str
    amount_micros: int


class Allotments(msgspec.Struct, frozen=True):
    """What an account gets for each month, and has got."""

    timezone: str
    tier: str
    """The organisation's; ``free`` for a user who has none."""
    is_known: bool
    """Something was done with the account: it is not just a name that somebody asks for."""
    given: dict[str, int]
    """Micro-credits by month (``2026-11``)."""


class BeforeOperation(msgspec.Struct, frozen=True):
    """What is to be known before an operation is charged or held for."""

    timezone: str
    tier: str
    """The organisation's; ``free`` for a user who has none."""
    spent_micros: int | None
    """What was charged for it already, under the same id; None: it is new here."""
    spent_operation: str | None = None
    """The operation that was charged then; None: an amount, or it is new here."""


class HoldRow(msgspec.Struct, frozen=True):
    """Credits held for an operation, or what became of them."""

    tenant: str
    hold_id: str
    account_id: str
    state: HoldState
    amount_micros: int
    posted_micros: int
    """What was charged of it; 0 unless it is ``posted``."""
    operation: str | None
    user_id: str | None
    month: str
    """The first day of the month in which the operation counts."""
    created_at: int
    expires_at: int
    changed_at: int
    metadata: dict[str, Any] | None = None


class MissingMinute(msgspec.Struct, frozen=True):
    """A minute that a session has completed, and that is not written down."""

    tenant: str
    session_id: str
    minute: int


class RecentEntry(msgspec.Struct, frozen=True):
    """An entry of the ledger that Redis may lack after a loss."""

    tenant: str
    account_id: str
    entry_id: str
    amount_micros: int
    position: int


class OperationsDone(msgspec.Struct, frozen=True):
    """How often an operation was done in a month (its first day), or is held for now."""

    tenant: str
    account_id: str
    month: str
    operation: str
    times: int
    """How often it was done."""
    holds: tuple[str, ...]
    """The open holds for it, by their ids, each of which counts as once."""


class OperationsOfMonth(msgspec.Struct, frozen=True):
    """How often an account's operations were done in a month, and are held for now."""

    times: dict[str, int]
    """How often each was done."""
    holds: dict[str, str]
    """The operations of the open holds, by the holds' ids; each counts as once."""


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


class Finding(msgspec.Struct, frozen=True):
    """Something that an audit found not to add up."""

    rule: str
    """Which of the rules it breaks."""
    tenant: str
    subject: str
    """The account, session, hold or month."""
    detail: str


class AccountAudited(msgspec.Struct, frozen=True):
    """An account as the ledger has it, beside what waits for Postgres and for Redis."""

    balance_micros: int
    entry_ids: frozenset[str]
    """Those of the entries in the outbox that are in the balance already."""
    minutes: frozenset[str]
    """Those of its minutes: ``<session id>/<minute>``."""
    inbox: dict[str, int]
    """Money in that waits for Redis, by entry, in micro-credits."""


class LedgerEntry(msgspec.Struct, frozen=True):
    """One entry of an account's ledger; ``position`` is the cursor of a page."""

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


class AccountFigures(msgspec.Struct, frozen=True):
    """An account in a list, with the sums of its ledger.

    ``balance_micros`` is ``in_micros - burnt_micros - spent_micros``.
    """

    account_id: str
    balance_micros: int
    debt_allowed: bool
    entries: int
    in_micros: int
    """Granted, adjusted and expired."""
    burnt_micros: int
    """By the time of sessions."""
    spent_micros: int
    """By operations, and held for them."""


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


class Fresh(msgspec.Struct, frozen=True):
    """The key is the caller's: do the work, then finish or release it."""

    began_at: datetime
    """By which it is known whose the key is: whoever takes over begins anew."""


class UnderWay(msgspec.Struct, frozen=True):
    """Somebody else works under the key, or died at it less than a minute ago."""


class Mismatch(msgspec.Struct, frozen=True):
    """The key was used for another body."""


class Answer(msgspec.Struct, frozen=True):
    """The work was done; this is what was answered."""

    status: int
    body: bytes
