"""uvicorn's WebSocket, made safe against its peer and small in memory.

uvicorn lacks the following; each has a test:

- Floods of fragments, control frames or tiny messages are bounded in memory, and in the
  time that one turn of the loop spends on them.
- Reading is paused only when the application is far behind, because a pause delays pongs.
- Every close ends within a bounded time, by an abort: ``transport.close()`` waits until
  the write buffer is empty, which a peer that does not read can prevent without end.
- A close frame is not overtaken by the reset that unread bytes provoke.
- The application sees a dropped connection as 1006, a closed one by its code.
- A request that the parser refuses is answered, not forgotten with its socket open.
- Neither the query string nor a message is logged, not even at DEBUG; nor is there a line
  for each socket.

uvicorn calls this API internal: its version is pinned, and ``tests/server/test_push.py`` names
every attribute that this module uses.
"""

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from typing import Any, ClassVar, Final, cast

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import State

from protocol.wire.errors import CloseCode
from server.limits import (
    CONTROL_FRAMES_MAX,
    CONTROL_WINDOW_MS,
    FRAGMENTS_PER_MESSAGE_MAX,
    FRAMES_PER_TURN,
    INBOX_MESSAGES_MAX,
    SLICE_BYTES,
    SLOW_PEER_ABORT_MS,
)
from server.transport.connection_limiter import Slot
from server.transport.frames import FrameReader
from server.transport.reading import reading_of

INVALID_DATA: Final = 1007
"""RFC 6455 7.4.1: data "not consistent with the type of the message"."""

# uvicorn's two lines for each socket add nothing to the metrics, and a flood would fill the disk.
_logger: Final = logging.getLogger("uvicorn.error.sockets")
_logger.setLevel(logging.WARNING)

_writable: Final = asyncio.Event()
_writable.set()


def forget_handshake(scope: MutableMapping[str, Any]) -> None:
    """Empties the scope of an accepted socket.

    What identifies its application stays. The scope lives as long as the application's task, and
    with it the headers: 3 KiB from a browser. Read headers before this call. Frameworks hold the
    same dictionary and the same list, so both are emptied in place.
    """
    kept = {key: scope[key] for key in ("type", "app", "path") if key in scope}
    scope.get("headers", []).clear()
    scope.clear()
    scope.update(kept)


class Inbox:
    """Events that wait for the application, their only reader.

    ``asyncio.Queue`` has four deques, 2.5 KiB. After a disconnect no event is added: the first
    disconnect is the true one, and uvicorn adds others after it.
    """

    __slots__ = ("ended", "events", "waiter")

    def __init__(self) -> None:
        self.events: list[ASGIReceiveEvent] = []
        self.waiter: asyncio.Future[None] | None = None
        self.ended = False

    def put_nowait(self, event: ASGIReceiveEvent) -> None:
        """Adds an event and wakes the reader."""
        if self.ended:
            return
        self.ended = event["type"] == "websocket.disconnect"
        self.events.append(event)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket of uvicorn with bounded memory and time."""

    closing_timeout: ClassVar[float] = SLOW_PEER_ABORT_MS / 1000
    """Seconds from a close, by either side, to the abort."""

    # Shared by all sockets: a wait for a set event does not use the loop.
    always_writable: ClassVar[asyncio.Event] = _writable

    # The attributes of the base, then ours: 8 bytes each; a dictionary would take 2 KiB.
    __slots__ = tuple(
        """app app_state asgi_version client close_sent close_timeout close_timer config conn
        connections curr_msg_data_type default_headers disconnected frames handshake_complete
        handshake_initiated initial_response last_ping_rtt logger loop pending_ping_payload
        ping_interval ping_sent_at ping_timeout ping_timer pong_timer queue read_paused
        request response root_path scheme scope server tasks transport writable

        control_frames control_until slot flowing inbox is_open on_alive parse_planned
        peer_closed reading unread
        """.split()  # noqa: SIM905 -- one name a line would fill a page
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _logger
        self.conn: FrameReader = FrameReader(config.ws_max_size)
        self.reading = reading_of(self.loop)
        self.inbox = Inbox()
        self.queue = cast("asyncio.Queue[ASGIReceiveEvent]", self.inbox)
        self.writable = self.always_writable
        # Accepted, and neither side has begun to close.
        self.is_open = False
        # Open, and the write buffer is not full.
        self.flowing = False
        # The peer has closed it, before this side did.
        self.peer_closed = False
        # Called at each proof of life, while open.
        self.on_alive: Callable[[], None] | None = None
        # Bytes that were read and not parsed yet, because the peer sends faster than this process
        # works.
        self.unread: memoryview | bytes = b""
        self.parse_planned = False
        self.control_frames = 0
        self.control_until = 0.0
        # The connection's slot, which is freed when the connection is gone.
        self.slot: Slot | None = None

    # --- Opening ---------------------------------------------------------------------

    def handle_connect(self, event: Request) -> None:
        """Answers a handshake, and starts the application if the handshake is valid."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.conn.forget_request()
        else:
            self._abort_later()

    def opened(self) -> None:
        """Marks the socket open after its handshake."""
        self.is_open = self.flowing = True
        self.server = self.client = None
        self._forget_request()

    def _forget_request(self) -> None:
        for name in ("request", "response", "scope"):
            if hasattr(self, name):
                delattr(self, name)

    def _refuse_request(self) -> None:
        # uvicorn passes the request whole. If the parser refuses it (too many headers, or too long
        # ones), the answer is ready and uvicorn does not send it.
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()
        self._abort_later()

    async def send(self, message: ASGISendEvent) -> None:
        """Sends for ASGI; waits while the write buffer is full.

        Raises ``ClientDisconnected`` for a message to a socket that either side has closed; a
        repeated close does nothing.
        """
        if not self.handshake_complete:
            await self._answer(message)
            return
        await self.writable.wait()
        if message["type"] == "websocket.close":
            self.close(message.get("code", 1000), message.get("reason") or "")
        elif self.is_open:
            await super().send(message)
        else:
            raise ClientDisconnected

    async def _answer(self, message: ASGISendEvent) -> None:
        if not self.disconnected:
            # uvicorn logs the URL, and a query may contain secrets. The application has had the
            # scope since its start; this is another dictionary.
            self.scope = {**self.scope, "query_string": b""}
        await super().send(message)
        if self.conn.state is State.OPEN:
            self.opened()
        elif self.transport.is_closing():
            # The handshake is refused and therefore complete; uvicorn would report an error of
            # ours.
            self.handshake_complete = True
            self._abort_later()

    # --- Reading -----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parses the bytes that arrived, or lets the socket wait.

        It waits when earlier bytes, or other sockets, still wait.
        """
        self.unread = bytes(self.unread) + data if self.unread else data
        if self.read_paused:
            return
        if self.parse_planned:
            # Bytes arrived twice and are still unread: pause.
            self.read_paused = True
            self.transport.pause_reading()
        elif self.reading.take():
            self._parse()
        else:
            self._plan_parse()

    def read_now(self) -> None:
        """Parses the bytes that waited for their turn."""
        if self.parse_planned:
            self._parse()

    def _parse(self) -> None:
        self.parse_planned = False
        if self.disconnected:
            return
        unread = memoryview(self.unread)
        frames = 0
        while unread and frames < FRAMES_PER_TURN and not self._is_behind():
            self.conn.receive_data(cast(bytes, unread[:SLICE_BYTES]))
            unread = unread[SLICE_BYTES:]
            frames += len(self.conn.events)
            # Also after a parser error: the frames before the error count.
            self.handle_events()
            if self.conn.parser_exc is not None:
                self.handle_parser_exception()
        self.unread = unread or b""
        if not self.handshake_initiated and not unread:
            self._refuse_request()
        else:
            self._pace()

    def _pace(self) -> None:
        """Pauses reading, plans the parse of unread bytes, or resumes reading."""
        if self.transport.is_closing():
            return
        if self.unread or self._is_behind():
            self.read_paused = True
            self.transport.pause_reading()
            if not self._is_behind():
                self._plan_parse()
        elif self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def _is_behind(self) -> bool:
        # After a close messages are dropped, and reading continues until the peer's close.
        return not self.close_sent and len(self.inbox.events) >= INBOX_MESSAGES_MAX

    def _plan_parse(self) -> None:
        # In another turn: a flood must not hold the loop, even if the application keeps up with it,
        # nor may the pongs of hundreds of sockets that come together.
        if not self.parse_planned:
            self.parse_planned = True
            self.reading.later(self)

    def _alive(self) -> None:
        if self.is_open and self.on_alive is not None:
            self.on_alive()

    def handle_text(self, event: Frame) -> None:
        """Begins a text message."""
        self._alive()
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """Begins a binary message; the application decides about it."""
        self._alive()
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """Continues a message. Empty fragments count like others."""
        self._alive()
        if len(self.frames) < FRAGMENTS_PER_MESSAGE_MAX:
            super().handle_cont(event)
        else:
            self.fail(CloseCode.PROTOCOL_VIOLATION, "too many fragments")

    def handle_pong(self, event: Frame) -> None:
        """Notes a proof of life, even if no ping was sent."""
        self._alive()
        self._count_control_frame()

    def handle_ping(self) -> None:
        """Answers a ping."""
        self._count_control_frame()
        pongs = self.conn.data_to_send()
        if pongs and not self.close_sent:
            self.send_pongs(pongs)

    def send_pongs(self, pongs: list[bytes]) -> None:
        """Sends the answers to pings that arrived together, oldest first."""
        self.transport.write(b"".join(pongs))

    def _count_control_frame(self) -> None:
        now = self.loop.time()
        if now >= self.control_until:
            self.control_until = now + CONTROL_WINDOW_MS / 1000
            self.control_frames = 0
        self.control_frames += 1
        if self.control_frames > CONTROL_FRAMES_MAX:
            self.fail(CloseCode.PROTOCOL_VIOLATION, "too many control frames")

    def send_receive_event_to_app(self) -> None:
        """Hands a whole message to the application."""
        data = b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "bytes":
            self.inbox.put_nowait({"type": "websocket.receive", "bytes": data})
            return
        try:
            self.inbox.put_nowait({"type": "websocket.receive", "text": data.decode()})
        except UnicodeDecodeError:
            self.fail(INVALID_DATA, "invalid UTF-8")

    async def receive(self) -> ASGIReceiveEvent:
        """Receives for ASGI: the next event; the last event is the disconnect."""
        inbox = self.inbox
        while not inbox.events:
            inbox.waiter = self.loop.create_future()
            await inbox.waiter
        event = inbox.events.pop(0)
        if self.read_paused and not inbox.events:
            self._plan_parse()
        return event

    # --- Closing -----------------------------------------------------------------------

    def close(self, code: int, reason: str = "") -> None:
        """Closes with a handshake of bounded time.

        The application gets ``code`` at once. Does nothing when the socket is not open.
        """
        if self.is_open:
            self.conn.send_close(code, reason)
            self._closing(code, reason)

    def fail(self, code: int, reason: str) -> None:
        """Closes, and ignores later frames (RFC 6455 7.1.7, _Fail the WebSocket Connection_)."""
        if self.close_sent:
            return
        # If the parser has failed already, its close is the one to send.
        self.conn.fail(code, reason)
        self._closing(code, reason)
        # The peer has sent more than was read. A close of the transport now would reset the
        # connection, and the reset overtakes the close frame: the peer would see 1006 and
        # reconnect.
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def handle_parser_exception(self) -> None:
        """Closes with the parser's code: 1002, 1007 or 1009."""
        close = self.conn.close_sent
        if close is not None:
            self.fail(close.code, close.reason)
        else:
            # Frames came before the handshake was answered: there is no WebSocket to close.
            self.transport.abort()

    def _closing(self, code: int, reason: str) -> None:
        self.is_open = self.flowing = False
        self.close_sent = True
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self._abort_later()
        if self.read_paused:
            self._plan_parse()

    def abort(self, code: int, reason: str) -> None:
        """Cuts the connection; the application gets ``code``, the peer nothing."""
        self.is_open = self.flowing = False
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.abort()

    def _abort_later(self) -> None:
        if self.close_timer is None and not self.disconnected:
            self.close_timer = self.loop.call_later(self.closing_timeout, self.transport.abort)

    def handle_close(self, event: Frame) -> None:
        """Handles the peer's close, or its answer to our close.

        The peer's own close is its last proof of life.
        """
        self._alive()
        self.peer_closed = self.is_open
        self.is_open = self.flowing = False
        super().handle_close(event)
        self._abort_later()

    def shutdown(self) -> None:
        """Closes with 1012 when the server stops.

        A drain before this leaves few sockets.
        """
        if self.is_open:
            self.close(CloseCode.SERVICE_RESTART)
        elif not self.close_sent and not self.transport.is_closing():
            super().shutdown()
            self._abort_later()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Handles the application's return; without a close it drops the connection."""
        super().on_task_complete(task)
        if self.transport.is_closing():
            self._abort_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Gives the application 1006, unless another close came first.

        The other close was given before, or is still unread.
        """
        self.read_now()
        self.is_open = self.flowing = False
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})
        super().connection_lost(exc)
        self.on_alive = None
        self.unread = b""
        self._forget_request()
        if self.slot is not None:
            self.slot.leave()
