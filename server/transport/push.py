"""The push path: writes finished frames to sockets without the ASGI queue.

A tick goes to thousands of sockets each second. ``send()`` of ASGI costs a coroutine, a wait for
the write buffer and a dictionary for each message; a push is one write. The protocol offers itself
in the scope's ``extensions`` as ``taximeter.push`` and is an ASGI server in all else.

A peer that stops reading is cut. Above 64 KiB in its write buffer its ticks are skipped, above 1
MiB the socket is closed with 4001, and a buffer that stays full for 5 s aborts the socket. A peer
that gives no sign of life for a ping's time is closed with 4003.
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
from server.transport.connection_limiter import PEER, ConnectionLimiter
from server.transport.frames import EMPTY_PING
from server.transport.http_protocol import BoundedHttp
from server.transport.keepalive import Keepalive
from server.transport.open_sockets import Carrier
from server.transport.websocket_protocol import BoundedWebSocket

EXTENSION: Final = "taximeter.push"
"""The key of the scope's ``extensions`` under which a socket offers itself."""

# One keepalive for each server. Only tests have several servers in one process.
_keepalives: Final[WeakKeyDictionary[ServerState, Keepalive]] = WeakKeyDictionary()


class PushSocket(Protocol):
    """A socket as the rest of the server sees it.

    Call all methods on its loop.
    """

    on_alive: Callable[[], None] | None
    """Called at each proof of life: a pong, requested or not, a data frame, the peer's close.

    Not called once this side has closed the socket.
    """

    peer_closed: bool
    """The peer closed the socket, with a close frame and before this side did."""

    @property
    def carrier(self) -> Carrier:
        """What carries the messages."""

    @property
    def is_open(self) -> bool:
        """Accepted, and neither side has begun to close."""

    def push(self, frame: bytes) -> bool:
        """Writes a whole frame (``text_frame``) now, in order with all other frames.

        Returns False when the socket is not open, or when this call closes the socket because more
        than 1 MiB waits for its peer.
        """

    def push_tick(self, frame: bytes) -> bool:
        """Writes a frame that may be lost; returns False when it is.

        The frame is lost when the socket is not open or the peer is slow. A slow peer gets the
        newest tick once it has caught up, never a queue of old ones.
        """

    def ping_now(self) -> bool:
        """Asks for a proof of life now; False if it cannot.

        The keepalive's pings do not change.
        """

    def close(self, code: int, reason: str = "") -> None:
        """Closes with a handshake of bounded time.

        The application gets ``code`` at once.
        """


def uvicorn_options(limiter: ConnectionLimiter | None = None) -> dict[str, Any]:
    """Keyword arguments of ``uvicorn.Config`` for this server.

    They give the push path, and safety against peers. Each server has its own ``limiter``.
    """
    return {
        # uvicorn would guess wrong: the application is a function that returns a coroutine.
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

    carrier: ClassVar[Carrier] = "websocket"

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
        # The keepalive's data about this socket.
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
        """See ``PushSocket.ping_now``. Behind a full write buffer a ping proves nothing new."""
        return self.push_tick(EMPTY_PING)

    # --- Opening -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the transport over from the HTTP protocol."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_SKIP_BYTES)

    def handle_connect(self, event: Request) -> None:
        """Offers the push path to the application.

        The application's task has not begun yet.
        """
        super().handle_connect(event)
        if self.response.status_code == 101:
            extensions = cast(dict[str, Any], self.scope["extensions"])
            extensions[EXTENSION] = self
            # A proxy's headers change the address in the scope, but not this one.
            extensions[PEER] = self.client[0] if self.client else ""

    def opened(self) -> None:
        """Begins the pings."""
        super().opened()
        self.keepalive.add(self)

    # --- Proof of life -------------------------------------------------------------------

    def start_keepalive(self) -> None:
        """Starts none of uvicorn's timers: one timer pings all sockets, see ``opened``."""

    def send_keepalive_ping(self) -> None:
        """Asks for a pong; called by the keepalive."""
        self.awaiting_pong = True
        self.transport.write(EMPTY_PING)

    def keepalive_timeout(self) -> None:
        """Closes with 4003; called by the keepalive when nothing came in time."""
        self.close(CloseCode.NO_PONG, "no pong")

    def _alive(self) -> None:
        # RFC 6455 5.5.3: an endpoint "MAY elect to send a Pong frame for only the most recently
        # processed Ping frame", so after `ping_now` the answer to the keepalive's own ping may
        # never come. Every frame shows that the peer lives.
        self.awaiting_pong = False
        super()._alive()

    def send_pongs(self, pongs: list[bytes]) -> None:
        """Answers pings.

        While the write buffer is full it keeps only the newest answer, until there is room.
        """
        if self.drain_timer is None:
            super().send_pongs(pongs)
        else:
            self.owed_pong = pongs[-1]

    # --- Writing -----------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Skips ticks, and bounds the peer's time to read the full buffer."""
        self.flowing = False
        self.writable = asyncio.Event()
        self.drain_timer = self.loop.call_later(self.drain_timeout, self._drain_timed_out)

    def resume_writing(self) -> None:
        """Resumes ticks: the peer has caught up."""
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
        # A close frame would wait behind bytes that the peer does not read.
        self.abort(CloseCode.SLOW_CONSUMER, "slow consumer")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops what waits for the peer."""
        self._stop_drain_timer()
        super().connection_lost(exc)
