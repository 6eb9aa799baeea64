"""Addresses that keep asking without a good token, over HTTP or in sockets."""

from collections import Counter

from protocol import limits
from protocol.errors import PeerError
from protocol.terms import MINUTE_MS
from server.auth import Authenticator, ExpiredTokenError, Principal
from server.clock import Clock
from server.door import network_of


class Failures:
    """Requests without a good token, by the address that they came from.

    So many in one minute, and the address is not listened to for the rest of it: neither
    is guessing worth while, nor does a flood cost us signatures to check.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minute = 0
        self._counts: Counter[str] = Counter()

    def wait_ms(self, address: str) -> int:
        """How long an address that has had its minute's share must wait; 0: not at all."""
        now_ms = self._clock.now()
        crowded = len(self._counts) > limits.AUTH_FAILURE_ADDRESSES_MAX
        if now_ms // MINUTE_MS != self._minute or crowded:
            self._minute = now_ms // MINUTE_MS
            self._counts.clear()
        if self._counts[network_of(address)] < limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE:
            return 0
        return MINUTE_MS - now_ms % MINUTE_MS

    def count(self, address: str) -> None:
        """One more request without a good token."""
        self._counts[network_of(address)] += 1

    async def counted(self, address: str, authenticator: Authenticator, bearer: str) -> Principal:
        """The principal of a token; one that is not good is counted, and raised.

        A token that has merely run out is nobody's guess: an office whose computers wake up
        together sends many.
        """
        try:
            return await authenticator.authenticate(bearer)
        except ExpiredTokenError:
            raise
        except PeerError:
            self.count(address)
            raise
