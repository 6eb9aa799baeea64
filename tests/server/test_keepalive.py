import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from server.transport.keepalive import Keepalive


class Loop:
    """A loop that keeps one timer, and whose time the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timer: tuple[float, Callable[..., None], tuple[Any, ...]] | None = None

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, callback: Callable[..., None], *args: Any) -> object:
        assert self.timer is None, "one timer for all"
        self.timer = (at, callback, args)
        return object()

    def pass_to(self, now: float) -> None:
        while self.timer is not None and self.timer[0] <= now:
            at, callback, args = self.timer
            self.timer = None
            # Loops wake a little early.
            self.now = max(self.now, at - 0.001)
            callback(*args)
        self.now = now


@dataclass
class PingedSocket:
    loop: Loop
    due_at: float = 0.0
    awaiting_pong: bool = False
    read_paused: bool = False
    is_open: bool = True
    pings: list[float] = field(default_factory=list)
    timed_out: list[float] = field(default_factory=list)

    def send_keepalive_ping(self) -> None:
        self.awaiting_pong = True
        self.pings.append(round(self.loop.now))

    def keepalive_timeout(self) -> None:
        self.timed_out.append(round(self.loop.now))
        self.is_open = False


def started(
    interval: float | None, timeout: float | None, sockets: int = 1
) -> tuple[Loop, Keepalive, list[PingedSocket]]:
    loop = Loop()
    keepalive = Keepalive(cast(asyncio.AbstractEventLoop, loop), interval, timeout)
    made = [PingedSocket(loop) for _ in range(sockets)]
    for socket in made:
        keepalive.add(socket)
    return loop, keepalive, made


def test_ping_every_interval_while_answered() -> None:
    loop, _, [socket] = started(10, 10)
    for at in (1010, 1020, 1030):
        loop.pass_to(at)
        socket.awaiting_pong = False
    assert socket.pings == [1010, 1020, 1030]
    assert socket.timed_out == []


def test_silence_times_out_after_interval_and_timeout() -> None:
    loop, _, [socket] = started(10, 10)
    loop.pass_to(1019)
    assert socket.timed_out == []
    loop.pass_to(1020)
    assert socket.timed_out == [1020]
    assert loop.timer is None


def test_short_timeout_does_not_hasten_the_next_ping() -> None:
    loop, _, [socket] = started(10, 2)
    loop.pass_to(1010)
    socket.awaiting_pong = False
    loop.pass_to(1021)
    assert socket.pings == [1010, 1020]
    loop.pass_to(1022)
    assert socket.timed_out == [1022]


def test_sockets_wait_each_for_its_own_time() -> None:
    loop, keepalive, [early] = started(10, 10)
    loop.pass_to(1004)
    late = PingedSocket(loop)
    keepalive.add(late)
    loop.pass_to(1013)
    assert (early.pings, late.pings) == ([1010], [])
    loop.pass_to(1030)
    assert (early.timed_out, late.timed_out) == ([1020], [1024])


def test_a_closed_socket_is_forgotten() -> None:
    loop, keepalive, [first, second] = started(10, 10, sockets=2)
    first.is_open = False
    loop.pass_to(1010)
    second.is_open = False
    loop.pass_to(1020)
    assert (first.pings, second.pings) == ([], [1010])
    assert not first.timed_out
    assert not second.timed_out
    assert not keepalive.idle
    assert not keepalive.asked


def test_silence_that_is_our_own_does_not_count() -> None:
    loop, _, [socket] = started(10, 10)
    socket.read_paused = True
    loop.pass_to(1025)
    assert socket.timed_out == []
    socket.read_paused = False
    loop.pass_to(1030)
    assert socket.timed_out == [1030]


def test_no_interval_no_pings() -> None:
    loop, _, [socket] = started(None, 10)
    loop.pass_to(2000)
    assert socket.pings == []


def test_no_timeout_no_death() -> None:
    loop, _, [socket] = started(10, None)
    loop.pass_to(1035)
    assert socket.pings == [1010, 1020, 1030]
    assert socket.timed_out == []
