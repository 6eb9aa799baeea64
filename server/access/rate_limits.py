"""How much one peer may ask: of a socket, and of a user, each by a bucket of tokens.

A user has budgets at each process: for requests over HTTP, for messages over all of the
user's sockets, and for new sessions, however they are started.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from protocol.wire.errors import ErrorCode, PeerError
from server import limits as server_limits
from server.access.principals import Principal
from server.runtime.clock import Clock


class Rate(NamedTuple):
    """So many at once, and so many a second after that."""

    burst: int
    per_second: float


def _requests() -> Rate:
    return Rate(server_limits.REQUESTS_BURST, server_limits.REQUESTS_PER_SECOND)


class TokenBucket:
    """Lets through what a rate allows.

    Refusals are counted until the peer has been quiet for as long as the bucket takes to fill.
    """

    __slots__ = ("_at", "_rate", "_tokens", "refused")

    def __init__(self, now_ms: int, rate: Callable[[], Rate] = _requests) -> None:
        self._rate = rate
        self._tokens = float(rate().burst)
        self._at = now_ms
        self.refused = 0

    def take(self, now_ms: int) -> bool:
        """Whether one more is let through."""
        burst, per_second = self._rate()
        earned = (now_ms - self._at) * per_second / 1000
        self._tokens = min(burst, self._tokens + earned)
        self._at = now_ms
        if self._tokens >= burst:
            self.refused = 0
        if self._tokens < 1:
            self.refused += 1
            return False
        self._tokens -= 1
        return True

    @property
    def wait_ms(self) -> int:
        """How long after the last look one more is let through; an hour at most."""
        missing = max(0.0, 1 - self._tokens)
        return round(missing * 1000 / max(self._rate().per_second, 1 / 3600))


class UserBudget:
    """A bucket for each user. Backends and operators are trusted, and ask for many."""

    what: ClassVar = "requests"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str | None, str | None], TokenBucket] = {}

    @staticmethod
    def rate() -> Rate:
        """What a user may have."""
        return _requests()

    def check(self, principal: Principal) -> None:
        """Raises ``rate_limited``, with the time to wait, for a user who asks too much."""
        if principal.kind == "user" and not principal.is_operator:
            self.take(principal.tenant, principal.user_id)

    def take(self, tenant: str | None, user_id: str | None) -> None:
        """The same for a user who was looked at already."""
        key = (tenant, user_id)
        now_ms = self._clock.now()
        # The longest silent one comes first, and is forgotten first: its bucket is full.
        bucket = self._buckets.pop(key, None) or TokenBucket(now_ms, self.rate)
        self._buckets[key] = bucket
        if len(self._buckets) > server_limits.REQUEST_USERS_MAX:
            del self._buckets[next(iter(self._buckets))]
        if not bucket.take(now_ms):
            raise PeerError(
                ErrorCode.RATE_LIMITED,
                f"too many {self.what} of this user",
                retry_after_ms=bucket.wait_ms,
            )


class UserRequests(UserBudget):
    """Requests over HTTP."""


class UserMessages(UserBudget):
    """Messages over all sockets of a user."""

    @staticmethod
    def rate() -> Rate:
        """What a user may have."""
        return Rate(server_limits.USER_REQUESTS_BURST, server_limits.USER_REQUESTS_PER_SECOND)


class UserStarts(UserBudget):
    """New sessions, over a socket, by a heartbeat, or by a minute that a client reports."""

    what: ClassVar = "new sessions"

    @staticmethod
    def rate() -> Rate:
        """What a user may have."""
        return Rate(server_limits.STARTS_BURST, server_limits.STARTS_PER_MINUTE / 60)
