"""A server process is killed under its customers: how long they wait, and what it costs them.

Three processes serve live sessions on one Redis and one Postgres, with a flusher, all of
them real; one gets SIGKILL. Its customers come back to the others as the browser client
does, with backoff and jitter. In the end every session is stopped and every figure audited.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from server.bench import machine
from server.bench.crowd import Crowd
from server.bench.house import House, Worker, open_house, status_bytes

CREDITS = "1000"


async def measure(clients: int, processes: int, seconds: float) -> list[str]:
    """Kills one of so many processes under so many clients; the lines of the report.

    Sessions run for ``seconds`` before that, so that each client's backoff has begun anew.
    """
    async with open_house() as house:
        await house.grant((f"customer-{number}" for number in range(clients)), CREDITS)
        servers = [await house.serve() for _ in range(processes)]
        flusher = await house.start("flush")
        crowd = await Crowd.start(house.environment)
        try:
            began = time.monotonic()
            await crowd.open([server.port for server in servers], clients)
            await crowd.ticked()
            opened_s = time.monotonic() - began
            await asyncio.sleep(seconds)
            lines = [
                machine.describe(),
                f"{clients} sessions on {processes} processes, {opened_s:.1f} s to start them",
            ]
            return lines + await _kill(house, servers, flusher, crowd)
        finally:
            await crowd.close()


async def _kill(house: House, servers: list[Worker], flusher: Worker, crowd: Crowd) -> list[str]:
    """Kills the first process, and sees what comes of it."""
    dead, *others = servers
    before = [status_bytes(server.child.pid, "VmRSS") for server in servers]
    killed, killed_at = time.monotonic(), time.time() * 1000
    dead.kill()
    returned = await crowd.returned(dead.port, [server.port for server in others])
    lines = _times(returned, killed)
    peaks = [server.peak_bytes() for server in others]
    receipts = await crowd.stop()
    lines.append(
        f"memory of a server: {_mib(before)} before; {_mib(peaks)} at its peak, of those that stay"
    )
    lines += _counted(receipts, returned, killed_at)
    await house.flushed()
    for worker in (*others, flusher):
        worker.check()
        await worker.stop()
    return [*lines, *(f"audit: {line}" for line in await house.audit() if "audited" not in line)]


def _times(returned: Sequence[dict[str, Any]], killed: float) -> list[str]:
    ended = sum(one["ended"] for one in returned)
    lines = [
        f"{len(returned)} lost their process: {len(returned) - ended} sessions went on, "
        f"{ended} ended; {max(one['attempts'] for one in returned)} attempts to connect at most",
        f"{'since the kill, in s':<34}{'median':>8}{'p99':>8}{'last':>8}",
    ]
    for text, name in (
        ("until the line was lost", "gone_at"),
        ("until the session was shown again", "answered_at"),
        ("until it ticked again", "ticked_at"),
    ):
        waits = sorted(one[name] - killed for one in returned if one[name] is not None)
        lines.append(f"{text:<34}{_spread(waits)}")
    return lines


def _counted(
    receipts: Sequence[dict[str, Any]], returned: Sequence[dict[str, Any]], killed_at: float
) -> list[str]:
    """What counted time the death cost a session, or gave it, by the receipts.

    Where the receipt has a gap, it begins at what is billed last. Without one the session
    ran on until its customer was back: what nobody was connected for was counted all the
    same.
    """
    unpaid_s: list[float] = []
    overpaid_s: list[float] = []
    onward_s: list[float] = []
    for one in returned:
        gaps = receipts[one["number"]].get("gaps")
        if gaps:
            difference_s = (killed_at - gaps[0]["from_at"]) / 1000
            (unpaid_s if difference_s >= 0 else overpaid_s).append(abs(difference_s))
        elif one["answered_at"] is not None:
            onward_s.append(one["answered_at"] - one["gone_at"])
    lines = [f"{'counted time, in s':<34}{'median':>8}{'p99':>8}{'most':>8}{'sessions':>10}"]
    for text, found in (
        ("run before the death, not counted", unpaid_s),
        ("counted after the death, then a gap", overpaid_s),
        ("counted through, until it was back", onward_s),
    ):
        lines.append(f"{text:<34}{_spread(sorted(found))}{len(found):>10}")
    numbers = {one["number"] for one in returned}
    touched = sum(
        bool(receipt.get("gaps"))
        for number, receipt in enumerate(receipts)
        if number not in numbers
    )
    return [*lines, f"gaps in sessions of the other processes: {touched}"]


def _spread(ordered: Sequence[float]) -> str:
    if not ordered:
        return f"{'-':>8}{'-':>8}{'-':>8}"
    places = (len(ordered) // 2, int(len(ordered) * 0.99), len(ordered) - 1)
    return "".join(f"{ordered[place]:>8.2f}" for place in places)


def _mib(sizes: Sequence[int]) -> str:
    return ", ".join(f"{size / (1 << 20):.0f}" for size in sizes) + " MiB"
