"""Receives and unpacks the body of a provider's event, within bounds.

A sender who is not verified yet makes the process hold at most twice ``CALL_EVENT_BYTES_MAX``,
whatever the packed body would become.
"""

import io
import zlib
from collections.abc import AsyncIterable, Mapping
from typing import Final

from server.calls import limits as call_limits
from server.calls.facts import EventRefusal, RefusedEventError

GZIP_MAGIC: Final = b"\x1f\x8b"
"""JSON cannot begin with these bytes. Stream packs bodies, and need not say so in a header."""
GZIP_WINDOW: Final = 31
"""``wbits`` of zlib for exactly one gzip member."""


class EventBody:
    """One body as it arrives: :meth:`add` each chunk, then :meth:`finish`.

    Both raise :class:`RefusedEventError`.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Checks what the head of the request says: its encoding and length."""
        encoding = headers.get("content-encoding", "identity").strip().lower() or "identity"
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise RefusedEventError(
                EventRefusal.ENCODING, "the body is packed: only gzip is unpacked here"
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > call_limits.CALL_EVENT_BYTES_MAX:
            raise _oversized()
        self._is_packed = encoding != "identity"
        self._received = 0
        self._head = b""
        self._is_begun = False
        self._body = io.BytesIO()  # gives its bytes without a copy
        self._length = 0
        self._unpacker: zlib._Decompress | None = None

    def add(self, chunk: bytes) -> None:
        """Takes the next bytes as they were sent."""
        self._received += len(chunk)
        if self._received > call_limits.CALL_EVENT_BYTES_MAX:
            raise _oversized()
        if self._is_begun:
            self._take(chunk)
            return
        self._head += chunk
        if len(self._head) >= len(GZIP_MAGIC):
            self._begin()

    def finish(self) -> bytes:
        """The body, unpacked."""
        if not self._is_begun:
            self._begin()
        if self._unpacker is not None and not self._unpacker.eof:
            raise _broken("the packed body is cut off")
        return self._body.getvalue()

    def _begin(self) -> None:
        """Decides by the first bytes whether the body is packed."""
        self._is_begun = True
        if self._is_packed or self._head.startswith(GZIP_MAGIC):
            self._unpacker = zlib.decompressobj(GZIP_WINDOW)
        self._take(self._head)

    def _take(self, chunk: bytes) -> None:
        if self._unpacker is None:
            self._body.write(chunk)
            return
        for start in range(0, len(chunk), call_limits.CALL_EVENT_SLICE_BYTES):
            self._unpack(self._unpacker, chunk[start : start + call_limits.CALL_EVENT_SLICE_BYTES])

    def _unpack(self, unpacker: "zlib._Decompress", part: bytes) -> None:
        if unpacker.eof:
            # Another member: each costs a new unpacker, and no provider sends one.
            raise _broken("bytes follow the packed body")
        while part and not unpacker.eof:
            try:
                piece = unpacker.decompress(part, call_limits.CALL_EVENT_SLICE_BYTES)
            except zlib.error as error:
                raise _broken(f"the packed body is broken: {error}") from None
            self._length += len(piece)
            if self._length > call_limits.CALL_EVENT_BYTES_MAX:
                raise RefusedEventError(
                    EventRefusal.BOMB,
                    f"the unpacked body is over {call_limits.CALL_EVENT_BYTES_MAX} bytes",
                )
            self._body.write(piece)
            part = unpacker.unconsumed_tail
        if unpacker.unused_data:
            raise _broken("bytes follow the packed body")


async def receive_body(headers: Mapping[str, str], chunks: AsyncIterable[bytes]) -> bytes:
    """The unpacked body of a request; raises :class:`RefusedEventError`."""
    body = EventBody(headers)
    async for chunk in chunks:
        body.add(chunk)
    return body.finish()


def _oversized() -> RefusedEventError:
    return RefusedEventError(
        EventRefusal.OVERSIZED, f"the body is over {call_limits.CALL_EVENT_BYTES_MAX} bytes"
    )


def _broken(message: str) -> RefusedEventError:
    return RefusedEventError(EventRefusal.MALFORMED, message)
