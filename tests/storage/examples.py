"""Complete example records of sessions, with changes for each test."""

from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from protocol.metering.records import (
    EntryPosted,
    MinuteUsed,
    Record,
    SessionEnded,
    SessionStarted,
)
from protocol.metering.terms import MINUTE_MS, Terms

START = int(datetime(2026, 11, 10, 12, 0, tzinfo=UTC).timestamp() * 1000)
TENANT = "org:acme"

TERMS = Terms(
    kind="recording",
    price_micros=1_000_000,
    free_ms=60_000,
    free_scope="session",
    first_increment_ms=1_000,
    next_increment_ms=1_000,
    counts_minutes=True,
    warn_at_ms=(600_000, 60_000),
    stop_grace_ms=15_000,
    reconnect_grace_ms=30_000,
    gap="skip",
    session_cap_ms=0,
    tick_ms=1_000,
)


def at(zone: str, year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    """An instant in a time zone, in epoch milliseconds.

    Example: ``at("UTC", 2026, 11, 30, 23)``.
    """
    moment = datetime(year, month, day, hour, minute, tzinfo=ZoneInfo(zone))
    return int(moment.timestamp() * 1000)


def month_of(instant_at: int, zone: str = "UTC") -> str:
    """The first day of an instant's month in a time zone."""
    return str(datetime.fromtimestamp(instant_at / 1000, ZoneInfo(zone)).date().replace(day=1))


def month(year: int, number: int) -> date:
    """The first day of a month."""
    return date(year, number, 1)


def names(tenant: str, user_id: str) -> dict[str, Any]:
    """The names of a record's owner."""
    scope, _, owner = tenant.partition(":")
    return {
        "tenant": tenant,
        "user_id": user_id,
        "org_id": owner if scope == "org" else None,
        "account_id": user_id,
        "counterpart_id": "advisor",
        "kind": "recording",
    }


def minute(
    number: int = 0,
    *,
    session_id: str = "s1",
    tenant: str = TENANT,
    user_id: str = "ann",
    zone: str = "UTC",
    started_at: int | None = None,
    **changes: Any,
) -> MinuteUsed:
    """One minute of a session that began at ``START``.

    ``started_at`` gives the minute a beginning of its own.
    """
    begun_at = START + number * MINUTE_MS if started_at is None else started_at
    fields = {
        **names(tenant, user_id),
        "session_id": session_id,
        "minute": number,
        "seconds": 60,
        "started_at": begun_at,
        "month": month_of(begun_at, zone),
        "counts": True,
        "credits_micros": 1_000_000,
        "free_ms": 0,
    }
    return MinuteUsed(**{**fields, **changes})


def started(
    *, session_id: str = "s1", tenant: str = TENANT, user_id: str = "ann", **changes: Any
) -> SessionStarted:
    """A session that began at ``START``."""
    fields = {
        **names(tenant, user_id),
        "session_id": session_id,
        "started_at": START,
        "terms": TERMS,
    }
    return SessionStarted(**{**fields, **changes})


def ended(
    *, session_id: str = "s1", tenant: str = TENANT, user_id: str = "ann", **changes: Any
) -> SessionEnded:
    """The same session, two minutes long, at its end."""
    fields = {
        **names(tenant, user_id),
        "session_id": session_id,
        "started_at": START,
        "ended_at": START + 130_000,
        "reason": "client",
        "limit": None,
        "elapsed_ms": 120_000,
        "free_ms": 60_000,
        "billed_ms": 60_000,
        "minutes": 2,
        "credits_micros": 1_000_000,
        "uncovered_ms": 0,
        "segments": [(START, START + 60_000), (START + 70_000, START + 130_000)],
        "gaps": [(START + 60_000, START + 70_000, False)],
        "terms": TERMS,
    }
    return SessionEnded(**{**fields, **changes})


def entry(
    entry_id: str = "g1",
    amount_micros: int = 10_000_000,
    *,
    entry_kind: str = "grant",
    tenant: str = TENANT,
    account_id: str = "ann",
    at_ms: int = START,
    **changes: Any,
) -> EntryPosted:
    """An entry of an account's ledger."""
    return EntryPosted(
        tenant=tenant,
        account_id=account_id,
        entry_id=entry_id,
        entry_kind=entry_kind,
        amount_micros=amount_micros,
        at=at_ms,
        **changes,
    )


def batch_of(tenant: str) -> list[Record]:
    """One batch of all kinds of entries.

    It has two members, two sessions, a month's end, and debt for a while.
    """
    december = START + 25 * 86_400_000
    return [
        started(tenant=tenant, metadata={"page": "a"}),
        minute(0, tenant=tenant, credits_micros=0, free_ms=60_000),
        minute(1, tenant=tenant),
        ended(tenant=tenant, metadata={"page": "b"}),
        started(tenant=tenant, session_id="s2", user_id="ben"),
        minute(0, tenant=tenant, session_id="s2", user_id="ben"),
        minute(1, tenant=tenant, session_id="s2", user_id="ben", started_at=december, seconds=7),
        entry("hold", -3_000_000, entry_kind="hold", tenant=tenant, operation="voice_creation"),
        entry("post", 1_000_000, entry_kind="post", tenant=tenant, operation="voice_creation"),
        entry("spend", -2_000_000, entry_kind="spend", tenant=tenant, metadata={"n": [1, None]}),
        entry("grant", 20_000_000, tenant=tenant, reason="bought"),
    ]
