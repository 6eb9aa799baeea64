"""Bad guesses: counts wrong credentials by the network that sent them.

The budget refuses bad guesses only. Credentials are checked first, so a good token or key passes
from every address, whatever its neighbours send. A request without credentials is no guess. The
cost of checking is bounded: an API key and a shared secret take one hash each, and signatures of
public keys are checked at a fixed pace once an address has sent too many bad signatures. A token
that was good before does not wait. Nor does any token of an address whose bad guesses were of other
kinds, such as tokens with unknown keys, which cost almost nothing.
"""

import asyncio
import hashlib
from collections import Counter

from protocol.metering.terms import MINUTE_MS
from protocol.wire.errors import ErrorCode, PeerError, ServiceError
from server import limits as server_limits
from server.access.claims import ExpiredTokenError
from server.access.credentials import Authenticator
from server.access.principals import Principal
from server.runtime.clock import Clock
from server.transport.connection_limiter import network_of


class TooManyGuessesError(PeerError):
    """A bad guess from an address that has used up its budget."""


class SuspectChecks:
    """Paces signature checks for addresses that have sent too many bad ones.

    One check runs at a time. Addresses take turns, so one that floods does not delay the others.
    Within an address the newest request comes first, because its sender still waits.
    """

    def __init__(self, pace_s: float = server_limits.SUSPECT_CHECK_MS / 1000) -> None:
        self.pace_s = pace_s
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, network: str) -> None:
        """Waits for a turn; raises ``unavailable`` when too many newer requests came."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_later(self.pace_s, self._next)
            return
        waiting = self._waiting.setdefault(network, [])
        mine = loop.create_future()
        waiting.append(mine)
        if len(waiting) > server_limits.SUSPECT_CHECKS_WAITING_MAX:
            oldest = waiting.pop(0)
            if not oldest.done():
                oldest.set_exception(ServiceError("too many tokens from this address wait"))
        await mine

    def _next(self) -> None:
        self._timer = None
        while self._waiting:
            network = next(iter(self._waiting))
            waiting = self._waiting.pop(network)
            mine = waiting.pop()
            if waiting:
                self._waiting[network] = waiting  # behind the other addresses
            if not mine.done():
                mine.set_result(None)
                self._timer = asyncio.get_running_loop().call_later(self.pace_s, self._next)
                return


class BadGuesses:
    """Bad guesses of the current minute, by their network."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minute = 0
        self._counts: Counter[str] = Counter()
        self._signatures: Counter[str] = Counter()
        """Bad guesses for which a public key's signature was checked."""
        self._good: dict[bytes, None] = {}
        """Hashes of tokens with a good signature, the least recently used first."""
        self._checks = SuspectChecks()

    def wait_ms(self, address: str) -> int:
        """How long further bad guesses of an address are refused; 0: allowed."""
        now_ms = self._clock.now()
        crowded = len(self._counts) > server_limits.AUTH_FAILURE_ADDRESSES_MAX
        if now_ms // MINUTE_MS != self._minute or crowded:
            self._minute = now_ms // MINUTE_MS
            self._counts.clear()
            self._signatures.clear()
        if self._counts[network_of(address)] < server_limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE:
            return 0
        return MINUTE_MS - now_ms % MINUTE_MS

    def count(self, address: str) -> None:
        """Counts one more bad guess."""
        self._counts[network_of(address)] += 1

    async def counted(self, address: str, authenticator: Authenticator, bearer: str) -> Principal:
        """The principal of good credentials, from any address.

        Bad credentials are counted and raised: as ``unauthenticated``, and beyond the budget as
        :class:`TooManyGuessesError`. An expired token is no guess, because an office whose
        computers wake up together sends many.
        """
        network, is_checked = network_of(address), False

        async def before_signature() -> None:
            nonlocal is_checked
            await self._turn(address, bearer)
            is_checked = True

        try:
            principal = await authenticator.authenticate(bearer, before_signature, network)
            if is_checked:
                self._remember(bearer)
            return principal
        except ExpiredTokenError:
            raise
        except PeerError as error:
            if is_checked:
                self._signatures[network] += 1
            if self.wait_ms(address):
                raise TooManyGuessesError(
                    ErrorCode.RATE_LIMITED, "too many bad tokens or keys from this address"
                ) from error
            self.count(address)
            raise

    async def _turn(self, address: str, bearer: str) -> None:
        network = network_of(address)
        is_suspect = bool(self.wait_ms(address)) and (
            self._signatures[network] >= server_limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE
        )
        if is_suspect and _digest(bearer) not in self._good:
            await self._checks.turn(network)

    def _remember(self, bearer: str) -> None:
        """Remembers a token with a good signature.

        The next check of the token does not wait.
        """
        digest = _digest(bearer)
        self._good.pop(digest, None)
        self._good[digest] = None
        if len(self._good) > server_limits.GOOD_TOKENS_REMEMBERED_MAX:
            del self._good[next(iter(self._good))]


def _digest(bearer: str) -> bytes:
    return hashlib.sha256(bearer.encode()).digest()
