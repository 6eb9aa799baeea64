"""uvicorn's HTTP/1.1, made safe against its peer.

What uvicorn leaves undone, and this does (each has a test):

- A connection is refused with 503 when there are too many, of all or of one address.
- A request's head comes in a bounded time, or is answered 408; so does its body. A
  connection that says nothing, or empty lines, is closed.
- A head has a bounded size, or is answered 431; requests that are sent before the answer
  to the one before them (pipelining) have a bounded number.
- A peer that does not read its answer is cut, and so is one that keeps a close waiting. The
  kernel hides little of that from us: see ``WRITE_UNSENT_BYTES``.
- Heads that two readers may understand differently are refused: no ``Host`` or two, and
  versions that are not HTTP/1. The parser refuses the rest (RFC 9112 section 11.2).
- Fields behind a chunked body are nobody's headers.
- A request that offers a protocol other than WebSocket is served with its body; the parser
  ends such a request at its head.
- What is refused is read on for a moment: a reset would overtake the answer.
- A malformed request is counted and not logged, for the log would be the flood's.

uvicorn calls this API internal: its version is pinned, and ``tests/server/test_http_protocol.py``
names every attribute that is relied on.
"""

import asyncio
import contextlib
import socket
from typing import Any, NamedTuple

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import _TrustedHosts
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from server import limits as server_limits
from server.transport.connection_limiter import ConnectionLimiter, Slot
from server.transport.websocket_protocol import BoundedWebSocket

TCP_NOTSENT_LOWAT = 25
"""Linux, tcp(7): how much that was not sent yet is taken of a writer."""
LINE_BYTES = len(": \r\n")
"""A header's colon, space, carriage return and line feed."""


class Refusal(NamedTuple):
    """Why a connection is not served any further: the status, and the label in metrics."""

    status: str
    why: str


BAD = Refusal("400 Bad Request", "malformed")
LATE_HEAD = Refusal("408 Request Timeout", "slow_head")
LATE_BODY = Refusal("408 Request Timeout", "slow_body")
CROWDED = Refusal("429 Too Many Requests", "pipelined")
LARGE = Refusal("431 Request Header Fields Too Large", "large_head")
FULL = "503 Service Unavailable"
VERSION = Refusal("505 HTTP Version Not Supported", "malformed")


class BoundedHttp(HttpToolsProtocol):
    """One connection that speaks HTTP/1.1, until it becomes a WebSocket or ends."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limiter: ConnectionLimiter,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limiter = limiter
        if limiter.proxies is None:
            trusted = _TrustedHosts(config.forwarded_allow_ips)
            limiter.proxies = trusted if config.proxy_headers else ()
        self.slot: Slot | None = None
        # The request that is answered now; the newest one may wait behind it.
        self.running: RequestResponseCycle | None = None
        # When something must have happened, in the loop's time: the head or the body be
        # complete, the next request begin, the refusal be read. None: the turn is ours.
        self.deadline: float | None = None
        self.stalled_at: float | None = None
        self.closing_at: float | None = None
        self.is_new = True
        self.in_head = False
        self.in_body = False
        # Of the head that is being read: fields that the parser has handed over, and all
        # that was fed to it since the head began.
        self.head_bytes = self.head_fields = self.fed_bytes = 0
        self.hosts = self.codings = 0
        # The head that was just read offers another protocol: it is read again without that.
        self.declines_upgrade = False
        # Why nothing more is read; said when the answers before it are sent.
        self.refusal: Refusal | None = None

    # --- Coming and going ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let the connection in, or refuse it."""
        super().connection_made(transport)
        _bound_unsent(transport)
        self.deadline = self.loop.time() + self.limiter.head_s
        entered = self.limiter.enter(self, self.client[0] if self.client is not None else "")
        if isinstance(entered, str):
            self._refuse(Refusal(FULL, entered))
        else:
            self.slot = entered

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up the connection's place."""
        self.limiter.forget(self)
        if self.refusal is not None:
            self.limiter.lingering -= 1
        if self.slot is not None:
            self.slot.leave()
        self.pipeline.clear()
        super().connection_lost(exc)
        # uvicorn tells the newest request only, and the one before it would go on writing.
        self._disconnect(self.running)

    @staticmethod
    def _disconnect(cycle: RequestResponseCycle | None) -> None:
        """To the application of a request the peer is gone."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, and its place with it."""
        self.limiter.forget(self)
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        slot, self.slot = self.slot, None
        if isinstance(protocol, BoundedWebSocket):
            protocol.slot = slot
        elif slot is not None:
            slot.leave()  # it is not known when it will be gone

    def evict(self) -> None:
        """Give its place to another."""
        self.transport.abort()

    def judge(self, now: float) -> None:
        """Cut the connection if its peer has had its time."""
        if self.transport.is_closing():
            # It waits for the write buffer to be read.
            self.closing_at = self.closing_at or now
            if now - self.closing_at >= self.limiter.drain_s:
                self.transport.abort()
        elif self.stalled_at is not None and now - self.stalled_at >= self.limiter.drain_s:
            self.limiter.cut("not_reading")
            self.transport.abort()
        elif self.deadline is not None and now >= self.deadline:
            if self.refusal is not None:
                self.transport.abort()
            elif self.in_head:
                self._refuse(LATE_HEAD)
            elif self.in_body:
                self._refuse(LATE_BODY)
            else:
                if self.is_new:
                    self.limiter.cut("silent")
                self.transport.close()

    def pause_writing(self) -> None:
        """The write buffer is full: the peer has a bounded time to read."""
        self.stalled_at = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The peer has read."""
        self.stalled_at = None
        super().resume_writing()

    # --- Reading -------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; of a connection that is refused it is dropped."""
        if self.refusal is not None or self.transport.is_closing():
            return
        self.fed_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause.refusal if isinstance(cause, _RefusedError) else BAD)
        except httptools.HttpParserError:
            self._refuse(BAD)
        else:
            # The parser keeps a field for itself until it has the whole of it.
            if self.in_head and self.fed_bytes > server_limits.REQUEST_HEAD_BYTES_MAX:
                self._refuse(LARGE)

    def _parse(self, data: bytes) -> None:
        """Feed the parser; it stops behind each head that offers another protocol."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stopped:
                if not self.declines_upgrade:
                    self.handle_websocket_upgrade()
                    return
                data = self._head_without_upgrade() + data[stopped.args[0] :]
            # Its state is that of a connection which has become another protocol's.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _is_handshake(self) -> bool:
        """Whether the head opens a WebSocket (RFC 6455 section 4.1): GET, and no body."""
        return (
            self._should_upgrade()
            and self.parser.get_method() == b"GET"
            and self.parser.get_http_version() == "1.1"
            and not self.codings
            and all(value == b"0" for name, value in self.headers if name == b"content-length")
        )

    def _head_without_upgrade(self) -> bytes:
        """The head that was just read, but for the protocol that it offers.

        RFC 9110 section 7.8: "A server MAY ignore a received Upgrade header field". llhttp
        takes all behind such a head for the other protocol's, and so loses the body.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version.encode())]
        lines += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= server_limits.REQUESTS_PIPELINED_MAX:
            raise _RefusedError(CROWDED)
        super().on_message_begin()
        if not self.is_new:
            self.deadline = self.loop.time() + self.limiter.head_s
        self.in_head = True
        self.head_bytes = self.head_fields = self.fed_bytes = 0
        self.hosts = self.codings = 0
        self.declines_upgrade = False

    def on_url(self, url: bytes) -> None:
        """The target, or a part of it."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or one behind a chunked body, which is nobody's."""
        self.head_fields += 1
        self._count_head(len(name) + len(value) + LINE_BYTES)
        if self.in_head:
            lower = name.lower()
            self.hosts += lower == b"host"
            self.codings += lower == b"transfer-encoding"
            if lower == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise _RefusedError(BAD)  # the parser would begin the request before it says so
            if lower == b"x-forwarded-for":
                self.limiter.forwarded(self.client[0] if self.client is not None else "")
            super().on_header(name, value)

    def _count_head(self, count: int) -> None:
        self.head_bytes += count
        if (
            self.head_bytes > server_limits.REQUEST_HEAD_BYTES_MAX
            or self.head_fields > server_limits.REQUEST_HEADERS_MAX
        ):
            raise _RefusedError(LARGE)

    def on_headers_complete(self) -> None:
        """The head is complete: the application begins, or waits for the answers before it."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _RefusedError(VERSION)
        # RFC 9112 section 3.2: a server MUST respond 400 to a request of HTTP/1.1 that
        # lacks a Host, "and to any request message that contains more than one". Section
        # 6.1: one of HTTP/1.0 that has a Transfer-Encoding is to be treated as faulty.
        old = version == "1.0"
        if self.hosts > 1 or (self.hosts == 0 and not old) or (self.codings and old):
            raise _RefusedError(BAD)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _RefusedError(BAD)  # this is no proxy
            self.declines_upgrade = not self._is_handshake()
            if self.declines_upgrade:
                return
            if self._is_answering():
                # The answer would be written into the WebSocket.
                raise _RefusedError(CROWDED)
        super().on_headers_complete()
        self.is_new = self.in_head = False
        self.in_body = True
        self.deadline = self.loop.time() + self.limiter.body_s
        self.limiter.busy(self)

    def on_message_complete(self) -> None:
        """The request is complete, or so the parser says of a head that is read again."""
        if self.declines_upgrade:
            return
        self.in_body = False
        self.deadline = None
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            self._rest()

    # --- Answering -------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """An answer is written: the next request's turn, or the refusal's, or the peer's."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self.refusal is not None:
            self._hang_up(self.refusal)
        elif self.in_body:
            # The rest of the body is nobody's; it is read, so that the answer arrives.
            assert self.deadline is not None
            self.deadline = min(self.deadline, self.loop.time() + self.limiter.linger_s)
        elif not self.in_head:
            self._rest()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _rest(self) -> None:
        """Nothing is asked: the connection is kept for a while."""
        self.deadline = self.loop.time() + self.limiter.keep_alive_s
        self.limiter.rest(self)

    def _refuse(self, refusal: Refusal) -> None:
        """Serve the connection no further, and say so after the answers that are due."""
        self.refusal = refusal
        self.limiter.busy(self)
        self.limiter.cut(refusal.why)
        self.limiter.lingering += 1
        cycle = self.cycle
        if not self.in_body:
            if self._is_answering():
                self.deadline = None  # on_response_complete goes on
            else:
                self._hang_up(refusal)
        elif self.pipeline or cycle.response_started:
            # Its place in the order is not now, or it has begun.
            self.transport.abort()
        else:
            # The application waits for the rest of the body, or does not need it.
            self._disconnect(cycle)
            self._hang_up(refusal)

    def _hang_up(self, refusal: Refusal) -> None:
        """Say why, and read on for a moment: a reset would overtake what was said."""
        text = refusal.status.partition(" ")[2]
        self.transport.write(
            (
                f"HTTP/1.1 {refusal.status}\r\nContent-Type: text/plain\r\n"
                f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}"
            ).encode()
        )
        if (
            self.limiter.lingering > server_limits.LINGERING_MAX
            or not self.transport.can_write_eof()
        ):
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self.deadline = self.loop.time() + self.limiter.linger_s


def _bound_unsent(transport: asyncio.Transport) -> None:
    """Keep what the peer's window has no room for here, where it is counted.

    Linux lets a connection grow a buffer of 4 MiB: a peer that reads no more would have that
    much of ticks, hours of them, before its socket was known to be slow.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # it may be gone already
            connection.setsockopt(
                socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, server_limits.WRITE_UNSENT_BYTES
            )


class _RefusedError(Exception):
    """Raised out of the parser's callbacks."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.why)
        self.refusal = refusal
