"""Reads the issuer's key set over HTTP, from an untrusted peer.

PyJWT's client follows no redirect, reads bodies of any size and has no deadline for a peer that
sends a byte now and then. This client follows redirects within the site, sends a user agent of its
own, reads a bounded body until a deadline, and skips keys that it cannot use.
"""

import contextlib
import http.client
import json
import os
import socket
import threading
import urllib.request
from collections.abc import Callable
from typing import IO, Any, Final
from urllib.parse import SplitResult, urlsplit

import jwt

from server import limits as server_limits

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
    deadline = _Deadline(server_limits.JWKS_TIMEOUT_MS / 1000)
    opener = urllib.request.build_opener(_Http(deadline), _Https(deadline), _WithinSite(url))
    request = urllib.request.Request(  # noqa: S310 -- the settings take http and https alone
        url, headers={"User-Agent": USER_AGENT, "Accept": "application/json"}
    )
    try:
        with deadline, opener.open(request, timeout=deadline.seconds) as response:
            body = response.read(server_limits.JWKS_BYTES_MAX + 1)
    except Exception as error:
        reason = "it took too long" if deadline.passed else str(error) or type(error).__name__
        raise KeySetError(reason) from error
    if deadline.passed:
        raise KeySetError("it took too long")
    if len(body) > server_limits.JWKS_BYTES_MAX:
        raise KeySetError(f"the key set is over {server_limits.JWKS_BYTES_MAX} bytes")
    return parse_key_set(body)


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


class _Deadline:
    """Ends a fetch when its time is over.

    It does so wherever the fetch's thread waits for the peer. Socket time-outs begin anew with each
    byte. This deadline shuts the connection down.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.passed = False
        self._handles: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()

    def connect(self, *arguments: Any, **options: Any) -> socket.socket:
        """A connection like that of ``socket.create_connection``, ended by the deadline."""
        connection = socket.create_connection(*arguments, **options)
        with self._lock:
            # TLS takes the socket over, so the handle is a descriptor of its own.
            self._handles.append(socket.socket(fileno=os.dup(connection.fileno())))
        if self.passed:
            self._pass()
        return connection

    def _pass(self) -> None:
        self.passed = True
        with self._lock:
            for handle in self._handles:
                with contextlib.suppress(OSError):  # the connection may be gone already
                    handle.shutdown(socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    """Opens http connections under a deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Opens a request over http."""

        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            made = http.client.HTTPConnection(host, **options)
            made._create_connection = self._deadline.connect  # type: ignore[attr-defined]
            return made

        return self.do_open(connection, req)


class _Https(urllib.request.HTTPSHandler):
    """Opens https connections under a deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Opens a request over https."""

        def connection(host: str, **options: Any) -> http.client.HTTPSConnection:
            made = http.client.HTTPSConnection(host, **options)
            made._create_connection = self._deadline.connect  # type: ignore[attr-defined]
            return made

        return self.do_open(connection, req)


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
