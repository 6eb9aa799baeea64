"""Pings all sockets of a process with one timer.

All sockets wait equally long for their ping, and equally long for the pong. So they fall due in the
order in which they were added: two queues replace a heap, and save a timer of half a kilobyte for
each socket.
"""

import asyncio
from collections import deque
from typing import Protocol

from server.runtime.isolation import isolated


class Pinged(Protocol):
    """A socket as the keepalive sees it; ``due_at`` belongs to the keepalive."""

    due_at: float
    awaiting_pong: bool
    """Set by the ping, cleared by the socket at any proof of life."""
    read_paused: bool

    @property
    def is_open(self) -> bool:
        """False: the keepalive forgets the socket at its next turn."""

    def send_keepalive_ping(self) -> None:
        """Sends a ping and awaits the pong."""

    def keepalive_timeout(self) -> None:
        """Closes the socket: no proof of life came in time."""


class Keepalive:
    """Pings each socket every ``interval`` seconds and times it out ``timeout`` later.

    Without an interval it sends no pings; without a timeout it times out no socket.
    """

    __slots__ = ("asked", "idle", "interval", "loop", "timeout", "timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, interval: float | None, timeout: float | None
    ) -> None:
        self.loop = loop
        self.interval = interval or 0.0
        self.timeout = timeout
        # Sockets in the order of their next ping, and sockets in the order of their pong's
        # deadline.
        self.idle: deque[Pinged] = deque()
        self.asked: deque[Pinged] = deque()
        self.timer: asyncio.TimerHandle | None = None

    def add(self, socket: Pinged) -> None:
        """Pings the socket from now on, until it is closed."""
        if self.interval:
            self._wait_for_ping(socket, self.loop.time() + self.interval)
            self._arm()

    def _wait_for_ping(self, socket: Pinged, due_at: float) -> None:
        socket.due_at = due_at
        self.idle.append(socket)

    def _arm(self) -> None:
        if self.timer is None and (self.idle or self.asked):
            due_at = min(queue[0].due_at for queue in (self.idle, self.asked) if queue)
            self.timer = self.loop.call_at(due_at, self._fire, due_at)

    def _fire(self, due_at: float) -> None:
        self.timer = None
        # A loop may wake slightly before the time, by its own clock.
        now = max(self.loop.time(), due_at)
        while self.asked and self.asked[0].due_at <= now:
            isolated("keepalive", self._judge, self.asked.popleft(), now)
        while self.idle and self.idle[0].due_at <= now:
            isolated("keepalive", self._ask, self.idle.popleft(), now)
        self._arm()

    def _ask(self, socket: Pinged, now: float) -> None:
        if not socket.is_open:
            return
        socket.send_keepalive_ping()
        if self.timeout is None:
            self._wait_for_ping(socket, now + self.interval)
        else:
            socket.due_at = now + self.timeout
            self.asked.append(socket)

    def _judge(self, socket: Pinged, now: float) -> None:
        if not socket.is_open:
            return
        assert self.timeout is not None
        if not socket.awaiting_pong:
            self._wait_for_ping(socket, now + max(0.0, self.interval - self.timeout))
        elif socket.read_paused:
            # Reading is paused on this side, so the silence proves nothing about the peer.
            socket.due_at = now + self.timeout
            self.asked.append(socket)
        else:
            socket.keepalive_timeout()
