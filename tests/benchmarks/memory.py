"""Measures the memory of idle sockets and sessions by the server's growth."""

import asyncio

from tests.benchmarks import machine
from tests.benchmarks.contestants import (
    Bare,
    BareAsgi,
    Broadcast,
    Contestant,
    SendText,
    Taximeter,
    TaximeterStarlette,
)
from tests.benchmarks.in_process import serving
from tests.benchmarks.sink import Sink

CONTESTANTS: dict[str, type[Contestant]] = {
    kind.name: kind for kind in (Bare, Taximeter, TaximeterStarlette, BareAsgi, SendText, Broadcast)
}
SESSIONS = "taximeter, live session"
"""The contestant that is more than a socket: a started session with its meter, account and timers.
"""
TICK_MS = 60_000
"""Tick interval of the measured sessions: long, because ticks take time and leave no memory behind.
"""
WARM_UP_SOCKETS = 200
"""Sockets that are opened before, so that memory that is allocated once does not count."""


async def bytes_per_socket(name: str, sockets: int) -> float:
    """The memory of a contestant's idle socket, in bytes.

    Run this in a process of its own. The next socket would reuse memory that an earlier one left
    behind, and would seem to cost nothing.
    """
    contestant = CONTESTANTS[name](pings=True)
    sink = Sink()
    try:
        port = await contestant.start()
        await sink.open(port, WARM_UP_SOCKETS, handshake=contestant.handshake)
        before = machine.resident_bytes()
        await sink.open(port, sockets, handshake=contestant.handshake)
        await contestant.until_open(WARM_UP_SOCKETS + sockets)
        return (machine.resident_bytes() - before) / sockets
    finally:
        sink.close()


async def bytes_per_session(sessions: int, idle_s: float) -> float:
    """The memory of one live session with its own client, in bytes.

    It is measured after ``idle_s`` without events, because a socket's deadline to authenticate is a
    timer of ten seconds.
    """
    async with serving() as inside:
        total = WARM_UP_SOCKETS + sessions
        await inside.environment.grant((f"customer-{number}" for number in range(total)), "1000")
        await inside.fleet.open([inside.port], WARM_UP_SOCKETS, tick_ms=TICK_MS)
        await asyncio.sleep(idle_s)
        before = machine.resident_bytes()
        await inside.fleet.open([inside.port], sessions, tick_ms=TICK_MS)
        await asyncio.sleep(idle_s)
        assert len(inside.process.registry.local_sessions) == total
        return (machine.resident_bytes() - before) / sessions
