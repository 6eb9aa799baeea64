"""Who is asking: tokens and API keys checked, and what their bearer may do.

PROTOCOL: JWT claims ``sub`` (or the one that ``TAXIMETER_JWT_USER_CLAIM`` names) and ``exp``
are required; ``org``; ``account`` (default: the user); ``scope``; and ``sessions``, ``kinds`` and
``counterparts``, the only ones that the token may start. HS256 with the shared secret, or RS256,
ES256 and EdDSA with the issuer's public keys. Which of the two checks a token follows from its
algorithm, and neither key is ever tried for the other's (RFC 8725 section 2.1). API keys are the
backends'.

A token whose signature is not good is refused in one sentence, and the reason is in the log,
at the level debug. Once the signature is known to be good, a refusal names the claim that is
wrong, and a token that merely ran out is called so: a new one would help.
"""

import contextlib
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import jwt
import structlog

from protocol import limits
from protocol.wire.errors import ErrorCode, PeerError
from protocol.wire.fields import ID_TEXT, is_id
from server.access.issuer_keys import SIGNATURE_ALGORITHMS, IssuerKeys
from server.runtime.settings import ConfigurationError, Settings

SHARED_ALGORITHM = "HS256"
OPERATOR_SCOPE = "ops"
NO_SCOPES: Final[frozenset[str]] = frozenset()
"""Most users'; each empty set would take 216 bytes."""

Role = Literal["user", "key", "ops"]

_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

log = structlog.get_logger("taximeter.auth")


def tenant_of(org_id: str | None, user_id: str) -> str:
    """The tenant: the organisation, or the user who has none."""
    return f"user:{user_id}" if org_id is None else f"org:{org_id}"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request is from. Made by :class:`Authenticator`, believed by everybody."""

    kind: Literal["user", "key"]
    user_id: str | None = None
    org_id: str | None = None
    account_id: str | None = None
    tenant: str | None = None
    """A user's own; an API key names one with each call, see :meth:`tenant_for`."""
    scopes: frozenset[str] = frozenset()
    sessions: frozenset[str] | None = None
    """The only sessions that this token may start; None: any."""
    kinds: frozenset[str] | None = None
    """The only kinds that this token may start; None: any."""
    counterparts: frozenset[str] | None = None
    """The only counterparts that this token may name, which its issuer knows; None: any, and
    none of them is known."""
    expires_at: int | None = None
    """When the token expires, in epoch milliseconds; None: never."""

    @property
    def is_key(self) -> bool:
        """Whether this is a backend with an API key."""
        return self.kind == "key"

    @property
    def is_operator(self) -> bool:
        """Whether this is an operator."""
        return OPERATOR_SCOPE in self.scopes

    def require(self, *roles: Role) -> None:
        """Raises ``forbidden`` unless this is one of ``roles``, as in PROTOCOL's column *who*."""
        if "ops" in roles and self.is_operator:
            return
        if self.kind not in roles:
            raise _forbidden("this call is not for this token")

    def tenant_for(self, org_id: str | None, owner_id: str) -> str:
        """The tenant of a call, given its ``?org=`` and the user or account that it is about.

        PROTOCOL section 2: "A user's token says its own; calls by key or operator name it
        by ?org=ID, or leave it out for a user without one."
        """
        if self.is_key or self.is_operator:
            return tenant_of(org_id, owner_id)
        assert self.tenant is not None
        if org_id is not None and org_id != self.org_id:
            raise _forbidden("this organisation is not the token's own")
        return self.tenant

    def tenant_to_watch(self, org_id: str | None, user_id: str | None) -> str:
        """The tenant of a session to watch: an operator's choice, or a user's own.

        Without either the tenant is the token's own. Raises ``forbidden`` for a user who names
        another organisation or user.
        """
        assert self.tenant is not None
        assert self.user_id is not None
        if org_id is None and user_id is None:
            return self.tenant
        if self.is_operator:
            return tenant_of(org_id, user_id or "")
        if org_id not in (None, self.org_id) or user_id not in (None, self.user_id):
            raise _forbidden("watching in another tenant is for operators")
        return self.tenant

    def refuse_operator(self) -> None:
        """Raises ``forbidden`` for an operator, whose token is a user's too.

        PROTOCOL section 2: existing applications keep their paths "for users and keys, not for
        operators". What changes something there says so with this.
        """
        if self.is_operator:
            raise _forbidden("this call is not for operators")

    def may_start(self, session_id: str) -> bool:
        """Whether this user's token may start or join ``session_id``."""
        return self.kind == "user" and (self.sessions is None or session_id in self.sessions)

    def check_start(self, kind: str, counterpart_id: str | None) -> None:
        """Raises ``forbidden`` for a kind or a counterpart that the token does not list."""
        if self.kinds is not None and kind not in self.kinds:
            raise _forbidden("the token may not start this kind")
        if counterpart_id is None or self.counterparts is None:
            return
        if counterpart_id not in self.counterparts:
            raise _forbidden("the token may not start a session with this counterpart")

    def knows_counterpart(self, counterpart_id: str | None) -> bool:
        """Whether the token's issuer has named this counterpart, and not its bearer."""
        return self.counterparts is not None and counterpart_id in self.counterparts

    def may_see_session(self, session_user_id: str) -> bool:
        """Whether snapshot and receipt of a session of ``session_user_id`` are theirs to see."""
        return self.is_key or self.is_operator or self.user_id == session_user_id

    def may_watch(self, session_user_id: str, session_id: str) -> bool:
        """PROTOCOL: "the session's own user, a token whose `sessions` lists it, or `ops`"."""
        listed = self.sessions is not None and session_id in self.sessions
        return listed or self.is_operator or self.user_id == session_user_id

    def may_see_account(self, account_id: str) -> bool:
        """Whether balance and ledger of an account of the tenant are theirs to see and spend."""
        return self.is_key or self.is_operator or self.account_id == account_id

    def check_refresh(self, new: "Principal") -> None:
        """Raises ``forbidden`` unless ``new`` may take this one's place on a socket.

        PROTOCOL: "a new token before the old one expires; same `sub`". The organisation and
        the account must be the same too, for live sessions are counted against them.
        """
        if (self.kind, self.user_id, self.tenant, self.account_id) != (
            new.kind,
            new.user_id,
            new.tenant,
            new.account_id,
        ):
            raise _forbidden("a new token must be for the same user, organisation and account")


class ExpiredTokenError(PeerError):
    """The token was good and has expired: a new one would be taken (close code 4002)."""

    codes = frozenset({ErrorCode.UNAUTHENTICATED})

    def __init__(self) -> None:
        super().__init__(ErrorCode.UNAUTHENTICATED, "the token has expired")


class Authenticator:
    """Checks what a request bears.

    ``now_ms`` gives epoch milliseconds: tokens carry wall time. ``keys`` are the issuer's,
    made of the settings when left out. The process calls :meth:`prepare` at its start and
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
        # Hashes have one length, so comparing them tells nothing about that of a key.
        self._key_hashes = [_hash(key.get_secret_value()) for key in settings.api_keys]
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)

    async def prepare(self) -> None:
        """Fetches the issuer's keys, so that the first token need not wait for them."""
        if self._keys is not None:
            await self._keys.refresh()

    async def run(self) -> None:
        """Keeps the issuer's keys fresh, for ever; returns at once where there is no issuer."""
        if self._keys is not None:
            await self._keys.run()

    async def authenticate(
        self,
        bearer: str,
        before_signature: Callable[[], Awaitable[None]] | None = None,
        network: str = "",
    ) -> Principal:
        """The principal of an API key or a JWT.

        ``before_signature`` is awaited before a public key's signature is checked, which is
        the one costly check (40 to 100 microseconds). ``network`` is where the request came from:
        the issuer is asked for unknown keys at its expense. Raises ``unauthenticated``,
        :class:`ExpiredTokenError`, or ``unavailable`` when the issuer's keys could not be
        fetched yet.
        """
        if not 1 <= len(bearer) <= limits.TOKEN_CHARACTERS_MAX or not bearer.isascii():
            raise _refused("not a bearer token")
        bearer_hash = _hash(bearer)
        # All are compared, whichever matches: the time says nothing.
        if sum(hmac.compare_digest(bearer_hash, known) for known in self._key_hashes):
            return Principal(kind="key")
        if _JWT.fullmatch(bearer) is None:
            raise _refused("neither an API key nor a JWT")
        claims = await self._verify(bearer, before_signature, network)
        return self._principal(claims)

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
            raise _bad_claim(error.claim, "is missing") from None
        except jwt.InvalidIssuerError:
            raise _bad_claim("iss", "is another than TAXIMETER_JWT_ISSUER") from None
        except jwt.InvalidAudienceError:
            raise _bad_claim("aud", "does not name TAXIMETER_JWT_AUDIENCE") from None
        # PyJWT lets some of what json and base64 raise through.
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
                # Times are checked below, against the clock that was handed in.
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                # Ours to check, where they are used.
                "verify_sub": False,
                "verify_jti": False,
            },
        )

    async def _find_keys(
        self, algorithm: str, key_id: str | None, network: str
    ) -> Sequence[str | jwt.PyJWK]:
        """The keys that a token of ``algorithm`` is checked with; PyJWT saw to the types."""
        if algorithm == SHARED_ALGORITHM and self._secret:
            return (self._secret,)
        if algorithm not in SIGNATURE_ALGORITHMS or self._keys is None:
            raise _refused("algorithm not accepted")
        keys = await self._keys.find(algorithm, key_id, network)
        if not keys:
            raise _refused("no such key")
        return keys

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        """The principal that verified claims describe; refuses what is malformed in them."""
        user_id = _id_claim(claims, self._user_claim)
        if user_id is None:
            raise _bad_claim(self._user_claim, "is missing")
        # RFC 7519 section 4.1.3: a principal that an audience does not name MUST reject the
        # token. Without an audience of ours no name is ours: the token is another's.
        if self._audience is None and claims.get("aud") is not None:
            raise _bad_claim("aud", "is set, and TAXIMETER_JWT_AUDIENCE is not")
        org_id = _id_claim(claims, "org")
        account_id = _id_claim(claims, "account") or user_id
        scopes = _scopes(claims.get("scope"))
        sessions = _ids_claim(claims, "sessions")
        kinds, counterparts = _ids_claim(claims, "kinds"), _ids_claim(claims, "counterparts")
        # Times last: only a token that is good in all else is called expired.
        expires_at = self._check_times(claims)
        return Principal(
            kind="user",
            user_id=user_id,
            org_id=org_id,
            account_id=account_id,
            tenant=tenant_of(org_id, user_id),
            scopes=scopes,
            sessions=sessions,
            kinds=kinds,
            counterparts=counterparts,
            expires_at=expires_at,
        )

    def _check_times(self, claims: Mapping[str, Any]) -> int:
        """``exp`` in milliseconds, after ``nbf`` and ``exp`` were found to be now."""
        now_ms = self._now_ms()
        expires_at = _time_claim(claims, "exp")
        valid_from = claims.get("nbf")
        if valid_from is not None and _time_claim(claims, "nbf") > now_ms + limits.JWT_LEEWAY_MS:
            raise _bad_claim("nbf", "is not reached yet")
        if expires_at <= now_ms - limits.JWT_EXPIRY_LEEWAY_MS:
            log.debug("token refused", reason="expired")
            raise ExpiredTokenError
        return expires_at


def mint_token(
    settings: Settings,
    sub: str,
    *,
    org: str | None = None,
    scope: str | None = None,
    ttl_seconds: int = 3600,
    account: str | None = None,
    sessions: Iterable[str] | None = None,
    kinds: Iterable[str] | None = None,
    counterparts: Iterable[str] | None = None,
    now_ms: int | None = None,
) -> str:
    """A token signed with the shared secret, for ``python -m server token`` and for tests.

    Raises :class:`ConfigurationError` where there is no secret, ValueError for what
    :class:`Authenticator` would refuse.
    """
    if settings.jwt_secret is None:
        raise ConfigurationError("tokens can only be made where TAXIMETER_JWT_SECRET is set")
    lists = {
        name: list(ids)
        for name, ids in (("sessions", sessions), ("kinds", kinds), ("counterparts", counterparts))
        if ids is not None
    }
    ids = {"sub": sub, "org": org, "account": account}
    for name, value in ids.items():
        if value is not None and not is_id(value):
            raise ValueError(f"{name}: must be {ID_TEXT}")
    for name, listed in lists.items():
        if not _are_ids(listed):
            raise ValueError(f"{name}: must be at most {limits.TOKEN_LISTED_MAX} ids")
    if ttl_seconds <= 0:
        raise ValueError("ttl: must be positive")
    now = (time.time_ns() // 1_000_000 if now_ms is None else now_ms) // 1000
    claims = {
        **ids,
        settings.jwt_user_claim: sub,
        "scope": scope,
        **lists,
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience,
        "iat": now,
        "exp": now + ttl_seconds,
    }
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        settings.jwt_secret.get_secret_value(),
        algorithm=SHARED_ALGORITHM,
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _id_claim(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is None:
        return None
    if not is_id(value):
        raise _bad_claim(name, f"must be {ID_TEXT}")
    return str(value)


def _scopes(claim: object) -> frozenset[str]:
    """The scopes: text with spaces (RFC 8693 section 4.2), or a list of it, as issuers write."""
    words = [claim] if isinstance(claim, str) else claim
    if words is None:
        return NO_SCOPES
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _bad_claim("scope", "must be text or a list of texts")
    return frozenset(scope for word in words for scope in word.split()) or NO_SCOPES


def _ids_claim(claims: Mapping[str, Any], name: str) -> frozenset[str] | None:
    """The only ids that a token may name; None where it does not say. A ``null`` is no way to
    say "any"."""
    if name not in claims:
        return None
    ids = claims[name]
    if not _are_ids(ids):
        raise _bad_claim(name, f"must be a list of at most {limits.TOKEN_LISTED_MAX} ids")
    return frozenset(ids)


def _are_ids(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= limits.TOKEN_LISTED_MAX
        and all(is_id(one) for one in value)
    )


def _time_claim(claims: Mapping[str, Any], name: str) -> int:
    """A NumericDate (seconds, perhaps with decimals) in milliseconds."""
    value = claims[name]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _bad_claim(name, "must be a number of seconds")
    # Written so that NaN fails too, which json reads though JSON has none.
    if not 0 <= value * 1000 <= limits.SAFE_INTEGER_MAX:
        raise _bad_claim(name, "is out of bounds")
    return int(value * 1000)


def _refused(reason: str) -> PeerError:
    """The one answer to a token whose signature is not good; ``reason`` is for the log alone."""
    log.debug("token refused", reason=reason)
    return PeerError(ErrorCode.UNAUTHENTICATED, "the token is not valid")


def _bad_claim(name: str, why: str) -> PeerError:
    """The answer to a token of the issuer's with a claim that cannot be taken."""
    log.debug("token refused", reason=f"claim {name} {why}")
    return PeerError(ErrorCode.UNAUTHENTICATED, f"the token is not valid: its claim `{name}` {why}")


def _forbidden(message: str) -> PeerError:
    return PeerError(ErrorCode.FORBIDDEN, message)
