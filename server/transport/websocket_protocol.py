"""uvicorn's WebSocket, made safe against its peer and small in memory.

What uvicorn leaves undone, and this does (each has a test):

- Floods of fragments, control frames or tiny messages are bounded in memory, and in the
  time that one turn of the loop spends on them.
- Reading is paused only when the application is far behind, for a pause holds back pongs.
- Every close ends within a bounded time, by an abort: ``transport.close()`` waits until
  the write buffer is empty, which a peer that does not read can prevent for ever.
- A close frame is not overtaken by the reset that unread bytes provoke.
- A dropped connection is told to the application as 1006, a closed one by its code.
- A request that the parser refuses is answered, not forgotten with its socket open.
- Neither the query string nor a message is logged, not at DEBUG either; nor is there a line
  for each socket.

uvicorn calls this API internal: its version is pinned, and ``tests/server/test_push.py``
names every attribute that is relied on.
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

# Two lines a socket say nothing that the metrics do not, and a flood would fill the disk.
_logger: Final = logging.getLogger("uvicorn.error.sockets")
_logger.setLevel(logging.WARNING)

_writable: Final = asyncio.Event()
_writable.set()


def forget_handshake(scope: MutableMapping[str, Any]) -> None:
    """Empty the scope of an accepted socket, but for what says which application it is in.

    The scope lives as long as the application's task, and with it the headers: 3 KiB of a
    browser's. Whoever needs one reads it before. Frameworks hold the same dictionary and the
    same list, so both are emptied in place.
    """
    kept = {key: scope[key] for key in ("type", "app", "path") if key in scope}
    scope.get("headers", []).clear()
    scope.clear()
    scope.update(kept)


class Inbox:
    """Events that wait for the application, their one reader.

    ``asyncio.Queue`` has four deques, 2.5 KiB. After a disconnect nothing is added: the
    first one is the true one, and uvicorn puts others behind it.
    """

    __slots__ = ("ended", "events", "waiter")

    def __init__(self) -> None:
        self.events: list[ASGIReceiveEvent] = []
        self.waiter: asyncio.Future[None] | None = None
        self.ended = False

    def put_nowait(self, event: ASGIReceiveEvent) -> None:
        """Add an event and wake the reader."""
        if self.ended:
            return
        self.ended = event["type"] == "websocket.disconnect"
        self.events.append(event)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """One WebSocket of uvicorn's, whose memory and time are bounded."""

    closing_timeout: ClassVar[float] = SLOW_PEER_ABORT_MS / 1000
    """Seconds from a close, by whichever side, to the abort."""

    # Shared by all: waiting for an event that is set touches no loop.
    always_writable: ClassVar[asyncio.Event] = _writable

    # The attributes of the base, then ours: 8 bytes each, and in a dictionary 2 KiB.
    __slots__ = tuple(
        """app app_state asgi_version client close_sent close_timeout close_timer config conn
        connections curr_msg_data_type default_headers disconnected frames handshake_complete
        handshake_initiated initial_response last_ping_rtt logger loop pending_ping_payload
        ping_interval ping_sent_at ping_timeout ping_timer pong_timer queue read_paused
        request response root_path scheme scope server tasks transport writable

        control_frames control_until slot flowing inbox is_open on_alive parse_planned
        peer_closed reading unread
        """.split()  # noqa: SIM905 -- a name a line would be a page
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
        # What was read and not parsed yet, because its peer sends faster than we work.
        self.unread: memoryview | bytes = b""
        self.parse_planned = False
        self.control_frames = 0
        self.control_until = 0.0
        # The connection's slot, which it gives up when it is gone.
        self.slot: Slot | None = None

    # --- Opening ---------------------------------------------------------------------

    def handle_connect(self, event: Request) -> None:
        """Answer a handshake, and start the application if it is one."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.conn.forget_request()
        else:
            self._abort_later()

    def opened(self) -> None:
        """The handshake is over."""
        self.is_open = self.flowing = True
        self.server = self.client = None
        self._forget_request()

    def _forget_request(self) -> None:
        for name in ("request", "response", "scope"):
            if hasattr(self, name):
                delattr(self, name)

    def _refuse_request(self) -> None:
        # uvicorn passes the request whole. If it is none to the parser (too many headers,
        # or too long ones), the answer is ready and uvicorn does not send it.
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()
        self._abort_later()

    async def send(self, message: ASGISendEvent) -> None:
        """Send for ASGI: waits while the write buffer is full.

        Raises ``ClientDisconnected`` for a message to a socket that is not open any more,
        whichever side closed it; a close is then taken as done.
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
            # uvicorn logs the URL, and a query can hold what no log should. The
            # application has the scope since it started; this is another.
            self.scope = {**self.scope, "query_string": b""}
        await super().send(message)
        if self.conn.state is State.OPEN:
            self.opened()
        elif self.transport.is_closing():
            # Refused, and complete with that: to uvicorn it would be an error of ours.
            self.handshake_complete = True
            self._abort_later()

    # --- Reading -----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless an earlier part, or other sockets, still wait for a turn."""
        self.unread = bytes(self.unread) + data if self.unread else data
        if self.read_paused:
            return
        if self.parse_planned:
            # Twice heard and not read yet: that is enough.
            self.read_paused = True
            self.transport.pause_reading()
        elif self.reading.take():
            self._parse()
        else:
            self._plan_parse()

    def read_now(self) -> None:
        """Parse what waited for its turn."""
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
            # Also when the parser failed: what came before its mistake counts.
            self.handle_events()
            if self.conn.parser_exc is not None:
                self.handle_parser_exception()
        self.unread = unread or b""
        if not self.handshake_initiated and not unread:
            self._refuse_request()
        else:
            self._pace()

    def _pace(self) -> None:
        """Pause reading, go on with what is unread, or resume reading."""
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
        # After a close messages are dropped, and reading goes on until the peer's close.
        return not self.close_sent and len(self.inbox.events) >= INBOX_MESSAGES_MAX

    def _plan_parse(self) -> None:
        # In another turn: neither a flood nor an application that keeps up with it may hold
        # the loop, nor may the pongs of hundreds that come together.
        if not self.parse_planned:
            self.parse_planned = True
            self.reading.later(self)

    def _alive(self) -> None:
        if self.is_open and self.on_alive is not None:
            self.on_alive()

    def handle_text(self, event: Frame) -> None:
        """Begin a message of text."""
        self._alive()
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """Begin a message of bytes; what to do with one is the application's to say."""
        self._alive()
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """Go on with a message. Empty fragments count like others."""
        self._alive()
        if len(self.frames) < FRAGMENTS_PER_MESSAGE_MAX:
            super().handle_cont(event)
        else:
            self.fail(CloseCode.PROTOCOL_VIOLATION, "too many fragments")

    def handle_pong(self, event: Frame) -> None:
        """Note a proof of life, whether or not a ping was sent."""
        self._alive()
        self._count_control_frame()

    def handle_ping(self) -> None:
        """Answer a ping."""
        self._count_control_frame()
        pongs = self.conn.data_to_send()
        if pongs and not self.close_sent:
            self.send_pongs(pongs)

    def send_pongs(self, pongs: list[bytes]) -> None:
        """Send the answers to pings that arrived together, oldest first."""
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
        """Hand a whole message to the application."""
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
        """Receive for ASGI: the next event, of which the disconnect is the last."""
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
        """Close with a handshake of bounded time; the application hears ``code`` at once.

        Nothing happens to a socket that is not open.
        """
        if self.is_open:
            self.conn.send_close(code, reason)
            self._closing(code, reason)

    def fail(self, code: int, reason: str) -> None:
        """RFC 6455 7.1.7, _Fail the WebSocket Connection_: close, and ignore what comes."""
        if self.close_sent:
            return
        # The parser may have failed by itself, then its close is the one to send.
        self.conn.fail(code, reason)
        self._closing(code, reason)
        # The peer has sent more than was read. Closing now would reset the connection, and
        # the reset overtakes the close frame: the peer reads 1006 and comes back.
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def handle_parser_exception(self) -> None:
        """Close as the parser says: 1002, 1007 or 1009."""
        close = self.conn.close_sent
        if close is not None:
            self.fail(close.code, close.reason)
        else:
            # Frames before the handshake was answered: there is no WebSocket to close.
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
        """Cut the connection; the application hears ``code``, the peer nothing."""
        self.is_open = self.flowing = False
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.abort()

    def _abort_later(self) -> None:
        if self.close_timer is None and not self.disconnected:
            self.close_timer = self.loop.call_later(self.closing_timeout, self.transport.abort)

    def handle_close(self, event: Frame) -> None:
        """The peer closes, which is its last proof of life, or it answers our close."""
        self._alive()
        self.peer_closed = self.is_open
        self.is_open = self.flowing = False
        super().handle_close(event)
        self._abort_later()

    def shutdown(self) -> None:
        """Close 1012 as the server goes down. A drain before it leaves few to close."""
        if self.is_open:
            self.close(CloseCode.SERVICE_RESTART)
        elif not self.close_sent and not self.transport.is_closing():
            super().shutdown()
            self._abort_later()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The application returned. Without a close, that dropped the connection."""
        super().on_task_complete(task)
        if self.transport.is_closing():
            self._abort_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application 1006, unless a close was told before, or came and waits."""
        self.read_now()
        self.is_open = self.flowing = False
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})
        super().connection_lost(exc)
        self.on_alive = None
        self.unread = b""
        self._forget_request()
        if self.slot is not None:
            self.slot.leave()
