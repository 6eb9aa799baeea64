"""The push path: a way past the ASGI queue for frames that are ready.

A tick goes to thousands of sockets each second. ``send()`` of ASGI costs a coroutine, a
wait for the write buffer and a dictionary a message; a push is one write. The protocol
offers itself in the scope's ``extensions`` as ``taximeter.push`` and stays an ASGI server
in everything else.

A peer that stops reading is cut: above 64 KiB its ticks are skipped, above 1 MiB it is
closed 4001, and one that leaves the buffer full for 5 s is aborted. A peer that gives no
sign of life for a ping's time is closed 4003.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, Protocol, cast
from weakref import WeakKeyDictionary

from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.http11 import Request

from protocol.limits import MESSAGE_BYTES_MAX
from protocol.wire.errors import CloseCode
from server.limits import (
    PING_INTERVAL_MS,
    PONG_TIMEOUT_MS,
    SLOW_PEER_ABORT_MS,
    WRITE_BUFFER_CLOSE_BYTES,
    WRITE_BUFFER_SKIP_BYTES,
)
from server.transport.connection_limiter import ConnectionLimiter
from server.transport.frames import EMPTY_PING
from server.transport.http_protocol import BoundedHttp
from server.transport.keepalive import Keepalive
from server.transport.websocket_protocol import BoundedWebSocket

EXTENSION: Final = "taximeter.push"
"""The key of the scope's ``extensions`` under which a socket offers itself."""

PEER: Final = "taximeter.peer"
"""The key under which the address of the connection's other end stands, a proxy's perhaps."""

# One timer for a server's pings. Several servers in one process are tests.
_keepalives: Final[WeakKeyDictionary[ServerState, Keepalive]] = WeakKeyDictionary()


class PushSocket(Protocol):
    """What the rest of the server sees of a socket. Every call is made on its loop."""

    on_alive: Callable[[], None] | None
    """Called at each proof of life: a pong, asked for or not, a data frame, the peer's close.

    Not called once the socket is closed from here.
    """

    peer_closed: bool
    """The peer closed the socket, with a close frame and before this side did."""

    @property
    def is_open(self) -> bool:
        """Accepted, and neither side has begun to close."""

    def push(self, frame: bytes) -> bool:
        """Write a whole frame (``text_frame``) now, in order with everything else sent.

        False when the socket is not open, or is closed by this call because its peer has
        let 1 MiB pile up.
        """

    def push_tick(self, frame: bytes) -> bool:
        """Write a frame that may be lost. False when it is: not open, or the peer is slow.

        A slow peer gets the newest tick once it has caught up, never a queue of old ones.
        """

    def ping_now(self) -> bool:
        """Ask for a proof of life now, whenever the keepalive's turn is. False if it cannot."""

    def close(self, code: int, reason: str = "") -> None:
        """Close with a handshake of bounded time; the application hears ``code`` at once."""


def uvicorn_options(limiter: ConnectionLimiter | None = None) -> dict[str, Any]:
    """The keyword arguments that ``uvicorn.Config`` needs for the push path, and for a
    server that is safe against its peers. Each server has a ``limiter`` of its own."""
    return {
        # Not to be guessed: the application's call is a function that returns a coroutine.
        "interface": "asgi3",
        "http": partial(BoundedHttp, limiter=limiter or ConnectionLimiter()),
        "ws": PushProtocol,
        "ws_max_size": MESSAGE_BYTES_MAX,
        "ws_ping_interval": PING_INTERVAL_MS / 1000,
        "ws_ping_timeout": PONG_TIMEOUT_MS / 1000,
        # Deflate costs more memory than the session, and a tick is 120 bytes.
        "ws_per_message_deflate": False,
    }


class PushProtocol(BoundedWebSocket):
    """The protocol class for ``uvicorn.Config(ws=...)``. See ``PushSocket`` for its use."""

    drain_timeout: ClassVar[float] = SLOW_PEER_ABORT_MS / 1000
    """Seconds that a peer may leave the write buffer full."""

    __slots__ = ("awaiting_pong", "drain_timer", "due_at", "keepalive", "owed_pong")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Runs while the write buffer is full.
        self.drain_timer: asyncio.TimerHandle | None = None
        self.owed_pong: bytes | None = None
        # The keepalive's notes on this socket.
        self.due_at = 0.0
        self.awaiting_pong = False
        keepalive = _keepalives.get(server_state)
        if keepalive is None:
            keepalive = Keepalive(self.loop, config.ws_ping_interval, config.ws_ping_timeout)
            _keepalives[server_state] = keepalive
        self.keepalive = keepalive

    # --- For the application (PushSocket) ----------------------------------------------

    def push(self, frame: bytes) -> bool:
        """See ``PushSocket.push``."""
        if self.flowing:
            self.transport.write(frame)
            return True
        if not self.is_open:
            return False
        if self.transport.get_write_buffer_size() > WRITE_BUFFER_CLOSE_BYTES:
            self.close(CloseCode.SLOW_CONSUMER, "slow consumer")
            return False
        self.transport.write(frame)
        return True

    def push_tick(self, frame: bytes) -> bool:
        """See ``PushSocket.push_tick``."""
        if self.flowing:
            self.transport.write(frame)
            return True
        return False

    def ping_now(self) -> bool:
        """See ``PushSocket.ping_now``. Behind a full write buffer a ping would be no news."""
        return self.push_tick(EMPTY_PING)

    # --- Opening -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over from the HTTP protocol."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_SKIP_BYTES)

    def handle_connect(self, event: Request) -> None:
        """Offer the push path to the application, whose task has not begun yet."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            extensions = cast(dict[str, Any], self.scope["extensions"])
            extensions[EXTENSION] = self
            # The scope's own is rewritten by what a proxy says.
            extensions[PEER] = self.client[0] if self.client else ""

    def opened(self) -> None:
        """From here on there are pings."""
        super().opened()
        self.keepalive.add(self)

    # --- Life --------------------------------------------------------------------------

    def start_keepalive(self) -> None:
        """Do without uvicorn's timers: ``opened`` has left the pings to one for all."""

    def send_keepalive_ping(self) -> None:
        """Ask for a pong; called by the keepalive."""
        self.awaiting_pong = True
        self.transport.write(EMPTY_PING)

    def keepalive_timeout(self) -> None:
        """Close 4003; called by the keepalive when nothing came in time."""
        self.close(CloseCode.NO_PONG, "no pong")

    def _alive(self) -> None:
        # RFC 6455 5.5.3: an endpoint "MAY elect to send a Pong frame for only the most
        # recently processed Ping frame", so after `ping_now` the answer to the keepalive's
        # own ping may never come. Whatever a frame answers, it shows that the peer lives.
        self.awaiting_pong = False
        super()._alive()

    def send_pongs(self, pongs: list[bytes]) -> None:
        """Answer pings; behind a full write buffer the newest one, once there is room."""
        if self.drain_timer is None:
            super().send_pongs(pongs)
        else:
            self.owed_pong = pongs[-1]

    # --- Writing -----------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The write buffer is full: skip ticks, and give the peer a bounded time to read."""
        self.flowing = False
        self.writable = asyncio.Event()
        self.drain_timer = self.loop.call_later(self.drain_timeout, self._drain_timed_out)

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self.flowing = self.is_open
        self._stop_drain_timer()
        if self.owed_pong is not None and self.is_open:
            self.transport.write(self.owed_pong)
        self.owed_pong = None

    def _stop_drain_timer(self) -> None:
        if self.drain_timer is not None:
            self.drain_timer.cancel()
            self.drain_timer = None
            self.writable.set()
            self.writable = self.always_writable

    def _drain_timed_out(self) -> None:
        # A close frame would wait behind what the peer does not read.
        self.abort(CloseCode.SLOW_CONSUMER, "slow consumer")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what waits for the peer."""
        self._stop_drain_timer()
        super().connection_lost(exc)
