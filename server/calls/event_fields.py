"""Reads fields of providers' events and answers, strictly and within bounds."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec

from server.calls import limits as call_limits
from server.calls.facts import EventRefusal, RefusedEventError

Read = TypeVar("Read")

Instant = int | float | str | None
"""An instant as a provider writes it: integer nanoseconds, or RFC 3339."""

RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,18}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LAST_NS: Final = 253_402_300_799_999_999_999
"""The end of the year 9999."""


def malformed(message: str) -> RefusedEventError:
    """The refusal of an event that its provider does not document."""
    return RefusedEventError(EventRefusal.MALFORMED, message)


def forged(message: str) -> RefusedEventError:
    """The refusal of an event that the provider did not sign."""
    return RefusedEventError(EventRefusal.FORGED, message)


def read_event(body: bytes, event_type: type[Read]) -> Read:
    """An event's JSON as ``event_type``; other fields are skipped."""
    try:
        return msgspec.json.decode(body, type=event_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(f"the body is not such an event: {error}") from None


def instant_ns(value: Instant) -> int | None:
    """An instant in epoch nanoseconds; None for none.

    Go's zero time (the year 1) is none. Raises :class:`RefusedEventError` for anything else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        found = int(value) if re.fullmatch(r"[0-9]{1,20}", value) else _of_text(value)
    else:
        found = int(value)
    if found > LAST_NS:
        raise malformed("an instant is beyond the year 9999")
    return found if found > 0 else None


def instant_ms(value: Instant) -> int | None:
    """:func:`instant_ns` in milliseconds, rounded down."""
    found = instant_ns(value)
    return None if found is None else found // 1_000_000


def seconds_ms(seconds: object) -> int | None:
    """Epoch seconds in milliseconds; None for none.

    Raises :class:`RefusedEventError` for anything else.
    """
    if seconds is None:
        return None
    if not isinstance(seconds, int | float) or not 0 < seconds <= LAST_NS // 1_000_000_000:
        raise malformed("an instant is not in seconds")
    return int(seconds * 1000)


def required_ms(seconds: object, name: str) -> int:
    """:func:`seconds_ms` of a field that an event must have."""
    found = seconds_ms(seconds)
    if found is None:
        raise malformed(f"{name} is missing")
    return found


def duration_ms(seconds: object) -> int | None:
    """A provider's figure in milliseconds; None for an absurd one."""
    if not isinstance(seconds, int | float) or not 0 <= seconds <= call_limits.CALL_SECONDS_MAX:
        return None
    return round(seconds * 1000)


def _of_text(text: str) -> int:
    parts = RFC3339.fullmatch(text)
    if parts is None:
        raise malformed("an instant is neither RFC 3339 nor nanoseconds")
    day, time, fraction, zone = parts.groups()
    try:
        seconds = (datetime.fromisoformat(f"{day}T{time}{zone.upper()}") - EPOCH) // timedelta(
            seconds=1
        )
    except (ValueError, OverflowError):
        raise malformed("an instant names no such time") from None
    return seconds * 1_000_000_000 + int(f"{fraction or '':0<9}"[:9])


def check_age(at_ms: int, now_ms: int) -> None:
    """Refuses an event that is too old, or ahead of our clock.

    The inbox forgets: of a very old event it cannot say that it is new.
    """
    if at_ms < now_ms - call_limits.CALL_EVENT_AGE_MS_MAX:
        raise RefusedEventError(EventRefusal.ANCIENT, "the event is too old")
    if at_ms > now_ms + call_limits.CALL_EVENT_AHEAD_MS_MAX:
        raise RefusedEventError(EventRefusal.AHEAD, "the event is ahead of this server's clock")


def checked_id(value: object, name: str) -> str:
    """An id of the provider.

    Refuses a missing or long one, and one that Postgres cannot keep.
    """
    if not isinstance(value, str) or not value:
        raise malformed(f"{name} is missing")
    if len(value) > call_limits.CALL_ID_CHARACTERS_MAX:
        raise malformed(f"{name} has over {call_limits.CALL_ID_CHARACTERS_MAX} characters")
    if not value.isprintable():
        raise malformed(f"{name} has characters that cannot be shown")
    return value


def custom_texts(custom: Mapping[str, Any] | None) -> dict[str, str]:
    """A call's custom data as short texts, without other fields."""
    found: dict[str, str] = {}
    for name, value in (custom or {}).items():
        text = value if isinstance(value, str) else None
        if isinstance(value, int) and not isinstance(value, bool):
            text = str(value) if abs(value) < 1 << 63 else None
        if (
            text is not None
            and len(found) < call_limits.CALL_CUSTOM_FIELDS_MAX
            and max(len(name), len(text)) <= call_limits.CALL_CUSTOM_CHARACTERS_MAX
            and (name + text).isprintable()
        ):
            found[name] = text
    return found


def event_digest(*parts: object) -> str:
    """A key of an event: 64 characters, from all parts."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


def body_digest(body: bytes) -> str:
    """The key of an event without an identity: its whole body."""
    return hashlib.sha256(body).hexdigest()


def is_signature(expected: str, given: str | None) -> bool:
    """Whether a header has the expected signature, in constant time."""
    return hmac.compare_digest(expected.encode(), (given or "").encode("utf-8", "replace"))
