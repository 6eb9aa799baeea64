"""What stands under an idempotency key."""

from datetime import datetime

import msgspec


class Fresh(msgspec.Struct, frozen=True):
    """The key is the caller's: do the work, then finish or release it."""

    began_at: datetime
    """Names the holder of the key: one that takes the key over has a new instant."""


class UnderWay(msgspec.Struct, frozen=True):
    """Somebody else works under the key, or died at it less than a minute ago."""


class Mismatch(msgspec.Struct, frozen=True):
    """The key was used for another body."""


class StoredAnswer(msgspec.Struct, frozen=True):
    """The work was done; this is what was answered."""

    status: int
    body: bytes
