"""What every HTTP endpoint shares: who asks, what they sent, and how errors look.

Errors are RFC 9457 problem documents with a stable ``code``. Bodies are read strictly,
by the same reader as the socket's messages.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import orjson
import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol import limits
from protocol.wire.codec import explain, read_json
from protocol.wire.errors import BadMessageError, ErrorCode, PeerError, ProtocolError
from protocol.wire.fields import ID_TEXT, is_id
from server.access.bad_guesses import TooManyGuessesError
from server.access.credentials import Principal, Role
from server.process import Process
from server.runtime.metrics import Metrics
from server.usage.reported_minutes import MeteredKindError
from storage.postgres.records import RefusedError, UnavailableError
from storage.redis.live import LiveError

log = structlog.get_logger()

Body = TypeVar("Body", bound=msgspec.Struct)
Endpoint = Callable[[Request], Awaitable[Response]]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
"""Methods that metrics name; a peer could make up any number of others."""

STATUS = {
    ErrorCode.BAD_MESSAGE: 400,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.UNKNOWN_KIND: 422,
    ErrorCode.UNKNOWN_SESSION: 404,
    ErrorCode.SESSION_ENDED: 409,
    ErrorCode.LIMIT_REACHED: 402,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.UNAVAILABLE: 503,
}
# Everything comes from here and nothing is inline, so nothing else may run.
CONTENT_POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
TITLES = {
    400: "Bad request",
    401: "Unauthenticated",
    402: "Payment required",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Content too large",
    422: "Unprocessable content",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}


class Problem(Exception):  # noqa: N818 (RFC 9457 calls it so)
    """An error of the HTTP side with a code of its own (RFC 9457).

    ``retry_after_s`` is when the same request may succeed; ``extensions`` are further
    members of the document: what is missing, say.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        retry_after_s: int | None = None,
        **extensions: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.extensions = extensions
        if retry_after_s is None and status in (429, 503):
            retry_after_s = 1
        # What is due in a month is no time for a client to wait.
        if retry_after_s is not None:
            retry_after_s = max(1, min(retry_after_s, limits.RETRY_AFTER_S_MAX))
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The problem document."""
        return orjson.dumps(
            {
                "type": "about:blank",
                "title": TITLES.get(self.status, "Error"),
                "status": self.status,
                "code": self.code,
                "detail": self.detail,
                **self.extensions,
            }
        )

    def response(self) -> Response:
        """The document as a response."""
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        return json_response(self.body(), self.status, headers)


def problem_of(error: Exception) -> Problem:
    """The problem that an exception comes to; our own bugs are 500 and logged."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ProtocolError):
        extensions: dict[str, Any] = {"limit": error.limit} if error.limit else {}
        retry_after_s = None
        if error.retry_after_ms is not None:
            retry_after_s = max(1, -(-error.retry_after_ms // 1000))
        return Problem(
            STATUS[error.code],
            error.code.value,
            error.message,
            retry_after_s=retry_after_s,
            **extensions,
        )
    if isinstance(error, LiveError | UnavailableError):
        log.warning("request_unanswered", error=str(error))
        return Problem(503, "unavailable", "a part that we need does not answer")
    if isinstance(error, MeteredKindError):
        return Problem(422, "metered_kind", str(error))
    if isinstance(error, RefusedError):
        return Problem(422, "bad_message", str(error))
    log.error("request_failed", exc_info=error)
    return Problem(500, "internal_error", "this is our fault, and it is logged")


def json_response(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A response of JSON that is encoded already; with an error's status, a problem."""
    media_type = "application/json" if status < 400 else "application/problem+json"
    return Response(body, status, headers, media_type=media_type)


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response of a struct or plain value, whatever its status means."""
    body = msgspec.json.encode(value) if isinstance(value, msgspec.Struct) else orjson.dumps(value)
    return Response(body, status, headers, media_type="application/json")


def process_of(request: Request) -> Process:
    """The process that serves the request."""
    process: Process = request.app.state.process
    return process


# --- Who asks ------------------------------------------------------------------------


def bearer_of(headers: Any) -> str | None:
    """The token of an ``Authorization`` header; None when there is none."""
    value: str = headers.get("authorization", "")
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else None


async def principal_of(request: Request, *roles: Role) -> Principal:
    """Who asks; raises ``unauthenticated``, or ``forbidden`` for none of ``roles``.

    Bad credentials get ``rate_limited`` once their address has used up its guesses, and so
    does a user who asks too much. Good credentials pass from every address.
    """
    process = process_of(request)
    address = request.client.host if request.client else ""
    bearer = bearer_of(request.headers)
    if bearer is None:
        raise PeerError(
            ErrorCode.UNAUTHENTICATED,
            "expected a header `Authorization: Bearer` with a token or key",
        )
    try:
        principal = await process.failures.counted(address, process.authenticator, bearer)
    except TooManyGuessesError as error:
        wait_ms = process.failures.wait_ms(address)
        raise Problem(
            429, error.code.value, error.message, retry_after_s=max(1, -(-wait_ms // 1000))
        ) from None
    process.requests.check(principal)
    if roles:
        principal.require(*roles)
    return principal


def tenant_of_call(request: Request, principal: Principal, owner_id: str | None = None) -> str:
    """The tenant that a call is about.

    PROTOCOL section 2: "A user's token says its own; calls by key or operator name it by
    `?org=ID`, or leave it out for a user without one." That user is ``?user=ID``, or
    ``owner_id``, where the path says who it is.
    """
    org_id, user_id = query_id(request, "org"), query_id(request, "user")
    if principal.is_key or principal.is_operator:
        if org_id is None and user_id is None and owner_id is None:
            raise BadMessageError("org: name the organisation, or the user who has none (user)")
    elif user_id not in (None, principal.user_id):
        raise PeerError(ErrorCode.FORBIDDEN, "a user's token reaches that user's data alone")
    return principal.tenant_for(org_id, user_id or owner_id or "")


# --- What they sent -----------------------------------------------------------------


def path_id(request: Request, name: str = "id") -> str:
    """An id in the path; raises ``bad_message`` for what is none."""
    value: str = request.path_params[name]
    return _checked_id(value, name)


def query_id(request: Request, name: str) -> str | None:
    """An id in the query; None when it is not there."""
    value = request.query_params.get(name)
    return None if value is None else _checked_id(value, name)


def _checked_id(value: str, name: str) -> str:
    if not is_id(value):
        raise BadMessageError(f"{name}: expected {ID_TEXT}")
    return value


async def raw_body(request: Request) -> bytes:
    """The body, read no further than its bound."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > limits.BODY_BYTES_MAX:
            raise Problem(413, "bad_message", f"the body is over {limits.BODY_BYTES_MAX} bytes")
    return bytes(received)


def may_be_empty(body_type: type[msgspec.Struct]) -> bool:
    """Whether a request with such a body may come without one.

    A body's type says so by ``EMPTY_BODY = True``. Any other call that changes something
    needs its body: an empty one is more likely lost on the way than meant.
    """
    return bool(getattr(body_type, "EMPTY_BODY", False))


def read_body(raw: bytes, body_type: type[Body]) -> Body:
    """The body as ``body_type``; the error names the field that is wrong."""
    if not raw and not may_be_empty(body_type):
        raise BadMessageError("the body is empty: expected a JSON object")
    value = read_json(raw or b"{}", limits.BODY_BYTES_MAX)
    if not isinstance(value, dict):
        raise BadMessageError("expected a JSON object")
    # To JSON Schema 60.0 is an integer, and some clients write it so.
    fields = {
        name: int(part) if isinstance(part, float) and part.is_integer() else part
        for name, part in value.items()
    }
    try:
        return msgspec.convert(fields, body_type)
    except msgspec.ValidationError as error:
        raise BadMessageError(explain(error)) from None


# --- Around every request -------------------------------------------------------------


class Observed:
    """Around every endpoint: errors as problems, headers that protect, and a measurement."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request (the interface of ASGI); sockets go past."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_at, status = time.perf_counter(), 0

        async def respond(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                if not headers.get("content-type", "").startswith("application/"):
                    headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
                if scope["path"].startswith("/v1/") or status >= 400:
                    # What an account has is nobody's to keep, and an error is over soon.
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self.app(scope, receive, respond)
        except ClientDisconnect:
            pass  # it went in the middle of its body, and nobody is left to be answered
        except Exception as error:
            if status:
                raise  # part of the answer is gone: only the connection's end can tell
            await problem_of(error).response()(scope, receive, respond)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.observe(
                method, route, str(status), time.perf_counter() - started_at
            )
