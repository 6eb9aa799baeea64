"""Reads requests: the process, the sender, and the parameters and body.

Bodies are read strictly, by the same reader as the socket's messages.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from protocol.wire.codec import explain, read_json
from protocol.wire.errors import BadMessageError, ErrorCode, PeerError
from protocol.wire.fields import ID_TEXT, is_id
from server import limits as server_limits
from server.access.bad_guesses import TooManyGuessesError
from server.access.principals import Principal
from server.http.cookies import browser_sender
from server.http.problems import Problem
from server.process import Process

Body = TypeVar("Body", bound=msgspec.Struct)

Endpoint = Callable[[Request], Awaitable[Response]]


def process_of(request: Request) -> Process:
    """The process that serves the request."""
    process: Process = request.app.state.process
    return process


# --- The sender ----------------------------------------------------------------------


def bearer_of(headers: Any) -> str | None:
    """The token of an ``Authorization`` header; None when there is none."""
    value: str = headers.get("authorization", "")
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else None


PRINCIPAL: Final = "taximeter.principal"
"""The key of a scope under which the gate of a route leaves the sender."""


def principal_of(request: Request) -> Principal:
    """The sender, admitted in a role that the route declares; see ``routes.py``."""
    principal: Principal = request.scope[PRINCIPAL]
    return principal


async def sender_of(request: Request) -> Principal:
    """The sender, whose requests are not counted; raises ``unauthenticated``.

    A bearer token or key counts before a cookie and before a trusted proxy's header.

    Bad credentials get ``rate_limited`` once their address has used up its guesses. Good
    credentials pass from every address.
    """
    process = process_of(request)
    address = request.client.host if request.client else ""
    bearer = bearer_of(request.headers)
    if bearer is None:
        browser = await browser_sender(request)
        if browser is not None:
            return browser
        raise PeerError(
            ErrorCode.UNAUTHENTICATED,
            "expected a header `Authorization: Bearer` with a token or key",
        )
    try:
        return await process.bad_guesses.counted(address, process.authenticator, bearer)
    except TooManyGuessesError as error:
        wait_ms = process.bad_guesses.wait_ms(address)
        raise Problem(
            429, error.code.value, error.message, retry_after_s=max(1, -(-wait_ms // 1000))
        ) from None


def tenant_of_call(request: Request, principal: Principal, owner_id: str | None = None) -> str:
    """The tenant that a call is about.

    PROTOCOL section 2: "A user's token says its own; calls by key or operator name it by `?org=ID`,
    or leave it out for a user without one." That user is ``?user=ID``, or ``owner_id``, where the
    path names the user.
    """
    org_id, user_id = query_id(request, "org"), query_id(request, "user")
    if principal.reaches_all:
        if org_id is None and user_id is None and owner_id is None:
            raise BadMessageError("org: name the organisation, or the user who has none (user)")
    elif not principal.reaches_members and user_id not in (None, principal.user_id):
        raise PeerError(ErrorCode.FORBIDDEN, "a user's token reaches that user's data alone")
    return principal.tenant_for(org_id, user_id or owner_id or "")


# --- Parameters and bodies --------------------------------------------------------------


def path_id(request: Request, name: str = "id") -> str:
    """An id in the path; raises ``bad_message`` for a malformed one."""
    value: str = request.path_params[name]
    return _checked_id(value, name)


def query_id(request: Request, name: str) -> str | None:
    """An id in the query; None when it is missing."""
    value = request.query_params.get(name)
    return None if value is None else _checked_id(value, name)


def query_instant(request: Request, name: str) -> int | None:
    """An instant in the query, in epoch milliseconds; None: missing.

    Raises ``bad_message`` for a malformed one.
    """
    value = request.query_params.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 16):
        raise BadMessageError(f"{name}: expected an instant in epoch milliseconds")
    if int(value) > server_limits.INSTANT_AT_MAX:
        raise BadMessageError(f"{name}: must be at most {server_limits.INSTANT_AT_MAX}")
    return int(value)


def _checked_id(value: str, name: str) -> str:
    if not is_id(value):
        raise BadMessageError(f"{name}: expected {ID_TEXT}")
    return value


async def raw_body(request: Request, bytes_max: int | None = None) -> bytes:
    """The body, read at most up to its bound."""
    bytes_max = bytes_max or server_limits.BODY_BYTES_MAX
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > bytes_max:
            raise Problem(413, "bad_message", f"the body is over {bytes_max} bytes")
    return bytes(received)


def may_be_empty(body_type: type[msgspec.Struct]) -> bool:
    """Whether a request with such a body may come without one.

    A body's type says so by ``EMPTY_BODY = True``. Any other call that changes something needs its
    body: an empty body was more likely lost on the way than intended.
    """
    return bool(getattr(body_type, "EMPTY_BODY", False))


def read_body(raw: bytes, body_type: type[Body]) -> Body:
    """The body as ``body_type``; an error names the wrong field."""
    if not raw and not may_be_empty(body_type):
        raise BadMessageError("the body is empty: expected a JSON object")
    value = read_json(raw or b"{}", server_limits.BODY_BYTES_MAX)
    if not isinstance(value, dict):
        raise BadMessageError("expected a JSON object")
    # To JSON Schema 60.0 is an integer, and some clients write integers like this.
    fields = {
        name: int(part) if isinstance(part, float) and part.is_integer() else part
        for name, part in value.items()
    }
    try:
        return msgspec.convert(fields, body_type)
    except msgspec.ValidationError as error:
        raise BadMessageError(explain(error)) from None
