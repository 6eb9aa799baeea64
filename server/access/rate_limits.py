"""Rate limits of sockets and of users, each by a token bucket.

A user has budgets at each process: for requests over HTTP, for messages over all of the user's
sockets, and for new sessions of every origin.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from protocol.wire.errors import ErrorCode, PeerError
from server import limits as server_limits
from server.access.principals import Principal
from server.runtime.clock import Clock


class Rate(NamedTuple):
    """A rate: ``burst`` at once, then ``per_second``."""

    burst: int
    per_second: float


def _requests() -> Rate:
    return Rate(server_limits.REQUESTS_BURST, server_limits.REQUESTS_PER_SECOND)


class TokenBucket:
    """Allows requests up to a rate.

    ``refused`` counts refusals until the peer has been quiet for as long as the bucket takes to
    fill.
    """

    __slots__ = ("_at", "_rate", "_tokens", "refused")

    def __init__(self, now_ms: int, rate: Callable[[], Rate] = _requests) -> None:
        self._rate = rate
        self._tokens = float(rate().burst)
        self._at = now_ms
        self.refused = 0

    def has(self, now_ms: int) -> bool:
        """Whether one more request is allowed."""
        burst, per_second = self._rate()
        earned = (now_ms - self._at) * per_second / 1000
        self._tokens = min(burst, self._tokens + earned)
        self._at = now_ms
        if self._tokens >= burst:
            self.refused = 0
        return self._tokens >= 1

    def take(self, now_ms: int) -> bool:
        """Whether one more request is allowed; takes its token if so."""
        if not self.has(now_ms):
            self.refused += 1
            return False
        self._tokens -= 1
        return True

    @property
    def wait_ms(self) -> int:
        """Milliseconds from the last ``take`` until the next is allowed.

        At most an hour.
        """
        missing = max(0.0, 1 - self._tokens)
        return round(missing * 1000 / max(self._rate().per_second, 1 / 3600))


class UserBudget:
    """A bucket for each user.

    Backends and operators are trusted and have no bucket, because they ask for many users.
    """

    what: ClassVar = "requests"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str | None, str | None], TokenBucket] = {}

    @staticmethod
    def rate() -> Rate:
        """The rate of one user."""
        return _requests()

    def check(self, principal: Principal) -> None:
        """Raises ``rate_limited`` for a user over the rate.

        The error has the time to wait.
        """
        if not (principal.is_key or principal.is_operator):
            self.take(principal.tenant, principal.user_id)

    def take(self, tenant: str | None, user_id: str | None) -> None:
        """The same, for a sender that is known to be a user."""
        key = (tenant, user_id)
        now_ms = self._clock.now()
        # The longest silent user comes first, and is forgotten first: that bucket is full.
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
    """The budget of requests over HTTP."""


class UserMessages(UserBudget):
    """The budget of messages over all sockets of a user."""

    @staticmethod
    def rate() -> Rate:
        """The rate of one user."""
        return Rate(server_limits.USER_REQUESTS_BURST, server_limits.USER_REQUESTS_PER_SECOND)


class UserPosts(UserMessages):
    """The budget of requests to event streams, which carry messages and pongs."""

    what: ClassVar = "requests to streams"


class UserStarts(UserBudget):
    """The budget of new sessions: over sockets, heartbeats and reported minutes."""

    what: ClassVar = "new sessions"

    @staticmethod
    def rate() -> Rate:
        """The rate of one user."""
        return Rate(server_limits.STARTS_BURST, server_limits.STARTS_PER_MINUTE / 60)
