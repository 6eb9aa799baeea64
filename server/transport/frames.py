"""WebSocket frames (RFC 6455), written here and read by websockets.

Frames of the server are made in one step. They are short, unmasked and never
fragmented, so a frame is a header before the payload. A tick is framed once and written as it is.
Frames of the peer are masked, may be split anywhere and cannot be trusted. The sans-I/O parser of
websockets reads them; this module has a version of the parser that takes a third of the memory.
"""

import logging
from struct import Struct
from typing import Final

from websockets.server import ServerProtocol

# RFC 6455 5.2: FIN and the opcode are the first byte. 5.1: "A server MUST NOT mask any
# frames that it sends to the client", so the length has the second byte to itself.
_TEXT: Final = 0x81
# 5.2: "the minimal number of bytes MUST be used to encode the length".
_medium_header: Final = Struct("!BBH").pack
_long_header: Final = Struct("!BBQ").pack
# The headers of the most frequent frames, ticks of some 150 bytes, are ready: 20 KiB once.
_HEADERS: Final = (
    *(bytes((_TEXT, length)) for length in range(126)),
    *(_medium_header(_TEXT, 126, length) for length in range(126, 512)),
)

EMPTY_PING: Final = b"\x89\x00"
"""A ping without payload. Every pong proves life (5.5.3), so pongs need no matching."""

_logger: Final = logging.getLogger("taximeter.push")
_logger.setLevel(logging.WARNING)  # see FrameReader.__init__


def text_frame(payload: bytes) -> bytes:
    """The whole text frame of ``payload``, which is UTF-8: final, unmasked, uncompressed."""
    length = len(payload)
    if length < 512:
        return _HEADERS[length] + payload
    if length < 65_536:
        return _medium_header(_TEXT, 126, length) + payload
    return _long_header(_TEXT, 127, length) + payload


def payload_of(frame: bytes) -> bytes:
    """The payload of a frame that ``text_frame`` made."""
    length = frame[1]
    return frame[2 if length < 126 else 4 if length == 126 else 10 :]


class FrameReader(ServerProtocol):
    """The parser of websockets without what an idle connection does not need.

    ``__slots__`` has the attributes that the bases set: each takes 8 bytes, and a dictionary of
    them would take 1.5 KiB. A new name of an upgrade goes to ``__dict__`` and works;
    ``tests/server/test_push.py`` reports it.
    """

    __slots__ = (
        "_state",
        "accept_called",
        "available_extensions",
        "available_subprotocols",
        "close_rcvd",
        "close_rcvd_then_sent",
        "close_sent",
        "current_size",
        "debug",
        "eof_sent",
        "events",
        "expect_continuation_frame",
        "extensions",
        "handshake_exc",
        "id",
        "logger",
        "max_fragment_size",
        "max_message_size",
        "origin",
        "origins",
        "parser",
        "parser_exc",
        "reader",
        "side",
        "subprotocol",
        "writes",
    )

    def __init__(self, message_bytes_max: int | None) -> None:
        super().__init__(max_size=message_bytes_max, logger=_logger)
        # At level DEBUG the parser logs the path with its query and every frame, and so the token
        # in `auth`. No level may do that.
        self.debug = False
        # A UUID for logs that are off.
        del self.id

    def forget_request(self) -> None:
        """Frees the handshake's request.

        Call this between the request and the first frame. The parsing generator goes on to read
        frames with the request, 2 KiB of headers from a browser, in a local variable. A new
        generator takes its place.
        """
        assert not self.reader.buffer
        self.parser = super(ServerProtocol, self).parse()
        next(self.parser)
