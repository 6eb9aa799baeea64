"""Wrong tries to log in, counted by name and network.

Ten wrong tries wait. They are counted for a name and the network that they came from, so a stranger
elsewhere does not delay the operator of that name. A try counts when it begins: many at once are
not cheaper than one after the other.
"""

from protocol.wire.errors import ErrorCode, PeerError
from server.access import limits as access_limits
from server.runtime.clock import Clock
from server.transport.connection_limiter import network_of


class LoginTries:
    """The wrong tries of this process. The longest untouched are forgotten first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tries: dict[tuple[str, str], tuple[int, int]] = {}
        """The number of tries, and when the first one began."""

    def begin(self, name: str, address: str) -> None:
        """Counts a try; raises ``rate_limited`` after ten wrong ones.

        After this call :meth:`succeeded` when the password was right.
        """
        key, now_ms = (name, network_of(address)), self._clock.now()
        count, since = self._tries.pop(key, (0, now_ms))
        if now_ms - since >= access_limits.LOGIN_WAIT_MS:
            count, since = 0, now_ms
        is_over = count >= access_limits.LOGIN_TRIES_MAX
        self._tries[key] = (count if is_over else count + 1, since)
        if len(self._tries) > access_limits.LOGIN_TRIES_KEPT_MAX:
            del self._tries[next(iter(self._tries))]
        if is_over:
            raise PeerError(
                ErrorCode.RATE_LIMITED,
                "too many wrong passwords for this name from this address",
                retry_after_ms=since + access_limits.LOGIN_WAIT_MS - now_ms,
            )

    def succeeded(self, name: str, address: str) -> None:
        """Forgets the tries of a name and network."""
        self._tries.pop((name, network_of(address)), None)
