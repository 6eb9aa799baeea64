"""What Postgres certainly refuses, by the record itself.

When Postgres refuses a batch, it does not name the record. To find one such record by halves takes
a dozen transactions; to find a thousand of them takes two thousand. So the records that show it
themselves are removed first.
"""

import msgspec

from protocol.metering.records import EntryPosted, HoldChanged, MinuteUsed, Record, SessionEnded
from protocol.metering.terms import MINUTE_MS

_INTEGER_BITS = 63
_SECONDS = MINUTE_MS // 1000
_CLEANED = frozenset({"reason", "operation"})
"""Text fields that ``columns`` writes without NUL characters, in most cases."""


def refusal_of(record: Record) -> str:
    """Returns why no table takes the record; empty if nothing shows that.

    The result contains only what Postgres certainly refuses: a record with a result is not written.
    """
    fields = msgspec.structs.asdict(record)
    for name, value in fields.items():
        if isinstance(value, int) and value.bit_length() > _INTEGER_BITS:
            return f"{name}: {value} is out of range"
        if isinstance(value, str) and "\0" in value and name not in _CLEANED:
            return f"{name}: text has a NUL character"
    for name in _least(record):
        if fields[name] < 0:
            return f"{name}: {fields[name]} is below 0"
    if isinstance(record, MinuteUsed) and not 1 <= record.seconds <= _SECONDS:
        return f"seconds: {record.seconds} is not within 1 to {_SECONDS}"
    if isinstance(record, EntryPosted) and not _has_sign(record):
        return f"amount_micros: {record.amount_micros} is no {record.entry_kind}"
    return ""


def _least(record: Record) -> tuple[str, ...]:
    """Returns the fields that must be at least 0."""
    match record:
        case MinuteUsed():
            return ("minute", "credits_micros", "free_ms")
        case SessionEnded():
            return (
                "elapsed_ms", "free_ms", "billed_ms", "minutes", "credits_micros", "uncovered_ms",
            )  # fmt: skip
        case HoldChanged():
            return ("amount_micros", "posted_micros")
    return ()


def _has_sign(entry: EntryPosted) -> bool:
    if entry.entry_kind == "grant":
        return entry.amount_micros >= 0
    return entry.amount_micros <= 0 or entry.entry_kind not in ("burn", "spend", "expire")
