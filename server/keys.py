"""The public keys of whoever issues tokens, fetched from ``TAXIMETER_JWKS_URL``.

PyJWT's client blocks, so it runs in a thread; everything else here is on the event loop.
No token makes the server ask the issuer more than once in ten seconds, and an issuer that
is away takes nobody's key with it: its last keys are believed for a day.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import jwt
import structlog

from protocol import limits
from protocol.errors import ServiceError

SIGNATURE_ALGORITHMS = frozenset({"RS256", "ES256", "EdDSA"})

log = structlog.get_logger("taximeter.auth")


class IssuerKeys:
    """The issuer's keys. :meth:`refresh` once at start, then keep :meth:`run` running.

    ``fetch`` gives the key set and may block; ``now_ms`` is monotonic milliseconds.
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
        self._fetch = fetch or _fetch_with(url)
        self._now_ms = now_ms or (lambda: time.monotonic_ns() // 1_000_000)
        self._wait = wait
        self._keys: list[jwt.PyJWK] = []
        self._fetched_at: int | None = None  # the last success
        self._tried_at: int | None = None  # the last try
        self._trying = asyncio.Lock()

    async def find(self, algorithm: str, key_id: str | None) -> jwt.PyJWK | None:
        """The key for a token's header; None when the issuer has no such key.

        A token without ``kid`` is checked by the only key of its algorithm, where there is
        one. Raises :class:`ServiceError` when no keys are known that can be believed: then
        the token may well be good.
        """
        self._forget_stale()
        key = self._match(algorithm, key_id)
        if key is None and self._may_try():
            # Many tokens with one new key arrive together: one of them asks.
            async with self._trying:
                if self._may_try():
                    await self._try()
            key = self._match(algorithm, key_id)
        if key is None and self._fetched_at is None:
            raise ServiceError("the keys of the token's issuer could not be fetched")
        return key

    async def refresh(self) -> bool:
        """Fetches the keys now; False, and the old ones stay, when that fails."""
        async with self._trying:
            return await self._try()

    async def run(self) -> None:
        """Keeps the keys fresh, for ever: a task of the process, cancelled at its end."""
        while True:
            known = self._fetched_at is not None
            wait_ms = limits.JWKS_LIFETIME_MS if known else limits.JWKS_MISS_MS
            await self._wait(wait_ms / 1000)
            await self.refresh()

    def _match(self, algorithm: str, key_id: str | None) -> jwt.PyJWK | None:
        keys = [key for key in self._keys if key.algorithm_name == algorithm]
        if key_id is None:
            return keys[0] if len(keys) == 1 else None
        return next((key for key in keys if key.key_id == key_id), None)

    def _may_try(self) -> bool:
        return self._tried_at is None or self._now_ms() - self._tried_at >= limits.JWKS_MISS_MS

    async def _try(self) -> bool:
        self._tried_at = self._now_ms()
        try:
            keys = await asyncio.to_thread(self._fetch)
        # OSError and ValueError: a line that is cut, a body that is no JSON.
        except (jwt.PyJWTError, OSError, ValueError) as error:
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
        if self._now_ms() - self._fetched_at > limits.JWKS_STALE_MS_MAX:
            self._keys, self._fetched_at = [], None


def _fetch_with(url: str) -> Callable[[], list[jwt.PyJWK]]:
    # Its caches are off: this module knows better when to ask.
    client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=limits.JWKS_TIMEOUT_MS / 1000)
    return lambda: client.get_jwk_set(refresh=True).keys
