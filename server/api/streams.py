"""Event streams: the socket's messages as server-sent events, its requests by POST."""

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from protocol import limits
from protocol.wire.errors import BadMessageError
from protocol.wire.messages import Leave, Pause, Ping, Refresh, Resume, Start, Stop, Watch
from protocol.wire.stream_events import StreamPong
from server import limits as server_limits
from server.access.principals import Principal
from server.gateway.streams import Streams, UnknownStreamError
from server.http.openapi import Operation, described
from server.http.problems import Problem
from server.http.requests import bearer_of, path_id, principal_of, raw_body

SPACE = " \t\r\n"
"""White space around a value, as JSON has it."""
EVENT_STREAM = "text/event-stream"
Message = Refresh | Start | Pause | Resume | Stop | Leave | Watch | Ping | StreamPong
Messages = Annotated[
    list[Message], msgspec.Meta(min_length=1, max_length=server_limits.INBOX_MESSAGES_MAX)
]
Body = Message | Messages
_raw_messages = msgspec.json.Decoder(list[msgspec.Raw])


class StreamResponse(Response):
    """The answer that does not end: the events of a stream."""

    media_type = EVENT_STREAM

    def __init__(self, streams: Streams, principal: Principal, bearer: str, address: str) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._streams = streams
        self._principal = principal
        self._bearer = bearer
        self._address = address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the stream (the interface of ASGI)."""
        del scope
        sockets = self._streams.process.sockets
        if self._streams.process.draining or not sockets.admit(self._address):
            raise Problem(503, "unavailable", "no more streams now")
        try:
            await self._streams.listen()
            headers = self.raw_headers
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._streams.serve(self._principal, self._bearer, self._address, receive, send)
        finally:
            sockets.dismiss(self._address)


def streams_of(request: Request) -> Streams:
    """The event streams of the process that serves the request."""
    found: Streams = request.app.state.streams
    return found


@described(Operation(tag="streams", roles=("user",), answers={200: EVENT_STREAM}))
async def stream(request: Request) -> Response:
    """The socket's messages as server-sent events, where no WebSocket gets through.

    The first event is `open` with the `stream_id`, to which requests are sent. Each message of the
    socket is an event without a name, whose data is the message's JSON; `welcome` is the first.
    Answer each `ping` event at once. The last event is `close`, with a close code of the socket.
    """
    principal = principal_of(request)
    if request.method == "HEAD":
        return Response(media_type=EVENT_STREAM)
    bearer = bearer_of(request.headers)
    assert bearer is not None
    address = request.client.host if request.client else ""
    return StreamResponse(streams_of(request), principal, bearer, address)


@described(
    Operation(
        tag="streams",
        roles=("user",),
        budget="posts",
        path={"id": "The stream, as its `open` event said."},
        body=Body,
        answers={202: ""},
        errors={404: ("unknown_stream",)},
    )
)
async def stream_requests(request: Request) -> Response:
    """One message to a stream, or a list of messages in order.

    The answers arrive on the stream. The request itself is the proof of life, also when it has only
    the message `pong`, which answers a `ping` event. The token is the stream's user's. Any process
    takes the request.
    """
    sender = principal_of(request)
    stream_id = path_id(request)
    texts = messages_in(await raw_body(request, limits.MESSAGE_BYTES_MAX))
    try:
        await streams_of(request).post(sender, stream_id, texts)
    except UnknownStreamError:
        raise Problem(
            404, "unknown_stream", "there is no such stream, or it has ended; open a new one"
        ) from None
    return Response(status_code=202)


def messages_in(raw: bytes) -> list[str]:
    """The messages of a body, each as its own text.

    The connection decodes each like a message of a WebSocket. Raises ``bad_message`` for a body
    that is neither an object nor a list of objects.
    """
    try:
        text = raw.decode().strip(SPACE)
    except UnicodeDecodeError:
        raise BadMessageError("not UTF-8") from None
    if not text:
        raise BadMessageError("the body is empty: expected a message, or a list of messages")
    if text.startswith("{"):
        return [text]
    try:
        parts: list[Any] = _raw_messages.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise BadMessageError("expected a JSON object, or a list of objects") from None
    if not 1 <= len(parts) <= server_limits.INBOX_MESSAGES_MAX:
        raise BadMessageError(f"expected 1 to {server_limits.INBOX_MESSAGES_MAX} messages")
    texts = [bytes(part).decode().strip(SPACE) for part in parts]
    if not all(text.startswith("{") for text in texts):
        raise BadMessageError("expected a JSON object, or a list of objects")
    return texts


ROUTES = [
    Route("/v1/stream", stream, methods=["GET"]),
    Route("/v1/stream/{id}", stream_requests, methods=["POST"]),
]
