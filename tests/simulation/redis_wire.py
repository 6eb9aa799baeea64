"""A real Redis without an event loop: answers at once, or breaks.

Either an answer is there, or the socket is broken. One connection (RESP3) carries commands, answers
and everything that is published, in the order in which Redis processed it. A virtual cluster
therefore never has to wait for a message that may still be on its way, and a question costs only
the time that Redis takes.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redis._parsers.base import BaseParser
from redis.exceptions import ResponseError

Published = Callable[[bytes, bytes], None]
"""Receives a channel and a message that was published there."""


class RedisWire:
    """A connection to Redis over its Unix socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb", 1 << 16)
        self.published: Published = lambda channel, message: None
        self.commands = 0
        self.ask("HELLO", 3)
        self.ask_all([("PSUBSCRIBE", "*")])

    def close(self) -> None:
        """Closes the connection."""
        self._file.close()
        self._socket.close()

    def ask(self, *command: Any) -> Any:
        """The answer to one command; raises ``ResponseError``."""
        (answer,) = self.ask_all([command])
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    def ask_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers to several commands sent together; errors are returned among them."""
        self.commands += len(commands)
        self._socket.sendall(b"".join(map(_packed, commands)))
        # A message, and not an answer, confirms a subscription.
        return [self._answer() for command in commands if command[0] != "PSUBSCRIBE"]

    def _answer(self) -> Any:
        while True:
            answer = self._read()
            if not isinstance(answer, _Push):
                return answer
            if answer[0] == b"pmessage":
                self.published(answer[2], answer[3])

    def _read(self) -> Any:
        line = self._file.readline()
        if not line:
            raise ConnectionError("Redis has closed the connection")
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"$":
                return self._bulk(int(rest))
            case b"+":
                return rest
            case b":":
                return int(rest)
            case b"*":
                return [self._read() for _ in range(int(rest))] if rest != b"-1" else None
            case b"_":
                return None
            case b">":
                return _Push(self._read() for _ in range(int(rest)))
            case b"%":
                # Redis promises no order here; sorting makes runs repeatable.
                pairs = [(self._read(), self._read()) for _ in range(int(rest))]
                return dict(sorted(pairs, key=lambda pair: str(pair[0])))
            case b"~":
                return sorted(self._read() for _ in range(int(rest)))
            case b",":
                return float(rest)
            case b"#":
                return rest == b"t"
            case b"-":
                return BaseParser.parse_error(rest.decode())  # type: ignore[no-untyped-call]
        raise AssertionError(line)

    def _bulk(self, length: int) -> bytes | None:
        if length < 0:
            return None
        return bytes(self._file.read(length + 2)[:-2])


class _Push(list[Any]):
    """A message that Redis sends without a question."""


def _packed(command: Sequence[Any]) -> bytes:
    parts = [*_words(command)]
    return b"".join(
        [b"*%d\r\n" % len(parts), *(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)]
    )


def _words(command: Sequence[Any]) -> Iterator[bytes]:
    for index, part in enumerate(command):
        if isinstance(part, bytes):
            yield part
        elif index == 0:
            yield from str(part).encode().split()
        elif isinstance(part, float):
            yield repr(part).encode()
        else:
            yield str(part).encode()
