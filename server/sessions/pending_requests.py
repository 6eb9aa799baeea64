"""Subscribers of a session, and requests that wait for an answer.

A pending request is a token of the meter: the meter returns it with the answer.
"""

from typing import TYPE_CHECKING, Protocol

import msgspec

from protocol.wire import messages
from protocol.wire.codec import encode, error_message
from protocol.wire.errors import ErrorCode, ProtocolError, RefusedError
from server.transport.frames import text_frame

if TYPE_CHECKING:
    from server.sessions.local_session import LocalSession


class Subscriber(Protocol):
    """A socket of a session, as the local session sees it."""

    def send(self, frame: bytes) -> None:
        """Sends a frame that must arrive."""

    def send_tick(self, frame: bytes) -> bool:
        """Sends a frame that may be dropped; returns False if it was."""

    def probe(self) -> None:
        """Asks the peer for a proof of life."""

    def farewell(self, at_ms: int) -> None:
        """Ends proofs of life in advance that are older than ``at_ms``.

        At ``at_ms`` the user took leave of the session over another socket. Sockets prove their own
        life, and stay.
        """

    def left(self, local: "LocalSession") -> None:
        """Reports that the subscriber takes no part in the session any more.

        The session ended, its start failed, or its user needed the place of this observer.
        """


class PendingRequest(msgspec.Struct, frozen=True, eq=False):
    """A request that waits for its answer; a token of the meter."""

    subscriber: Subscriber | None
    request_id: int | None
    missed: tuple[bytes, ...] = ()
    """Kept notices that a joining client has not seen."""
    failed: "ErrorCallback | None" = None
    """Called in place of an error message if the request did not come over a socket."""
    shown: "AnswerCallback | None" = None


class ErrorCallback(Protocol):
    """Takes the error with which a request failed."""

    def __call__(self, error: ProtocolError) -> None:
        """The request failed."""


class AnswerCallback(Protocol):
    """Takes the answer to a request that came without a socket."""

    def __call__(self, message: messages.ServerMessage | bytes) -> None:
        """The request was done."""


def refusal(limit: str | None) -> ProtocolError:
    """The error for a request that ``limit`` refuses; None: session ended."""
    if limit is None:
        return RefusedError(ErrorCode.SESSION_ENDED, "the session has ended")
    return RefusedError(ErrorCode.LIMIT_REACHED, f"the limit is used up: {limit}", limit=limit)


def fail(pending: PendingRequest | None, error: ProtocolError) -> None:
    """Answers a waiting request with an error."""
    if pending is None:
        return
    if pending.failed is not None:
        pending.failed(error)
    elif pending.subscriber is not None:
        message = msgspec.structs.replace(error_message(error), id=pending.request_id)
        pending.subscriber.send(text_frame(encode(message)))
