"""Reads the claims of a token whose signature is good.

PROTOCOL: JWT claims ``sub`` (or the claim that ``TAXIMETER_JWT_USER_CLAIM`` names) and ``exp`` are
required. Optional are ``org``; ``account`` (default: the user); ``scope``; and ``sessions``,
``kinds`` and ``counterparts``, the only ones that the token may start. A refusal of a malformed
claim names the claim.
"""

from collections.abc import Mapping
from typing import Any

import structlog

from protocol import limits
from protocol.wire.errors import ErrorCode, PeerError
from protocol.wire.fields import ID_TEXT, is_id
from server import limits as server_limits
from server.access.principals import NO_SCOPES, Principal, tenant_of

log = structlog.get_logger("taximeter.auth")


class ExpiredTokenError(PeerError):
    """A good token that has expired (close code 4002).

    The client needs a new one.
    """

    codes = frozenset({ErrorCode.UNAUTHENTICATED})

    def __init__(self) -> None:
        super().__init__(ErrorCode.UNAUTHENTICATED, "the token has expired")


def read_principal(
    claims: Mapping[str, Any], user_claim: str, audience: str | None, now_ms: int
) -> Principal:
    """The principal that verified claims describe.

    ``user_claim`` names the claim with the user. ``audience`` is the name that ``aud`` was checked
    against, or None. Raises ``unauthenticated`` for a malformed claim and for a token that is not
    yet valid, and :class:`ExpiredTokenError` for an expired one.
    """
    user_id = _id_claim(claims, user_claim)
    if user_id is None:
        raise bad_claim(user_claim, "is missing")
    # RFC 7519 section 4.1.3: a principal that an audience does not name MUST reject the token. When
    # the settings name no audience, every token with an audience is for somebody else.
    if audience is None and claims.get("aud") is not None:
        raise bad_claim("aud", "is set, and TAXIMETER_JWT_AUDIENCE is not")
    org_id = _id_claim(claims, "org")
    account_id = _id_claim(claims, "account") or user_id
    scopes = _scopes_of(claims.get("scope"))
    sessions = _ids_claim(claims, "sessions")
    kinds, counterparts = _ids_claim(claims, "kinds"), _ids_claim(claims, "counterparts")
    # Times are checked last: only a token that is good in all else is called expired.
    expires_at = _check_times(claims, now_ms)
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


def _check_times(claims: Mapping[str, Any], now_ms: int) -> int:
    """``exp`` in milliseconds; raises unless now is between ``nbf`` and ``exp``."""
    expires_at = _time_claim(claims, "exp")
    valid_from = claims.get("nbf")
    if valid_from is not None and _time_claim(claims, "nbf") > now_ms + server_limits.JWT_LEEWAY_MS:
        raise bad_claim("nbf", "is not reached yet")
    if expires_at <= now_ms - server_limits.JWT_EXPIRY_LEEWAY_MS:
        log.debug("token refused", reason="expired")
        raise ExpiredTokenError
    return expires_at


def _id_claim(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is None:
        return None
    if not is_id(value):
        raise bad_claim(name, f"must be {ID_TEXT}")
    return str(value)


def _scopes_of(claim: object) -> frozenset[str]:
    """The scopes: text with spaces, or a list.

    RFC 8693 section 4.2 has text; some issuers write a list.
    """
    words = [claim] if isinstance(claim, str) else claim
    if words is None:
        return NO_SCOPES
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise bad_claim("scope", "must be text or a list of texts")
    return frozenset(scope for word in words for scope in word.split()) or NO_SCOPES


def _ids_claim(claims: Mapping[str, Any], name: str) -> frozenset[str] | None:
    """The only ids that a token may name; None: no claim.

    A ``null`` is refused: it does not mean "any".
    """
    if name not in claims:
        return None
    ids = claims[name]
    if not are_ids(ids):
        raise bad_claim(name, f"must be a list of at most {server_limits.TOKEN_LISTED_MAX} ids")
    return frozenset(ids)


def are_ids(value: object) -> bool:
    """Whether a claim is a list of at most ``TOKEN_LISTED_MAX`` ids."""
    return (
        isinstance(value, list)
        and len(value) <= server_limits.TOKEN_LISTED_MAX
        and all(is_id(one) for one in value)
    )


def _time_claim(claims: Mapping[str, Any], name: str) -> int:
    """A NumericDate (seconds, perhaps with decimals) in milliseconds."""
    value = claims[name]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise bad_claim(name, "must be a number of seconds")
    # The comparison is written so that NaN fails too: Python's json reads NaN although JSON has
    # none.
    if not 0 <= value * 1000 <= limits.SAFE_INTEGER_MAX:
        raise bad_claim(name, "is out of bounds")
    return int(value * 1000)


def bad_claim(name: str, why: str) -> PeerError:
    """The refusal of an otherwise valid token for one unacceptable claim."""
    log.debug("token refused", reason=f"claim {name} {why}")
    return PeerError(ErrorCode.UNAUTHENTICATED, f"the token is not valid: its claim `{name}` {why}")
