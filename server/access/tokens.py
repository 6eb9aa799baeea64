"""Makes tokens with the shared secret, for first trials and tests."""

import time
from collections.abc import Iterable

import jwt

from protocol.wire.fields import ID_TEXT, is_id
from server import limits as server_limits
from server.access.claims import are_ids
from server.access.credentials import SHARED_ALGORITHM
from server.runtime.settings import ConfigurationError, Settings


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
    """A token signed with the shared secret.

    For ``python -m server token`` and for tests. Raises :class:`ConfigurationError` where there is
    no secret, and ValueError for a token that :class:`Authenticator` would refuse.
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
        if not are_ids(listed):
            raise ValueError(f"{name}: must be at most {server_limits.TOKEN_LISTED_MAX} ids")
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
