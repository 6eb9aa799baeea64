"""The states of an idempotency key."""

from datetime import datetime

import msgspec


class Fresh(msgspec.Struct, frozen=True):
    """The caller has the key: do the work, then finish or release."""

    began_at: datetime
    """Identifies the holder of the key: a takeover sets a new instant."""


class KeyClaim(msgspec.Struct, frozen=True):
    """The right to do the work of an idempotency key."""

    scope: str
    key: str
    began_at: datetime


class UnderWay(msgspec.Struct, frozen=True):
    """Another request has the key, or died less than a minute ago."""


class Mismatch(msgspec.Struct, frozen=True):
    """The key was used for another body."""


class StoredAnswer(msgspec.Struct, frozen=True):
    """The work was done; this is the answer."""

    status: int
    body: bytes
