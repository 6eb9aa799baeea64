"""What an audit reads of an account, and its findings."""

import msgspec


class AuditFinding(msgspec.Struct, frozen=True):
    """An error that an audit found."""

    rule: str
    """The rule that is broken."""
    tenant: str
    subject: str
    """The account, session, hold or month."""
    detail: str


class AccountAudited(msgspec.Struct, frozen=True):
    """An account in the ledger, with what awaits Postgres and Redis."""

    balance_micros: int
    entry_ids: frozenset[str]
    """The entries in the outbox that the balance includes already."""
    minutes: frozenset[str]
    """The minutes in the outbox that the balance includes: ``<session id>/<minute>``."""
    inbox: dict[str, int]
    """Money in that waits for Redis, by entry, in micro-credits."""
