"""Reads a bounded number of sockets in each turn of the loop.

Hundreds of clients may send in one turn: all of them answer a ping, or lose their connections. Each
message is a proof of life, which may release a tick and cause a step. So a turn reads a bounded
number of sockets; the others wait for the next turns, in the order of arrival.
"""

import asyncio
from collections import deque
from typing import Protocol
from weakref import WeakKeyDictionary

from server import limits as server_limits
from server.runtime.isolation import isolated


class Readable(Protocol):
    """A socket with unread bytes."""

    def read_now(self) -> None:
        """Handles the bytes that have arrived."""


class Reading:
    """The sockets of one event loop that wait to be read."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, per_turn: int = server_limits.SOCKETS_PER_TURN
    ) -> None:
        self._loop = loop
        self._per_turn = per_turn
        self._left = per_turn
        self._waiting: deque[Readable] = deque()
        self._is_due = False

    def take(self) -> bool:
        """Takes a place in this turn; if it returns False, call ``later``."""
        if self._left <= 0 or self._waiting:
            return False
        self._spend()
        return True

    def later(self, socket: Readable) -> None:
        """Has the socket read in a later turn."""
        self._waiting.append(socket)
        self._come_back()

    def _spend(self) -> None:
        self._left -= 1
        self._come_back()

    def _come_back(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_due = False
        self._left = self._per_turn
        while self._waiting and self._left > 0:
            self._spend()
            isolated("socket", self._waiting.popleft().read_now)
        if self._waiting:
            self._come_back()


_readings: WeakKeyDictionary[asyncio.AbstractEventLoop, Reading] = WeakKeyDictionary()


def reading_of(loop: asyncio.AbstractEventLoop) -> Reading:
    """The :class:`Reading` of this event loop."""
    reading = _readings.get(loop)
    if reading is None:
        reading = _readings[loop] = Reading(loop)
    return reading
