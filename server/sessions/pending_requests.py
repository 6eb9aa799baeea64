"""Who takes part in a session over a socket, and who waits for an answer of it.

A pending request is the token of a meter: the meter returns it with the answer.
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
    """A socket at a local session, as the local session sees it."""

    def send(self, frame: bytes) -> None:
        """Sends a frame that must arrive."""

    def send_tick(self, frame: bytes) -> bool:
        """Sends a frame that may be dropped; False when it was."""

    def probe(self) -> None:
        """Asks the peer for a proof of life."""

    def farewell(self, at_ms: int) -> None:
        """The user took leave of the session over another socket, at ``at_ms``: a proof of life
        in advance that is older ends. Sockets prove their own life, and stay."""

    def left(self, local: "LocalSession") -> None:
        """The local session is cleared: the session has ended."""


class PendingRequest(msgspec.Struct, frozen=True, eq=False):
    """A request that waits for its answer: the token that a meter hands back."""

    subscriber: Subscriber | None
    request_id: int | None
    missed: tuple[bytes, ...] = ()
    """Kept notices that a joining client has not seen."""
    failed: "ErrorCallback | None" = None
    """Called instead of an error message, where the answer is not a socket's."""
    shown: "AnswerCallback | None" = None


class ErrorCallback(Protocol):
    """Takes the error that a request came to."""

    def __call__(self, error: ProtocolError) -> None:
        """The request failed."""


class AnswerCallback(Protocol):
    """Takes the answer to a request that did not come over a socket."""

    def __call__(self, message: messages.ServerMessage | bytes) -> None:
        """The request was done."""


def refusal(limit: str | None) -> ProtocolError:
    """What is said to whoever asked for what a limit refuses (None: the session has ended)."""
    if limit is None:
        return RefusedError(ErrorCode.SESSION_ENDED, "the session has ended")
    return RefusedError(
        ErrorCode.LIMIT_REACHED, f"nothing is left to go on with: {limit}", limit=limit
    )


def fail(pending: PendingRequest | None, error: ProtocolError) -> None:
    """Tells whoever waits that the request came to nothing."""
    if pending is None:
        return
    if pending.failed is not None:
        pending.failed(error)
    elif pending.subscriber is not None:
        message = msgspec.structs.replace(error_message(error), id=pending.request_id)
        pending.subscriber.send(text_frame(encode(message)))
