"""Authenticates requests: checks API keys and the signatures of tokens.

PROTOCOL: HS256 with the shared secret, or RS256, ES256 and EdDSA with the issuer's public keys. A
token's algorithm decides which of the two checks the token, and neither key is ever tried for the
other's algorithms (RFC 8725 section 2.1). API keys belong to backends. ``claims.py`` reads the
claims.

All tokens with a bad signature get the same refusal, and the log has the reason at level debug.
Once the signature is known to be good, a refusal names the wrong claim, and the refusal of an
expired token says so, because a new token would help.
"""

import contextlib
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import jwt
import structlog

from protocol import limits
from protocol.wire.errors import ErrorCode, PeerError
from server.access.claims import bad_claim, read_principal
from server.access.issuer_keys import SIGNATURE_ALGORITHMS, IssuerKeys
from server.access.principals import Principal
from server.runtime.settings import Settings

SHARED_ALGORITHM = "HS256"

_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

log = structlog.get_logger("taximeter.auth")


class Authenticator:
    """Checks the credentials of a request.

    ``now_ms`` gives epoch milliseconds, because tokens carry wall time. ``keys`` are the issuer's;
    by default they are made from the settings. The process calls :meth:`prepare` at its start and
    keeps :meth:`run` running.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        keys: IssuerKeys | None = None,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        secret = settings.jwt_secret
        self._secret = None if secret is None else secret.get_secret_value()
        if keys is None and settings.jwks_url is not None:
            keys = IssuerKeys(settings.jwks_url)
        self._keys = keys
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._user_claim = settings.jwt_user_claim
        # Hashes have equal lengths, so a comparison reveals nothing about the length of a key.
        self._key_hashes = [_hash(key.get_secret_value()) for key in settings.api_keys]
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)

    async def prepare(self) -> None:
        """Fetches the issuer's keys.

        The first token then does not wait for them.
        """
        if self._keys is not None:
            await self._keys.refresh()

    async def run(self) -> None:
        """Keeps the issuer's keys fresh until cancelled.

        Returns at once without an issuer.
        """
        if self._keys is not None:
            await self._keys.run()

    async def authenticate(
        self,
        bearer: str,
        before_signature: Callable[[], Awaitable[None]] | None = None,
        network: str = "",
    ) -> Principal:
        """The principal of an API key or a JWT.

        ``before_signature`` is awaited before the check of a public key's signature, the only
        costly check (40 to 100 microseconds). ``network`` is where the request came from: fetches
        for unknown keys count against its budget. Raises ``unauthenticated``,
        :class:`ExpiredTokenError`, or ``unavailable`` when the issuer's keys could not be fetched
        yet.
        """
        if not 1 <= len(bearer) <= limits.TOKEN_CHARACTERS_MAX or not bearer.isascii():
            raise _refused("not a bearer token")
        bearer_hash = _hash(bearer)
        # All keys are compared, even after a match, so that the time reveals nothing.
        if sum(hmac.compare_digest(bearer_hash, known) for known in self._key_hashes):
            return Principal(kind="key", via="key")
        if _JWT.fullmatch(bearer) is None:
            raise _refused("neither an API key nor a JWT")
        claims = await self._verify(bearer, before_signature, network)
        return read_principal(claims, self._user_claim, self._audience, self._now_ms())

    async def _verify(
        self, token: str, before_signature: Callable[[], Awaitable[None]] | None, network: str
    ) -> dict[str, Any]:
        """The claims of a token whose signature, issuer and audience are good."""
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if not isinstance(algorithm, str):
                raise _refused("no algorithm")
            keys = await self._find_keys(algorithm, header.get("kid"), network)
            if before_signature is not None and self._secret not in keys:
                await before_signature()
            for key in keys[:-1]:
                with contextlib.suppress(jwt.InvalidSignatureError):
                    return self._decode(token, algorithm, key)
            return self._decode(token, algorithm, keys[-1])
        except jwt.MissingRequiredClaimError as error:
            raise bad_claim(error.claim, "is missing") from None
        except jwt.InvalidIssuerError:
            raise bad_claim("iss", "is another than TAXIMETER_JWT_ISSUER") from None
        except jwt.InvalidAudienceError:
            raise bad_claim("aud", "does not name TAXIMETER_JWT_AUDIENCE") from None
        # PyJWT lets some exceptions of json and base64 pass.
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise _refused(f"{type(error).__name__}: {error}") from None

    def _decode(self, token: str, algorithm: str, key: str | jwt.PyJWK) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            # Pinned: the algorithm was found among ours together with its key.
            algorithms=[algorithm],
            issuer=self._issuer,
            audience=self._audience,
            options={
                "require": ["exp", self._user_claim],
                "verify_iss": self._issuer is not None,
                "verify_aud": self._audience is not None,
                # ``claims.py`` checks the times, against the clock that was handed in.
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                # ``claims.py`` checks these, where they are used.
                "verify_sub": False,
                "verify_jti": False,
            },
        )

    async def _find_keys(
        self, algorithm: str, key_id: str | None, network: str
    ) -> Sequence[str | jwt.PyJWK]:
        """The keys to check a token of ``algorithm`` with.

        PyJWT has checked the types.
        """
        if algorithm == SHARED_ALGORITHM and self._secret:
            return (self._secret,)
        if algorithm not in SIGNATURE_ALGORITHMS or self._keys is None:
            raise _refused("algorithm not accepted")
        keys = await self._keys.find(algorithm, key_id, network)
        if not keys:
            raise _refused("no such key")
        return keys


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _refused(reason: str) -> PeerError:
    """The single refusal of a token with a bad signature.

    Only the log gets ``reason``.
    """
    log.debug("token refused", reason=reason)
    return PeerError(ErrorCode.UNAUTHENTICATED, "the token is not valid")
