"""Errors of the HTTP side: RFC 9457 documents with stable codes."""

from typing import Any

import orjson
import structlog
from starlette.responses import Response

from protocol.wire.errors import ErrorCode, ProtocolError
from server import limits as server_limits
from server.http.responses import json_response
from server.usage.reported_minutes import MeteredKindError
from storage.postgres.records import RejectedError, UnavailableError
from storage.redis.live import LiveError

log = structlog.get_logger()

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
    413: "Content too large",
    415: "Unsupported media type",
    422: "Unprocessable content",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}


class Problem(Exception):  # noqa: N818 (RFC 9457 calls it so)
    """An error of the HTTP side with its own code (RFC 9457).

    ``retry_after_s`` is the time until the same request may succeed; ``extensions`` are further
    members of the document, for example what is missing.
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
        # A monthly limit may reset in weeks, which is too long for a client to wait.
        if retry_after_s is not None:
            retry_after_s = max(1, min(retry_after_s, server_limits.RETRY_AFTER_S_MAX))
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
    """The problem document of an exception.

    Bugs of the server are 500 and logged.
    """
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
        return Problem(503, "unavailable", "a service that the server needs does not answer")
    if isinstance(error, MeteredKindError):
        return Problem(422, "metered_kind", str(error))
    if isinstance(error, RejectedError):
        return Problem(422, "bad_message", str(error))
    log.error("request_failed", exc_info=error)
    return Problem(500, "internal_error", "an error of the server, which is logged")
