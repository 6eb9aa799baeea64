"""What an audit reads of an account, and what it finds."""

import msgspec


class AuditFinding(msgspec.Struct, frozen=True):
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
