"""Reads the issuer's key set over HTTP, from an untrusted peer.

PyJWT's client follows no redirect, reads bodies of any size and has no deadline for a peer that
sends a byte now and then. This client follows redirects within the site, sends a user agent of its
own, reads a bounded body until a deadline, and skips keys that it cannot use.
"""

import json
import urllib.request
from collections.abc import Callable
from typing import IO, Any, Final
from urllib.parse import SplitResult, urlsplit

import jwt

from server import limits as server_limits
from server.runtime.bounded_http import HttpFailedError, request

USER_AGENT: Final = "Taximeter/0.1 (JWKS)"


class KeySetError(Exception):
    """The key set could not be read; the message gives the reason."""


def fetch_with(url: str) -> Callable[[], list[jwt.PyJWK]]:
    """A function that fetches the usable keys at ``url``.

    The function blocks: call it in a thread. It raises only :class:`KeySetError`, and ends within
    ``JWKS_TIMEOUT_MS`` after the host's name is resolved.
    """
    return lambda: _fetch(url)


def _fetch(url: str) -> list[jwt.PyJWK]:
    try:
        answer = request(
            url,
            headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
            redirects=_WithinSite(url),
            timeout_ms=server_limits.JWKS_TIMEOUT_MS,
            bytes_max=server_limits.JWKS_BYTES_MAX,
        )
    except HttpFailedError as error:
        raise KeySetError(str(error)) from error
    if answer.status >= 300:
        raise KeySetError(f"the answer is {answer.status}")
    return parse_key_set(answer.body)


def parse_key_set(body: bytes) -> list[jwt.PyJWK]:
    """The usable keys of a JWK set.

    Raises :class:`KeySetError` when there is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise KeySetError(f"no JSON: {type(error).__name__}") from None
    members = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(members, list):
        raise KeySetError("no JWK set: a JSON object with the list `keys` was expected")
    keys = [
        key
        for member in members[: server_limits.JWKS_KEYS_MAX]
        if (key := _key(member)) is not None
    ]
    if not keys:
        raise KeySetError("the key set has no key that can be used")
    return keys


def _key(member: Any) -> jwt.PyJWK | None:
    """The key of one member; None when malformed or unknown."""
    if not isinstance(member, dict):
        return None
    # RFC 7517: the parameters that matter here are strings. Oversized ones never reach the library.
    fields = {
        name: value
        for name, value in member.items()
        if isinstance(value, str) and len(value) <= server_limits.JWKS_FIELD_CHARACTERS_MAX
    }
    if "kid" in member and "kid" not in fields:
        return None
    try:
        return jwt.PyJWK(fields)
    except Exception:
        # PyJWT and its cryptography raise various errors for bad fields.
        return None


def _port(url: SplitResult) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)


class _WithinSite(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the host, also from http to https.

    It follows no others.
    """

    max_redirections = 3
    max_repeats = 2

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).hostname

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request that a redirect asks for.

        Raises when the redirect leaves the site.
        """
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        is_upgrade = (before.scheme, after.scheme) == ("http", "https")
        same_port = before.scheme == after.scheme and _port(before) == _port(after)
        if after.hostname != self._host or not (is_upgrade or same_port):
            raise KeySetError("it redirects out of its site")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
