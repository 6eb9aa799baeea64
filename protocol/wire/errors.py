"""Errors of the wire: whose fault, and which closes allow reconnects.

The code that finds an error in a request raises a :class:`ProtocolError`, and
the shell turns this into an ``error`` message or a problem document. Our own bug is any
other exception. The class of a ProtocolError says whose fault it is:

=====================  ==============================================================
:class:`PeerError`     the peer's: the request was wrong or not allowed
:class:`RefusedError`  none: the request was right, but the present state forbids it
:class:`ServiceError`  ours: the request was right, but the server cannot serve it now
=====================  ==============================================================
"""

from enum import IntEnum, StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """The codes of the ``error`` message (PROTOCOL section 1)."""

    BAD_MESSAGE = "bad_message"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    UNKNOWN_KIND = "unknown_kind"
    UNKNOWN_SESSION = "unknown_session"
    SESSION_ENDED = "session_ended"
    LIMIT_REACHED = "limit_reached"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"


RETRYABLE_CODES = frozenset({ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE})
"""Codes after which the same request may succeed a little later, unchanged."""


class CloseCode(IntEnum):
    """Why a WebSocket was closed.

    From 4500 on, no client reconnects by itself.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    ABNORMAL = 1006
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    DRAINING = 4000
    SLOW_CONSUMER = 4001
    TOKEN_EXPIRED = 4002
    NO_PONG = 4003
    BAD_TOKEN = 4500
    AUTHENTICATION_TIMEOUT = 4501
    PROTOCOL_VIOLATION = 4502
    TOO_MANY_CONNECTIONS = 4503


def may_reconnect(close_code: int) -> bool:
    """Whether a client reconnects after ``close_code``.

    PROTOCOL section 1: "never after 4500-4999; after any other code it comes back too, for proxies
    close as they like". A client that closes the socket itself does not reconnect.
    """
    return not 4500 <= close_code <= 4999


class ProtocolError(Exception):
    """A request that is answered with an ``error``.

    Raise one of the subclasses.

    ``message`` is for the person who reads the log of the other side. It names the mistake and its
    place, and reveals nothing that the peer may not know. ``retryable`` follows from the code
    unless it is given. ``limit`` names the limit of a ``limit_reached``. ``retry_after_ms`` is the
    wait after a ``rate_limited``. ``id`` is the request's own ``id``, which the answer echoes; None
    if it was not readable.
    """

    codes: ClassVar[frozenset[ErrorCode]] = frozenset(ErrorCode)

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retryable: bool | None = None,
        limit: str | None = None,
        retry_after_ms: int | None = None,
        id: int | None = None,  # noqa: A002 (the wire's own name)
    ) -> None:
        assert code in self.codes, f"{code} is not an error of {type(self).__name__}"
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = code in RETRYABLE_CODES if retryable is None else retryable
        self.limit = limit
        self.retry_after_ms = retry_after_ms
        self.id = id

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class PeerError(ProtocolError):
    """The peer's fault: a wrong, forbidden or too frequent request."""

    codes = frozenset(
        {
            ErrorCode.BAD_MESSAGE,
            ErrorCode.UNAUTHENTICATED,
            ErrorCode.FORBIDDEN,
            ErrorCode.UNKNOWN_KIND,
            ErrorCode.UNKNOWN_SESSION,
            ErrorCode.RATE_LIMITED,
        }
    )


class BadMessageError(PeerError):
    """A message, body or field that differs from PROTOCOL; ``message`` names it."""

    codes = frozenset({ErrorCode.BAD_MESSAGE})

    def __init__(self, message: str, *, id: int | None = None) -> None:  # noqa: A002
        super().__init__(ErrorCode.BAD_MESSAGE, message, id=id)


class RefusedError(ProtocolError):
    """A correct request that the state forbids: ended, or limited."""

    codes = frozenset({ErrorCode.SESSION_ENDED, ErrorCode.LIMIT_REACHED})


class ServiceError(ProtocolError):
    """Our fault: a part that the server needs does not answer.

    A retry is always sensible.
    """

    codes = frozenset({ErrorCode.UNAVAILABLE})

    def __init__(self, message: str, *, id: int | None = None) -> None:  # noqa: A002
        super().__init__(ErrorCode.UNAVAILABLE, message, id=id)
