"""uvicorn's HTTP/1.1, made safe against its peer.

uvicorn lacks the following; each has a test:

- A connection is refused with 503 when there are too many, in total or of one address.
- A request's head must arrive in a bounded time, or is answered 408; so must its body. A
  connection that sends nothing, or empty lines, is closed.
- A head has a bounded size, or is answered 431; requests that are sent before the answer
  to the one before them (pipelining) have a bounded number.
- A peer that does not read its answer is cut, and so is one that keeps a close waiting. The
  kernel hides little of that from the server: see ``WRITE_UNSENT_BYTES``.
- Heads that two readers may understand differently are refused: no ``Host`` or two, and
  versions that are not HTTP/1. The parser refuses the rest (RFC 9112 section 11.2).
- Fields after a chunked body (trailers) are ignored.
- A request that offers a protocol other than WebSocket is served with its body; the parser
  ends such a request at its head.
- A refused connection is read for a moment longer: a reset would overtake the answer.
- A malformed request is counted and not logged, because a flood would fill the log.

uvicorn calls this API internal: its version is pinned, and ``tests/server/test_http_protocol.py``
names every attribute that this module uses.
"""

import asyncio
import contextlib
import socket
from typing import Any, NamedTuple, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import _TrustedHosts
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from server import limits as server_limits
from server.transport.connection_limiter import PEER, ConnectionLimiter, Slot
from server.transport.websocket_protocol import BoundedWebSocket

TCP_NOTSENT_LOWAT = 25
"""Linux, tcp(7): how many unsent bytes the kernel accepts from a writer."""
LINE_BYTES = len(": \r\n")
"""A header's colon, space, carriage return and line feed."""


class Refusal(NamedTuple):
    """Why a connection is served no further.

    It has the status, and the label in metrics.
    """

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
        # The request that is being answered; the newest request may wait behind it.
        self.running: RequestResponseCycle | None = None
        # Loop time by which the peer must act: complete the head or the body, begin the next
        # request, or read the refusal. None: the server must act.
        self.deadline: float | None = None
        self.stalled_at: float | None = None
        self.closing_at: float | None = None
        self.is_new = True
        self.in_head = False
        self.in_body = False
        # Of the current head: bytes and fields that the parser has handed over, and all bytes fed
        # to the parser since the head began.
        self.head_bytes = self.head_fields = self.fed_bytes = 0
        self.hosts = self.codings = 0
        # The current head offers another protocol, so it is read again without the offer.
        self.declines_upgrade = False
        # Why nothing more is read; sent after the answers to earlier requests.
        self.refusal: Refusal | None = None

    # --- Opening and closing -------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admits the connection, or refuses it."""
        super().connection_made(transport)
        _bound_unsent(transport)
        self.deadline = self.loop.time() + self.limiter.head_s
        entered = self.limiter.enter(self, self.client[0] if self.client is not None else "")
        if isinstance(entered, str):
            self._refuse(Refusal(FULL, entered))
        else:
            self.slot = entered

    def connection_lost(self, exc: Exception | None) -> None:
        """Frees the connection's slot."""
        self.limiter.forget(self)
        if self.refusal is not None:
            self.limiter.lingering -= 1
        if self.slot is not None:
            self.slot.leave()
        self.pipeline.clear()
        super().connection_lost(exc)
        # uvicorn disconnects only the newest request; the one before it would continue to write.
        self._disconnect(self.running)

    @staticmethod
    def _disconnect(cycle: RequestResponseCycle | None) -> None:
        """Makes a request's application see that the peer is gone."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def handle_websocket_upgrade(self) -> None:
        """Hands the connection to the WebSocket protocol, with its slot."""
        self.limiter.forget(self)
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        slot, self.slot = self.slot, None
        if isinstance(protocol, BoundedWebSocket):
            protocol.slot = slot
        elif slot is not None:
            slot.leave()  # another protocol class does not report when it is gone

    def evict(self) -> None:
        """Aborts the connection, because a new one needs its place."""
        self.transport.abort()

    def judge(self, now: float) -> None:
        """Cuts the connection if its peer has used up its time."""
        if self.transport.is_closing():
            # The close waits until the peer reads the write buffer.
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
        """Starts the bounded time to read the full write buffer."""
        self.stalled_at = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Ends that time: the peer has read."""
        self.stalled_at = None
        super().resume_writing()

    # --- Reading -------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parses the bytes that arrived; drops those of a refused connection."""
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
            # The parser does not hand over a field before it is complete.
            if self.in_head and self.fed_bytes > server_limits.REQUEST_HEAD_BYTES_MAX:
                self._refuse(LARGE)

    def _parse(self, data: bytes) -> None:
        """Feeds the parser, which stops after each head that offers another protocol."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stopped:
                if not self.declines_upgrade:
                    self.handle_websocket_upgrade()
                    return
                data = self._head_without_upgrade() + data[stopped.args[0] :]
            # The old parser is in the state of a connection that has changed its protocol.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _is_handshake(self) -> bool:
        """Whether the head opens a WebSocket: GET, and no body.

        RFC 6455 section 4.1 has the rules.
        """
        return (
            self._should_upgrade()
            and self.parser.get_method() == b"GET"
            and self.parser.get_http_version() == "1.1"
            and not self.codings
            and all(value == b"0" for name, value in self.headers if name == b"content-length")
        )

    def _head_without_upgrade(self) -> bytes:
        """The current head without its offer of another protocol.

        RFC 9110 section 7.8: "A server MAY ignore a received Upgrade header field". llhttp takes
        all bytes after such a head for the other protocol's, and so loses the body.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version.encode())]
        lines += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Begins a request."""
        if len(self.pipeline) >= server_limits.REQUESTS_PIPELINED_MAX:
            raise _RefusedError(CROWDED)
        super().on_message_begin()
        peer = self.client[0] if self.client is not None else ""
        cast(dict[str, Any], self.scope)["extensions"] = {PEER: peer}
        if not self.is_new:
            self.deadline = self.loop.time() + self.limiter.head_s
        self.in_head = True
        self.head_bytes = self.head_fields = self.fed_bytes = 0
        self.hosts = self.codings = 0
        self.declines_upgrade = False

    def on_url(self, url: bytes) -> None:
        """Takes the target, or a part of it."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a field of the head; ignores trailers.

        Trailers are fields after a chunked body.
        """
        self.head_fields += 1
        self._count_head(len(name) + len(value) + LINE_BYTES)
        if self.in_head:
            lower = name.lower()
            self.hosts += lower == b"host"
            self.codings += lower == b"transfer-encoding"
            if lower == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise _RefusedError(BAD)  # the parser reports this too late
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
        """Completes the head: the application begins, or waits for earlier answers."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _RefusedError(VERSION)
        # RFC 9112 section 3.2: a server MUST respond 400 to a request of HTTP/1.1 that lacks a
        # Host, "and to any request message that contains more than one". Section 6.1: a request of
        # HTTP/1.0 with a Transfer-Encoding is to be treated as faulty.
        old = version == "1.0"
        if self.hosts > 1 or (self.hosts == 0 and not old) or (self.codings and old):
            raise _RefusedError(BAD)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _RefusedError(BAD)  # this is not a proxy
            self.declines_upgrade = not self._is_handshake()
            if self.declines_upgrade:
                return
            if self._is_answering():
                # The earlier answer would be written into the WebSocket.
                raise _RefusedError(CROWDED)
        super().on_headers_complete()
        self.is_new = self.in_head = False
        self.in_body = True
        self.deadline = self.loop.time() + self.limiter.body_s
        self.limiter.busy(self)

    def on_message_complete(self) -> None:
        """Completes the request, unless its head is to be read again."""
        if self.declines_upgrade:
            return
        self.in_body = False
        self.deadline = None
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            self._rest()

    # --- Answering -------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Continues after an answer.

        The next request, a refusal, or a wait for the peer follows.
        """
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
            # The rest of the body is read and dropped, so that the answer arrives.
            assert self.deadline is not None
            self.deadline = min(self.deadline, self.loop.time() + self.limiter.linger_s)
        elif not self.in_head:
            self._rest()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _rest(self) -> None:
        """Keeps the idle connection open for a while."""
        self.deadline = self.loop.time() + self.limiter.keep_alive_s
        self.limiter.rest(self)

    def _refuse(self, refusal: Refusal) -> None:
        """Serves the connection no further, and sends the refusal after earlier answers."""
        self.refusal = refusal
        self.limiter.busy(self)
        self.limiter.cut(refusal.why)
        self.limiter.lingering += 1
        cycle = self.cycle
        if not self.in_body:
            if self._is_answering():
                self.deadline = None  # on_response_complete continues
            else:
                self._hang_up(refusal)
        elif self.pipeline or cycle.response_started:
            # Earlier answers are outstanding or this answer has begun, so no refusal can be sent.
            self.transport.abort()
        else:
            # The application waits for the rest of the body, or does not need it.
            self._disconnect(cycle)
            self._hang_up(refusal)

    def _hang_up(self, refusal: Refusal) -> None:
        """Sends the refusal, and reads for a moment longer.

        A reset would overtake the refusal.
        """
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
    """Keeps bytes beyond the peer's window in this process.

    Here they are counted. Linux lets a connection's buffer grow to 4 MiB. A peer that reads no more
    would have that much of ticks, hours of them, before the server could see that its socket is
    slow.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # the connection may be gone already
            connection.setsockopt(
                socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, server_limits.WRITE_UNSENT_BYTES
            )


class _RefusedError(Exception):
    """Leaves the parser's callbacks with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.why)
        self.refusal = refusal
