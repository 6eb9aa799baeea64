"""Cookies of operators, and what keeps other sites from using them.

The cookie's name begins with ``__Host-``: the browser sends it over TLS only, to this host only,
and no other host can set it (RFC 6265bis section 4.1.3). Without TLS a cookie of another name
exists, on loopback only. What a browser sends of itself must not let a page of another site act:
the cookie is ``SameSite=Strict``; a call that changes something needs a token that only a page of
this server can read; and such a call of another page's origin is refused.
"""

import hmac
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from protocol.wire.errors import ErrorCode, PeerError
from server.access.principals import Principal
from server.http.problems import Problem
from server.ops.sign_in import OpenedSession, SignIn, csrf_token_of, principal_of_operator
from server.runtime.loopback import is_loopback
from server.runtime.origins import reached
from server.transport.connection_limiter import PEER

COOKIE: Final = "__Host-taximeter_ops"
COOKIE_WITHOUT_TLS: Final = "taximeter_ops"
CSRF_HEADER: Final = "X-CSRF-Token"
UNCHANGING: Final = frozenset({"GET", "HEAD"})
"""Methods that change nothing."""


def sign_in_of(request: Request) -> SignIn:
    """How operators sign in to the process that serves the request."""
    sign_in: SignIn = request.app.state.sign_in
    return sign_in


# --- Who a browser says it is -----------------------------------------------------------


async def browser_sender(request: Request) -> Principal | None:
    """The sender by a proxy's header or a cookie; None: neither.

    A sender without a session, whom a proxy names, has no ``expires_at``. Raises
    ``unauthenticated`` for a session that has ended, and ``forbidden`` for a proxy's user who is no
    operator.
    """
    name, secret = _proxied_name(request), secret_of(request)
    if secret is not None:
        try:
            return await sign_in_of(request).by_cookie(secret, name)
        except PeerError:
            if name is None:
                raise
    if name is not None:
        return principal_of_operator(await sign_in_of(request).named(name))
    return None


def _proxied_name(request: Request) -> str | None:
    """Whom a trusted proxy names; None without one.

    Raises ``unauthenticated`` for several names: a client has sent one of them.
    """
    process = request.app.state.process
    header = process.settings.ops_user_header
    if header is None or not process.limiter.trusts(peer_of(request)):
        return None
    names: list[str] = request.headers.getlist(header)
    if len(names) > 1:
        raise PeerError(ErrorCode.UNAUTHENTICATED, f"{header}: more than one")
    return (names[0].strip() or None) if names else None


def peer_of(request: Request) -> str:
    """The address of the connection's other end: a client's, or a proxy's."""
    peer: str = request.scope.get("extensions", {}).get(PEER, "")
    return peer


def secret_of(request: Request) -> str | None:
    """The secret of the request's cookie; None without one."""
    name = COOKIE if _is_tls(request) else COOKIE_WITHOUT_TLS if _is_near(request) else None
    return request.cookies.get(name) or None if name is not None else None


def _is_tls(request: Request) -> bool:
    """Whether the browser spoke TLS to this server, or its proxy."""
    return bool(request.scope["scheme"] == "https")


def _is_near(request: Request) -> bool:
    """Whether the browser is on this machine, without a proxy."""
    client = request.client.host if request.client else ""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    forwarded = {"x-forwarded-for", "x-forwarded-host", "forwarded", "via"} & set(request.headers)
    addresses = (client, peer_of(request), host)
    return not forwarded and all(one and is_loopback(one) for one in addresses)


# --- Setting and deleting ---------------------------------------------------------------


def check_cookie_is_safe(request: Request) -> None:
    """Raises ``tls_required`` where others on the way could read a cookie."""
    if not (_is_tls(request) or _is_near(request)):
        raise Problem(
            403,
            "tls_required",
            "operators sign in over https, or from the machine itself; behind a proxy that ends "
            "TLS name the proxy in FORWARDED_ALLOW_IPS, and have it send X-Forwarded-Proto",
        )


def set_cookie(request: Request, response: Response, opened: OpenedSession) -> None:
    """Gives the browser the cookie of a session, until the session ends."""
    expires_at = opened.principal.expires_at
    assert expires_at is not None
    left_ms = expires_at - request.app.state.process.wall_ms()
    _set(request, response, opened.secret, max(0, -(-left_ms // 1000)))


def delete_cookie(request: Request, response: Response) -> None:
    """Takes the cookie back."""
    _set(request, response, "", 0)


def _set(request: Request, response: Response, value: str, seconds: int) -> None:
    is_tls = _is_tls(request)
    response.set_cookie(
        COOKIE if is_tls else COOKIE_WITHOUT_TLS,
        value,
        max_age=seconds,
        path="/",
        secure=is_tls,
        httponly=True,
        samesite="strict",
    )


# --- Forged requests --------------------------------------------------------------------


def check_not_forged(request: Request, sender: Principal) -> None:
    """Raises ``csrf`` unless a page of this server makes the request knowingly."""
    check_own_page(request)
    secret = secret_of(request)
    shown = request.headers.getlist(CSRF_HEADER)
    if secret is None or sender.expires_at is None:
        raise _forged("open a session first (POST /v1/ops/session), and send its csrf_token")
    if len(shown) != 1 or not hmac.compare_digest(
        shown[0].encode(), csrf_token_of(secret).encode()
    ):
        raise _forged(f"{CSRF_HEADER}: send the csrf_token of the session")


def check_own_page(request: Request) -> None:
    """Raises ``csrf`` for a request of a page elsewhere.

    Clients other than browsers send neither header. Listed origins have no cookies either.
    """
    site = request.headers.getlist("sec-fetch-site")
    origins = request.headers.getlist("origin")
    if any(one not in ("same-origin", "none") for one in site):
        raise _forged("the request is made for a page of another site")
    if not origins:
        return
    server = request.scope.get("server")
    process = request.app.state.process
    own = reached(
        request.headers,
        request.scope["scheme"],
        server[1] if server else None,
        proxied=process.limiter.trusts(peer_of(request)),
    )
    if len(origins) > 1 or not own.is_own(origins[0]):
        raise _forged("the request is made for a page of another origin")


def _forged(detail: str) -> Problem:
    return Problem(403, "csrf", detail)
