"""What an event stream says of itself, as types.

The socket's messages are events without a name. These events have their ``type`` as their name. A
client answers ``ping`` by a request with the message ``pong``; a WebSocket has frames for all of
them.
"""

from typing import Annotated

import msgspec

from protocol.wire.fields import describe


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """An event of the stream itself."""


class StreamOpen(StreamEvent, frozen=True, kw_only=True, tag="open"):
    """The first event. The stream's requests go to `POST /v1/stream/{stream_id}`."""

    stream_id: Annotated[str, describe("The stream's unguessable id.")]


class StreamPing(StreamEvent, frozen=True, kw_only=True, tag="ping"):
    """Asks for a proof of life. Answered at once, by `pong`."""


class StreamClose(StreamEvent, frozen=True, kw_only=True, tag="close"):
    """The last event: the close code of a socket, and why."""

    code: Annotated[int, describe("A close code of the socket.")]
    reason: Annotated[str, describe("The cause, for readers of the log.")]


class StreamPong(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pong"):
    """The answer to `ping`, in a request. It is not answered."""


STREAM_EVENTS: tuple[type[StreamEvent], ...] = (StreamOpen, StreamPing, StreamClose)
STREAM_TYPES: tuple[type[msgspec.Struct], ...] = (*STREAM_EVENTS, StreamPong)
"""What a stream carries beside the messages of the socket, in both directions."""
