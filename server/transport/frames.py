"""WebSocket frames (RFC 6455): ours made in one step, the peer's read by websockets.

What the server sends is short, unmasked and never fragmented, so a frame is a header in
front of the payload; a tick is made into one once and written as it is. What the peer
sends is masked, split at will and not to be trusted: that is left to websockets' sans-I/O
parser, of which this module has a version that takes a third of the memory.
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
# Of what is sent most, ticks of some 150 bytes, the headers are ready: 20 KiB once.
_HEADERS: Final = (
    *(bytes((_TEXT, length)) for length in range(126)),
    *(_medium_header(_TEXT, 126, length) for length in range(126, 512)),
)

EMPTY_PING: Final = b"\x89\x00"
"""A ping without payload. Any pong proves life (5.5.3), so there is nothing to match."""

_logger: Final = logging.getLogger("taximeter.push")
_logger.setLevel(logging.WARNING)  # see server.websocket


def text_frame(payload: bytes) -> bytes:
    """The whole text frame of ``payload``, which is UTF-8: final, unmasked, uncompressed."""
    length = len(payload)
    if length < 512:
        return _HEADERS[length] + payload
    if length < 65_536:
        return _medium_header(_TEXT, 126, length) + payload
    return _long_header(_TEXT, 127, length) + payload


class FrameReader(ServerProtocol):
    """websockets' parser without what an idle connection does not need.

    The names in ``__slots__`` are the attributes that the bases set: each is 8 bytes here,
    and all of them together would be a dictionary of 1.5 KiB. A name that an upgrade adds
    lands in ``__dict__`` and works; ``tests/server/test_push.py`` says so.
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
        # At level DEBUG the parser logs the path with its query and every frame, and so
        # the token in `auth`. No level may do that.
        self.debug = False
        # A UUID for logs that nobody reads.
        del self.id

    def forget_request(self) -> None:
        """Let go of the handshake's request. Called between it and the first frame.

        The generator that parses goes on to read frames with the request, 2 KiB of headers
        from a browser, in a local variable. A new one takes its place.
        """
        assert not self.reader.buffer
        self.parser = super(ServerProtocol, self).parse()
        next(self.parser)
