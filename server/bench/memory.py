"""What an idle socket takes, by the growth of the server's memory over many of them."""

from server.bench import machine
from server.bench.contestants import (
    Bare,
    BareAsgi,
    Broadcast,
    Contestant,
    SendText,
    Taximeter,
    TaximeterStarlette,
)
from server.bench.sink import Sink

CONTESTANTS: dict[str, type[Contestant]] = {
    kind.name: kind for kind in (Bare, Taximeter, TaximeterStarlette, BareAsgi, SendText, Broadcast)
}
WARM_UP_SOCKETS = 200
"""Opened before, so that what is made once is not counted."""


async def bytes_per_socket(name: str, sockets: int) -> float:
    """The memory of one idle socket of a contestant. Run it in a process of its own.

    What a socket left behind would serve the next one, and it would seem to cost nothing.
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
