"""The push path where no WebSocket gets through: server-sent events and POSTs.

An event stream is a socket to the rest of the server. Its messages are events of one HTTP answer
that does not end; its requests arrive apart from it, each as an HTTP request. HTTP has no ping that
a browser answers by itself, so a ping is an event, and its answer a request. The arrival of any
request proves life.

The bounds are those of a WebSocket (see ``push``). Above 64 KiB in the connection's write buffer
ticks are skipped, and above 1 MiB behind it the stream is closed with 4001. ``BoundedHttp`` aborts
a connection whose buffer stays full for 5 s.
"""

import asyncio
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, ClassVar, Final, cast

import msgspec
from starlette.types import Receive, Send

from protocol.wire import stream_events
from protocol.wire.codec import encode
from protocol.wire.errors import CloseCode
from server.limits import (
    CONTROL_FRAMES_MAX,
    CONTROL_WINDOW_MS,
    INBOX_MESSAGES_MAX,
    WRITE_BUFFER_CLOSE_BYTES,
)
from server.transport.frames import payload_of
from server.transport.open_sockets import Carrier
from server.transport.websocket_protocol import Inbox


def message_event(payload: bytes) -> bytes:
    """The event of a message, whose JSON has no line feed."""
    return b"data: %b\n\n" % payload


def named_event(event: stream_events.StreamEvent) -> bytes:
    """An event of the stream's own, with its name."""
    name = str(event.__struct_config__.tag).encode()
    return b"event: %b\ndata: %b\n\n" % (name, encode(event))


PING: Final = named_event(stream_events.StreamPing())


class _Typed(msgspec.Struct):
    type: Any = None


_typed: Final = msgspec.json.Decoder(_Typed)


def _is_pong(text: str) -> bool:
    try:
        return bool(_typed.decode(text).type == "pong")
    except (msgspec.DecodeError, RecursionError):
        return False  # the connection answers what is wrong with the message


class EventStream:
    """One event stream: a ``PushSocket``. Call all methods on its loop.

    Its owner runs ``write`` and ``watch`` for as long as the stream is served.
    """

    carrier: ClassVar[Carrier] = "stream"

    __slots__ = (
        "_control_requests",
        "_control_until",
        "_flowing",
        "_inbox",
        "_loop",
        "_waiting",
        "_waiting_bytes",
        "_wake",
        "awaiting_pong",
        "due_at",
        "is_open",
        "on_alive",
        "peer_closed",
        "read_paused",
    )  # fmt: skip

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox()
        self.is_open = True
        self.on_alive: Callable[..., None] | None = None
        """Called with the instant of the proof: another process may have heard it before."""
        self.peer_closed = False
        """Always False: a client takes leave by ``leave``, and its connection merely breaks."""
        # The keepalive's data about this stream.
        self.due_at = 0.0
        self.awaiting_pong = False
        self.read_paused = False
        # Open, and the connection takes more.
        self._flowing = True
        # Events that wait for the writer, and their bytes.
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._control_requests = 0
        self._control_until = 0.0

    # --- For the application (PushSocket) ----------------------------------------------

    def push(self, frame: bytes) -> bool:
        """See ``PushSocket.push``."""
        return self._push(message_event(payload_of(frame)))

    def push_tick(self, frame: bytes) -> bool:
        """See ``PushSocket.push_tick``."""
        return self._flowing and self.push(frame)

    def ping_now(self) -> bool:
        """See ``PushSocket.ping_now``. Behind a full write buffer a ping proves nothing new."""
        return self._flowing and self._push(PING)

    def say(self, event: stream_events.StreamEvent) -> bool:
        """Sends an event of the stream's own."""
        return self._push(named_event(event))

    def close(self, code: int, reason: str = "") -> None:
        """Ends the stream with a ``close`` event.

        The application gets ``code`` at once. Does nothing when the stream is not open.
        """
        if not self.is_open:
            return
        if self._waiting_bytes > WRITE_BUFFER_CLOSE_BYTES:
            # The peer does not read them, and gets the notices among them after it is back.
            self._waiting.clear()
        self._waiting.append(named_event(stream_events.StreamClose(code=int(code), reason=reason)))
        self._end(code)

    def _push(self, event: bytes) -> bool:
        if not self.is_open:
            return False
        if self._waiting_bytes > WRITE_BUFFER_CLOSE_BYTES:
            self.close(CloseCode.SLOW_CONSUMER, "slow consumer")
            return False
        self._waiting.append(event)
        self._waiting_bytes += len(event)
        self._wake.set()
        return True

    def _end(self, code: int) -> None:
        self.is_open = self._flowing = False
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
        self._wake.set()

    # --- Proof of life -------------------------------------------------------------------

    def send_keepalive_ping(self) -> None:
        """Asks for a pong; called by the keepalive."""
        self.awaiting_pong = True
        self._push(PING)

    def keepalive_timeout(self) -> None:
        """Closes with 4003; called by the keepalive when nothing came in time."""
        self.close(CloseCode.NO_PONG, "no pong")

    # --- Requests ------------------------------------------------------------------------

    def take(self, texts: Sequence[str], came_at: int) -> bool:
        """Takes the messages of one request, which proves life as of ``came_at``.

        Returns False, and takes none, when the messages before them still wait in numbers.
        """
        self.awaiting_pong = False
        if self.is_open and self.on_alive is not None:
            self.on_alive(came_at)
        requests = [text for text in texts if not _is_pong(text)]
        if not requests:
            self._count_control_request()
        elif len(self._inbox.events) + len(requests) > INBOX_MESSAGES_MAX:
            return False
        for text in requests:
            self._inbox.put_nowait({"type": "websocket.receive", "text": text})
        return True

    def _count_control_request(self) -> None:
        now = self._loop.time()
        if now >= self._control_until:
            self._control_until = now + CONTROL_WINDOW_MS / 1000
            self._control_requests = 0
        self._control_requests += 1
        if self._control_requests > CONTROL_FRAMES_MAX:
            self.close(CloseCode.PROTOCOL_VIOLATION, "too many pongs")

    async def receive(self) -> MutableMapping[str, Any]:
        """Receives as for ASGI: messages, and at last the disconnect."""
        inbox = self._inbox
        while not inbox.events:
            inbox.waiter = self._loop.create_future()
            await inbox.waiter
        return cast(MutableMapping[str, Any], inbox.events.pop(0))

    # --- The connection ------------------------------------------------------------------

    async def write(self, send: Send) -> None:
        """Writes the events by ``send`` until the stream has ended.

        ``send`` waits while the connection's write buffer is full.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            has_ended = not self.is_open
            body = b"".join(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
            self._flowing = False
            await send({"type": "http.response.body", "body": body, "more_body": not has_ended})
            if has_ended:
                return
            # An empty write only waits until the peer has caught up.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            self._flowing = self.is_open

    async def watch(self, receive: Receive) -> None:
        """Ends the stream when its connection is lost."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if self.is_open:
            # A peer that does not read its events is cut.
            self._end(CloseCode.ABNORMAL if self._flowing else CloseCode.SLOW_CONSUMER)
