"""Bad guesses: credentials that are not good, counted by the address that sent them.

The budget refuses bad guesses only. Credentials are checked first, so a good token or key
passes from every address, whatever its neighbours send. A request without credentials is no
guess. What checking costs stays bounded: an API key and a shared secret take a hash each, and
signatures of public keys are checked at a pace once an address has sent too many bad ones. A
token that was good before waits for no turn, nor does any where an address has sent other bad
guesses only, such as tokens with unknown keys: these cost next to nothing.
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
    """One more bad guess from an address that has used up its budget."""


class SuspectChecks:
    """Signature checks for addresses that have sent too many bad ones: one at a time, at a pace.

    The newest request of an address has the next turn, for its sender still waits. Addresses
    take turns, so one that floods delays nobody else.
    """

    def __init__(self, pace_s: float = server_limits.SUSPECT_CHECK_MS / 1000) -> None:
        self.pace_s = pace_s
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, network: str) -> None:
        """Waits for a turn; raises ``unavailable`` when newer requests have taken them all."""
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
                self._waiting[network] = waiting  # behind the others
            if not mine.done():
                mine.set_result(None)
                self._timer = asyncio.get_running_loop().call_later(self.pace_s, self._next)
                return


class BadGuesses:
    """Bad guesses of the current minute, by the network that they came from."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minute = 0
        self._counts: Counter[str] = Counter()
        self._signatures: Counter[str] = Counter()
        """Those of them that a public key's signature was checked for."""
        self._good: dict[bytes, None] = {}
        """Hashes of tokens with a good signature, the longest unused first."""
        self._checks = SuspectChecks()

    def wait_ms(self, address: str) -> int:
        """How long further bad guesses of an address are refused as too many; 0: they are not."""
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
        """One more bad guess."""
        self._counts[network_of(address)] += 1

    async def counted(self, address: str, authenticator: Authenticator, bearer: str) -> Principal:
        """The principal of good credentials, from any address.

        Bad credentials are counted and raised: as ``unauthenticated``, and beyond the budget
        as :class:`TooManyGuessesError`. A token that has merely run out is no guess, because
        an office whose computers wake up together sends many.
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
        """Has a token with a good signature checked at once when it comes again."""
        digest = _digest(bearer)
        self._good.pop(digest, None)
        self._good[digest] = None
        if len(self._good) > server_limits.GOOD_TOKENS_REMEMBERED_MAX:
            del self._good[next(iter(self._good))]


def _digest(bearer: str) -> bytes:
    return hashlib.sha256(bearer.encode()).digest()
