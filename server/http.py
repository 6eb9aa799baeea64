"""What every HTTP endpoint shares: who asks, what they sent, and how errors look.

Errors are RFC 9457 problem documents with a stable ``code``. Bodies are read strictly,
by the same reader as the socket's messages.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

from protocol import limits
from protocol.codec import read_json
from protocol.errors import BadMessageError, ErrorCode, PeerError, ProtocolError
from server.auth import Principal
from server.process import Process
from storage.live import LiveError
from storage.records import RefusedError, UnavailableError

log = structlog.get_logger()

Body = TypeVar("Body", bound=msgspec.Struct)
Endpoint = Callable[[Request], Awaitable[Response]]

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
TITLES = {
    400: "Bad request",
    401: "Unauthenticated",
    402: "Payment required",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    422: "Unprocessable content",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}


class Problem(Exception):  # noqa: N818 (RFC 9457 calls it so)
    """An error of the HTTP side with a code of its own (RFC 9457).

    ``extensions`` are further members of the document: what is missing, say.
    """

    def __init__(self, status: int, code: str, detail: str, **extensions: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.extensions = extensions

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
        if self.status in (429, 503):
            headers["Retry-After"] = "1"
        return Response(
            self.body(), self.status, headers, media_type="application/problem+json"
        )


def problem_of(error: Exception) -> Problem:
    """The problem that an exception comes to; our own bugs are 500 and logged."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ProtocolError):
        extensions = {"limit": error.limit} if error.limit else {}
        return Problem(STATUS[error.code], error.code.value, error.message, **extensions)
    if isinstance(error, LiveError | UnavailableError):
        log.warning("request_unanswered", error=str(error))
        return Problem(503, "unavailable", "a part that we need does not answer")
    if isinstance(error, RefusedError):
        return Problem(422, "bad_message", str(error))
    log.error("request_failed", exc_info=error)
    return Problem(500, "internal_error", "this is our fault, and it is logged")


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response of a struct or plain value."""
    body = msgspec.json.encode(value) if isinstance(value, msgspec.Struct) else orjson.dumps(value)
    return Response(body, status, headers, media_type="application/json")


def process_of(request: Request) -> Process:
    """The process that serves the request."""
    process: Process = request.app.state.process
    return process


def bearer_of(headers: Any) -> str | None:
    """The token of an ``Authorization`` header; None when there is none."""
    value: str = headers.get("authorization", "")
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else None


async def principal_of(request: Request, *roles: Any) -> Principal:
    """Who asks; raises ``unauthenticated``, or ``forbidden`` for none of ``roles``."""
    bearer = bearer_of(request.headers)
    if bearer is None:
        raise PeerError(ErrorCode.UNAUTHENTICATED, "an Authorization header is missing")
    principal = await process_of(request).authenticator.authenticate(bearer)
    if roles:
        principal.require(*roles)
    return principal


async def raw_body(request: Request) -> bytes:
    """The body, read no further than its bound."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > limits.BODY_BYTES_MAX:
            raise Problem(413, "bad_message", f"the body is over {limits.BODY_BYTES_MAX} bytes")
    return bytes(received)


def read_body(raw: bytes, body_type: type[Body]) -> Body:
    """The body as ``body_type``; the error names the field that is wrong."""
    value = read_json(raw or b"{}", limits.BODY_BYTES_MAX)
    if not isinstance(value, dict):
        raise BadMessageError("expected a JSON object")
    try:
        return msgspec.convert(value, body_type)
    except msgspec.ValidationError as error:
        raise BadMessageError(str(error)) from None


