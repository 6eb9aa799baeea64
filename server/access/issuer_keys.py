"""The public keys of a token's issuer, kept fresh from ``TAXIMETER_JWKS_URL``.

The fetch blocks, so it runs in a thread; everything else here is on the event loop. Tokens
with unknown keys make the server ask the issuer a bounded number of times, and an issuer that
is away takes no key with it: its last keys are believed for a day. A token is refused for an
unknown key only by a key set that was asked for after the token arrived. Before that its key
may merely be new.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import jwt
import structlog

from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.access.key_set import KeySetError, fetch_with

SIGNATURE_ALGORITHMS = frozenset({"RS256", "ES256", "EdDSA"})

log = structlog.get_logger("taximeter.auth")


class Misses:
    """Fetches that tokens with unknown keys may ask for: ``most`` at once, and one more each
    ``JWKS_MISS_MS``. ``now_ms`` is monotonic milliseconds."""

    __slots__ = ("_at", "_left", "_most")

    def __init__(self, most: int, now_ms: int) -> None:
        self._most = self._left = most
        self._at = now_ms

    def any(self, now_ms: int) -> bool:
        """Whether there is one."""
        earned = (now_ms - self._at) // server_limits.JWKS_MISS_MS
        self._at += earned * server_limits.JWKS_MISS_MS
        self._left = min(self._most, self._left + earned)
        return self._left > 0

    def take(self) -> None:
        """One less, of which there is ``any``."""
        self._left -= 1


class IssuerKeys:
    """The issuer's keys. :meth:`refresh` once at start, then keep :meth:`run` running.

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
        self._fetched_at: int | None = None  # the last success
        self._misses = Misses(server_limits.JWKS_MISSES_MAX, self._now_ms())
        self._misses_of: dict[str, Misses] = {}
        """The same for each network that tokens come from."""
        self._fetching: asyncio.Task[bool] | None = None

    async def find(self, algorithm: str, key_id: str | None, network: str = "") -> list[jwt.PyJWK]:
        """The keys that a token's header names: more than one where the issuer repeats an id.

        Empty when the issuer has no such key. A token without ``kid`` is checked by the only
        key of its algorithm, where there is one. A key that is known waits for nothing.
        ``network`` is where the token came from: one that names unknown keys uses up no other's
        fetches. Raises :class:`ServiceError` when the keys are not known well enough to refuse
        the token.
        """
        self._forget_stale()
        keys = self._match(algorithm, key_id)
        if not keys and self._fetching is not None:
            await self._fetched()
            keys = self._match(algorithm, key_id)
        if keys or self._is_wrong(algorithm, key_id):
            return keys
        # A fetch that is under way by now began after the token arrived.
        if self._fetching is None and not self._may_ask(network):
            raise ServiceError("the token's key is not known yet")
        if not await self._fetched():
            raise ServiceError("the keys of the token's issuer could not be fetched")
        return self._match(algorithm, key_id)

    async def refresh(self) -> bool:
        """Fetches the keys now; False, and the old ones stay, when that fails."""
        return await self._fetched()

    async def run(self) -> None:
        """Keeps the keys fresh until it is cancelled, as a task of the process."""
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
        """Whether a token is wrong whatever a newer key set has: its key is of another algorithm,
        or it does not say which of several keys it means."""
        if key_id is None:
            return sum(key.algorithm_name == algorithm for key in self._keys) > 1
        return any(key.key_id == key_id for key in self._keys)

    def _may_ask(self, network: str) -> bool:
        """Whether a token may have the issuer asked once more; it is counted if so."""
        now_ms = self._now_ms()
        budgets = [self._misses]
        if network:
            # The longest silent one comes first, and is forgotten first: it has earned most back.
            own = self._misses_of.pop(network, None)
            own = own or Misses(server_limits.JWKS_MISSES_PER_ADDRESS_MAX, now_ms)
            self._misses_of[network] = own
            if len(self._misses_of) > server_limits.AUTH_FAILURE_ADDRESSES_MAX:
                del self._misses_of[next(iter(self._misses_of))]
            budgets.append(own)
        if not all(budget.any(now_ms) for budget in budgets):
            return False
        for budget in budgets:
            budget.take()
        return True

    async def _fetched(self) -> bool:
        """Waits for the fetch under way, or for one that begins now; whether it succeeded."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._try())
            self._fetching.add_done_callback(self._over)
        # Who waits may be cancelled, and the others wait on.
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
