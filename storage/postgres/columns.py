"""Converts records into arrays for ``unnest``, one for each column."""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from protocol.metering.records import (
    EntryPosted,
    HoldChanged,
    MinuteUsed,
    Record,
    SessionEnded,
)
from storage.rows.idempotency import KeyClaim
from storage.rows.months import AdjustmentRow
from storage.rows.sessions import SessionMinute, SessionPrepared

Value = TypeVar("Value")

# Attributes in the order of the parameters in write_started.sql and the others.
STARTED = (
    "tenant", "session_id", "user_id", "org_id", "account_id", "counterpart_id", "kind",
    "started_at", "terms", "metadata", "is_reported",
)  # fmt: skip
ENDED = (
    "tenant", "session_id", "user_id", "org_id", "account_id", "counterpart_id", "kind",
    "started_at", "ended_at", "reason", "limit", "elapsed_ms", "free_ms", "billed_ms",
    "minutes", "credits_micros", "uncovered_ms", "segments", "gaps", "terms", "metadata",
    "is_reported",
)  # fmt: skip
MINUTE = (
    "tenant", "session_id", "minute", "seconds", "user_id", "org_id", "account_id",
    "counterpart_id", "kind", "started_at", "month", "counts", "credits_micros", "free_ms",
)  # fmt: skip
HOLD = (
    "tenant", "hold_id", "account_id", "state", "amount_micros", "posted_micros", "operation",
    "user_id", "month", "created_at", "expires_at", "changed_at", "metadata",
)  # fmt: skip
# Numbers of parameters of write_entries.sql: first of entries, then of operations.
ENTRY_WIDTH = 11
OPERATION_WIDTH = 13
ENTRY_MICROS = 4
"""The place of the amount in such an entry."""
CORRECTED = "the session's end corrects this minute"
"""The reason of entries that follow a minute's own entry."""
LOST = "node_lost"
"""The reason of an end that consists of what Postgres had of a lost session."""
# Columns of type jsonb, whose values are passed as text.
_DOCUMENTS = frozenset({"terms", "metadata", "segments", "gaps"})


def unique(records: Sequence[Record], of_type: type[Value], *key: str) -> dict[Any, Value]:
    """Returns records of one type by natural key, without duplicates."""
    found: dict[Any, Value] = {}
    for record in records:
        if isinstance(record, of_type):
            found.setdefault(tuple(getattr(record, name) for name in key), record)
    return found


def counting_ends(records: Sequence[Record]) -> dict[tuple[str, str], SessionEnded]:
    """Returns the end of each session that counts, as ``write_ended.sql`` decides it."""

    def rank(end: SessionEnded) -> tuple[bool, int, int]:
        return end.reason != LOST, end.elapsed_ms, end.credits_micros

    found: dict[tuple[str, str], SessionEnded] = {}
    for record in records:
        if isinstance(record, SessionEnded):
            key = (record.tenant, record.session_id)
            if key not in found or rank(record) > rank(found[key]):
                found[key] = record
    return found


def arrays(records: Sequence[Record], names: Sequence[str]) -> list[list[Any]]:
    """Returns the records as an array for each column, for ``unnest``."""
    return [
        [
            json_value(getattr(record, name)) if name in _DOCUMENTS else getattr(record, name)
            for record in records
        ]
        for name in names
    ]


def turned(rows: Sequence[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    """Returns rows as ``width`` arrays, even without rows."""
    return list(zip(*rows, strict=True)) or [()] * width


def has_moved(entry: EntryPosted) -> bool:
    """Whether the ledger has the entry: free operations are not there."""
    return entry.amount_micros != 0 or entry.entry_kind not in {"spend", "post"}


def entry_row(entry: EntryPosted) -> tuple[Any, ...]:
    """Returns an entry that Redis decided, as a row for ``write_entries.sql``."""
    return (
        entry.tenant, entry.account_id, entry.entry_id, entry.entry_kind, entry.amount_micros,
        entry.at, text_value(entry.reason), text_value(entry.operation), None, None,
        json_value(entry.metadata),
    )  # fmt: skip


def operation_rows(entry: EntryPosted) -> list[tuple[Any, ...]]:
    """Returns an operation as a row for ``write_entries.sql``; empty for other entries.

    Values in the metadata of an unexpected form stay in the metadata only.
    """
    if entry.operation is None or entry.month is None:
        return []
    said = entry.metadata or {}
    service = said.get("service")
    return [
        (
            entry.tenant, entry.account_id, entry.entry_id, text_value(entry.operation),
            entry.user_id, entry.month, -entry.amount_micros, entry.at,
            said.get("success") is not False,
            text_value(service) if isinstance(service, str) else None,
            _count(said.get("tokens_used")), _count(said.get("response_time_ms")),
            json_value(entry.metadata),
        )
    ]  # fmt: skip


def _count(value: Any) -> int | None:
    """Returns a whole number that fits a bigint; None for anything else."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and 0 <= value < 2**63 else None


def furthest_holds(changes: Iterable[HoldChanged]) -> list[HoldChanged]:
    """Returns each hold's furthest change: statements change a row once."""
    found: dict[tuple[str, str], HoldChanged] = {}
    for change in changes:
        key = (change.tenant, change.hold_id)
        if key not in found or found[key].state == "open":
            found[key] = change
    return list(found.values())


def adjustment_row(adjustment: AdjustmentRow, claim: KeyClaim | None) -> tuple[Any, ...]:
    """Returns a row for ``adjust_minutes.sql``."""
    return (
        adjustment.tenant, adjustment.user_id, adjustment.entry_id,
        date.fromisoformat(adjustment.month), adjustment.minutes,
        text_value(adjustment.reason), adjustment.created_at, *_claimed(claim),
    )  # fmt: skip


def burn_id(session_id: str, minute: int) -> str:
    """Returns the name of the ledger entry of a minute's cost."""
    return f"burn:{session_id}:{minute}"


def burn_row(minute: MinuteUsed, *, again: bool = False) -> tuple[Any, ...]:
    """Returns a minute's cost as a row for ``write_entries.sql``.

    ``again``: the ledger has given back an earlier entry of the minute.
    """
    entry_id = burn_id(minute.session_id, minute.minute)
    return (
        minute.tenant, minute.account_id, f"{entry_id}:again" if again else entry_id, "burn",
        -minute.credits_micros, minute.started_at, CORRECTED if again else None, None,
        minute.session_id, minute.minute, None,
    )  # fmt: skip


def correction_row(
    ended: SessionEnded, minute: SessionMinute, after_micros: int
) -> tuple[Any, ...]:
    """Returns a corrected cost as a row for ``write_entries.sql``.

    The entry is named after the minute and the figures of the end that it follows.
    """
    name = f"{ended.elapsed_ms}:{ended.credits_micros}"
    return (
        ended.tenant, ended.account_id, f"{burn_id(ended.session_id, minute.minute)}:{name}",
        "burn", minute.charged_micros - after_micros, minute.started_at, CORRECTED, None,
        ended.session_id, minute.minute, None,
    )  # fmt: skip


def money_in_row(
    entry: EntryPosted, priority: int, expires_at: int | None, claim: KeyClaim | None
) -> tuple[Any, ...]:
    """Returns a row for ``post_entry.sql``."""
    return (
        entry.tenant, entry.account_id, entry.entry_id, entry.entry_kind, entry.amount_micros,
        entry.at, text_value(entry.reason), text_value(entry.operation),
        json_value(entry.metadata), priority, expires_at,
        *_claimed(claim),
    )  # fmt: skip


def _claimed(claim: KeyClaim | None) -> tuple[Any, ...]:
    return (None, None, None) if claim is None else (claim.scope, claim.key, claim.began_at)


def prepared_row(session: SessionPrepared) -> tuple[Any, ...]:
    """Returns a row for ``prepare_session.sql``."""
    return (
        session.tenant, session.session_id, session.kind, session.user_id, session.org_id,
        session.account_id, session.counterpart_id, json_value(session.terms),
        json_value(session.metadata), session.expires_at,
    )  # fmt: skip


def given(value: Any) -> tuple[bool, Any]:
    """Returns an optional value as two parameters: given or not, and value."""
    return (False, None) if value is UNSET else (True, value)


def number(value: float | UnsetType | None) -> str | UnsetType | None:
    """Returns a number as text: numeric columns and limits have decimals."""
    return str(value) if isinstance(value, int | float) else value


def text_value(value: str | None) -> str | None:
    """Returns free text without NUL, the one character that Postgres cannot keep."""
    return None if value is None else value.replace("\0", "\ufffd")


def json_value(value: Any) -> str | None:
    """Returns a JSON document as text, without NUL; None for None.

    A client's metadata must not make a bill unwritable.
    """
    if value is None:
        return None
    text = msgspec.json.encode(value).decode()
    return msgspec.json.encode(_without_nul(value)).decode() if "\\u0000" in text else text


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return text_value(value)
    if isinstance(value, dict):
        return {text_value(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    return value
