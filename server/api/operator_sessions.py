"""How operators sign in and out, and who a page is for."""

from typing import Annotated, Literal

import msgspec
import structlog
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire.fields import describe
from server.access import limits as access_limits
from server.access.principals import PUBLIC, READERS, Principal, Role
from server.http.acts import log_of, request_id_of
from server.http.cookies import (
    check_cookie_is_safe,
    check_own_page,
    delete_cookie,
    secret_of,
    set_cookie,
    sign_in_of,
)
from server.http.openapi import Operation, described
from server.http.problems import Problem
from server.http.requests import principal_of, raw_body, read_body
from server.http.responses import answer
from server.ops.log import action_id_of
from server.ops.sign_in import OpenedSession, csrf_token_of
from storage.postgres.records import UnavailableError

log = structlog.get_logger("taximeter.operators")

ANY_ROLE: tuple[Role, ...] = ("org:read", *READERS)
ROLE_NAMES: tuple[Role, ...] = ("ops", "ops:read", "org:read")


class LoginWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a session of a named operator."""

    name: Annotated[str, Meta(min_length=1, max_length=128, description="The operator.")]
    password: Annotated[str, Meta(min_length=1, max_length=access_limits.PASSWORD_CHARACTERS_MAX)]


class SignedIn(msgspec.Struct, frozen=True, kw_only=True):
    """Who the sender is, and what a page needs to act."""

    actor: Annotated[str, describe("Whom the operators' log names.")]
    role: Annotated[
        Literal["ops", "ops:read", "org:read"],
        describe("`ops` acts and reads, `ops:read` reads, `org:read` reads its organisation."),
    ]
    org_id: Annotated[str | None, describe("The organisation of `org:read`; null: all.")]
    csrf_token: Annotated[
        str | None,
        describe(
            "Send it as `X-CSRF-Token` with each call that changes something; null: no session."
        ),
    ]
    expires_at: Annotated[int | None, describe("When the session ends, in epoch ms.")]


@described(
    Operation(
        tag="operators",
        roles=PUBLIC,
        body=LoginWanted,
        answers={200: (SignedIn,)},
        errors={
            400: ("bad_message",),
            401: ("unauthenticated",),
            403: ("csrf", "tls_required"),
            429: ("rate_limited",),
            503: ("unavailable",),
        },
    )
)
async def login(request: Request) -> Response:
    """Opens a session for an operator's name and password.

    Ten wrong passwords for a name from one address wait. The cookie is for this host over TLS only;
    without TLS there is one on the machine itself.
    """
    check_own_page(request)
    check_cookie_is_safe(request)
    wanted = read_body(await raw_body(request), LoginWanted)
    address = request.client.host if request.client else ""
    opened = await sign_in_of(request).login(wanted.name, wanted.password, address)
    return await _opened(request, opened)


@described(
    Operation(
        tag="operators",
        roles=ANY_ROLE,
        opens_session=True,
        answers={200: (SignedIn,)},
        errors={403: ("csrf", "tls_required")},
    )
)
async def open_session(request: Request) -> Response:
    """Makes a cookie of a token, or of a proxy's header.

    The session ends with the token at the latest. It has the token's widest role, and none of the
    user's own rights.
    """
    check_own_page(request)
    check_cookie_is_safe(request)
    principal, sign_in = principal_of(request), sign_in_of(request)
    if principal.via == "token":
        return await _opened(request, await sign_in.open_for_token(principal))
    assert principal.user_id is not None
    if principal.via == "cookie":
        raise Problem(403, "forbidden", "a cookie opens no further session; send a token")
    operator = await sign_in.named(principal.user_id)
    return await _opened(request, await sign_in.open_named(operator, "proxy"))


async def _opened(request: Request, opened: OpenedSession) -> Response:
    await _log(request, opened.principal, "login")
    response = answer(_signed_in(opened.principal, opened.secret))
    set_cookie(request, response, opened)
    return response


@described(
    Operation(
        tag="operators",
        roles=ANY_ROLE,
        answers={200: (SignedIn,)},
    )
)
async def read_operator_session(request: Request) -> Response:
    """Who the sender is, and what a page needs to act."""
    return answer(_signed_in(principal_of(request), secret_of(request)))


@described(
    Operation(
        tag="operators",
        roles=ANY_ROLE,
        opens_session=True,
        answers={204: ""},
        errors={403: ("csrf",)},
    )
)
async def logout(request: Request) -> Response:
    """Ends the session of the cookie, from this moment on every process."""
    check_own_page(request)
    secret = secret_of(request)
    if secret is not None:
        await sign_in_of(request).close(secret)
        await _log(request, principal_of(request), "logout")
    response = Response(status_code=204)
    delete_cookie(request, response)
    return response


async def _log(request: Request, principal: Principal, action: str) -> None:
    """Writes what an operator did, if Postgres takes it."""
    if not principal.is_operator:
        return  # administrators of organisations are no operators
    found, action_id = log_of(request), action_id_of(principal, "", None, b"")
    target = f"operator:{principal.user_id}"
    try:
        await found.begin(
            principal, action, target, action_id=action_id, request_id=request_id_of(request)
        )
        await found.finish(action_id, "done", None, None)
    except UnavailableError as error:
        log.warning("not_logged", action=action, error=str(error))


def _signed_in(principal: Principal, secret: str | None) -> SignedIn:
    has_session = principal.via in ("cookie", "proxy") and principal.expires_at is not None
    role = next(one for one in ROLE_NAMES if one in principal.scopes)
    return SignedIn(
        actor=principal.user_id or "",
        role=role,  # type: ignore[arg-type]
        org_id=principal.org_id if role == "org:read" else None,
        csrf_token=csrf_token_of(secret) if secret is not None and has_session else None,
        expires_at=principal.expires_at,
    )


ROUTES = [
    Route("/v1/ops/login", login, methods=["POST"]),
    Route("/v1/ops/logout", logout, methods=["POST"]),
    Route("/v1/ops/session", open_session, methods=["POST"]),
    Route("/v1/ops/session", read_operator_session),
]
