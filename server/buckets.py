"""How much one peer may ask: of a socket, and of a user over HTTP, by the same measure."""

from protocol import limits
from protocol.errors import ErrorCode, PeerError
from server.auth import Principal
from server.clock import Clock


class TokenBucket:
    """So many requests at once, and so many a second after that.

    Refusals are counted until the peer has been quiet for as long as the bucket takes to fill.
    """

    __slots__ = ("_at", "_tokens", "refused")

    def __init__(self, now_ms: int) -> None:
        self._tokens = float(limits.REQUESTS_BURST)
        self._at = now_ms
        self.refused = 0

    def take(self, now_ms: int) -> bool:
        """Whether one more request is let through."""
        earned = (now_ms - self._at) * limits.REQUESTS_PER_SECOND / 1000
        self._tokens = min(limits.REQUESTS_BURST, self._tokens + earned)
        self._at = now_ms
        if self._tokens >= limits.REQUESTS_BURST:
            self.refused = 0
        if self._tokens < 1:
            self.refused += 1
            return False
        self._tokens -= 1
        return True


class UserRequests:
    """The requests of users over HTTP, each user's for themselves. Backends and operators are
    trusted, and ask for many."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str | None, str | None], TokenBucket] = {}

    def check(self, principal: Principal) -> None:
        """Raises ``rate_limited`` for a user who asks too much."""
        if principal.kind != "user" or principal.is_operator:
            return
        key = (principal.tenant, principal.user_id)
        now_ms = self._clock.now()
        # The longest silent one comes first, and is forgotten first: its bucket is full.
        bucket = self._buckets.pop(key, None) or TokenBucket(now_ms)
        self._buckets[key] = bucket
        if len(self._buckets) > limits.REQUEST_USERS_MAX:
            del self._buckets[next(iter(self._buckets))]
        if not bucket.take(now_ms):
            raise PeerError(ErrorCode.RATE_LIMITED, "too many requests of this user")
