"""The public keys of a token's issuer, kept fresh from ``TAXIMETER_JWKS_URL``.

The fetch blocks, so it runs in a thread; everything else here runs on the event loop. Tokens with
unknown keys make the server ask the issuer a bounded number of times. When the issuer is away, its
last keys stay valid for a day. A token is refused for an unknown key only after a fetch that began
after the token arrived: before that, its key may merely be new.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import jwt
import structlog

from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.access.key_set import KeySetError, fetch_with
from server.access.rate_limits import Rate, TokenBucket

SIGNATURE_ALGORITHMS = frozenset({"RS256", "ES256", "EdDSA"})

log = structlog.get_logger("taximeter.auth")


def _all_misses() -> Rate:
    """The rate of fetches that tokens with unknown keys may cause."""
    return Rate(server_limits.JWKS_MISSES_MAX, 1000 / server_limits.JWKS_MISS_MS)


def _misses_of_network() -> Rate:
    """The same, for the tokens of one network."""
    return Rate(server_limits.JWKS_MISSES_PER_ADDRESS_MAX, 1000 / server_limits.JWKS_MISS_MS)


class IssuerKeys:
    """The issuer's keys: call :meth:`refresh` once, then keep :meth:`run` running.

    ``fetch`` gives the key set, and may block and raise; ``now_ms`` is monotonic milliseconds.
    """

    def __init__(
        self,
        url: str,
        *,
        fetch: Callable[[], list[jwt.PyJWK]] | None = None,
        now_ms: Callable[[], int] | None = None,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = url
        self._fetch = fetch or fetch_with(url)
        self._now_ms = now_ms or (lambda: time.monotonic_ns() // 1_000_000)
        self._wait = wait
        self._keys: list[jwt.PyJWK] = []
        self._fetched_at: int | None = None  # time of the last success
        self._misses = TokenBucket(self._now_ms(), _all_misses)
        self._misses_of: dict[str, TokenBucket] = {}
        """A budget for each network that tokens come from, the longest silent network first."""
        self._fetching: asyncio.Task[bool] | None = None

    async def find(self, algorithm: str, key_id: str | None, network: str = "") -> list[jwt.PyJWK]:
        """The keys that a token's header names.

        There are several where the issuer repeats an id. Empty when the issuer has no such key. A
        token without ``kid`` is checked by the only key of its algorithm, where there is exactly
        one. A known key causes no wait. ``network`` is where the token came from: tokens with
        unknown keys use up only their own network's share of the fetches. Raises
        :class:`ServiceError` when the keys are not known well enough to refuse the token.
        """
        self._forget_stale()
        keys = self._match(algorithm, key_id)
        if not keys and self._fetching is not None:
            await self._fetched()
            keys = self._match(algorithm, key_id)
        if keys or self._is_wrong(algorithm, key_id):
            return keys
        # A fetch that is now in progress began after the token arrived.
        if self._fetching is None and not self._may_ask(network):
            raise ServiceError("the token's key is not known yet")
        if not await self._fetched():
            raise ServiceError("the keys of the token's issuer could not be fetched")
        return self._match(algorithm, key_id)

    async def refresh(self) -> bool:
        """Fetches the keys now; returns whether that succeeded.

        A failure keeps the old keys.
        """
        return await self._fetched()

    async def run(self) -> None:
        """Keeps the keys fresh until cancelled.

        The process runs this as a task.
        """
        while True:
            known = self._fetched_at is not None
            wait_ms = server_limits.JWKS_LIFETIME_MS if known else server_limits.JWKS_MISS_MS
            await self._wait(wait_ms / 1000)
            await self.refresh()

    def _match(self, algorithm: str, key_id: str | None) -> list[jwt.PyJWK]:
        keys = [key for key in self._keys if key.algorithm_name == algorithm]
        if key_id is None:
            return keys if len(keys) == 1 else []
        return [key for key in keys if key.key_id == key_id][: server_limits.JWKS_SAME_ID_MAX]

    def _is_wrong(self, algorithm: str, key_id: str | None) -> bool:
        """Whether no newer key set could make a token right.

        Its key is of another algorithm, or the token does not say which of several keys it means.
        """
        if key_id is None:
            return sum(key.algorithm_name == algorithm for key in self._keys) > 1
        return any(key.key_id == key_id for key in self._keys)

    def _may_ask(self, network: str) -> bool:
        """Whether a token may cause one more fetch.

        Counts the fetch if so.
        """
        now_ms = self._now_ms()
        budgets = [self._misses]
        if network:
            # The longest silent network comes first, and is forgotten first: it has regained most
            # fetches.
            own = self._misses_of.pop(network, None)
            own = own or TokenBucket(now_ms, _misses_of_network)
            self._misses_of[network] = own
            if len(self._misses_of) > server_limits.AUTH_FAILURE_ADDRESSES_MAX:
                del self._misses_of[next(iter(self._misses_of))]
            budgets.append(own)
        if not all(budget.has(now_ms) for budget in budgets):
            return False
        return all(budget.take(now_ms) for budget in budgets)

    async def _fetched(self) -> bool:
        """Waits for the current fetch, or a new one; whether it succeeded."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._try())
            self._fetching.add_done_callback(self._over)
        # One waiter may be cancelled while the others still wait for the fetch.
        return await asyncio.shield(self._fetching)

    def _over(self, _: "asyncio.Task[bool]") -> None:
        self._fetching = None

    async def _try(self) -> bool:
        try:
            keys = await asyncio.to_thread(self._fetch)
        except (KeySetError, jwt.PyJWTError, OSError, ValueError) as error:
            log.warning("the issuer's keys could not be fetched", url=self.url, error=str(error))
            return False
        self._keys = [
            key
            for key in keys
            if key.algorithm_name in SIGNATURE_ALGORITHMS and key.public_key_use in ("sig", None)
        ]
        self._fetched_at = self._now_ms()
        return True

    def _forget_stale(self) -> None:
        if self._fetched_at is None:
            return
        if self._now_ms() - self._fetched_at > server_limits.JWKS_STALE_MS_MAX:
            self._keys, self._fetched_at = [], None
