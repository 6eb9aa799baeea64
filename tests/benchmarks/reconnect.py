"""Measures how long clients of a killed server wait, and the cost.

Three processes serve live sessions on one Redis and one Postgres, with a flusher, all of them real;
one gets SIGKILL. Its clients reconnect to the others as the browser client does, with backoff and
jitter. In the end every session is stopped and every figure audited.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from tests.benchmarks import machine
from tests.benchmarks.environment import ChildProcess, Environment, open_environment, status_bytes
from tests.benchmarks.fleet import Fleet

CREDITS = "1000"


async def measure(clients: int, processes: int, seconds: float) -> list[str]:
    """Kills one of the processes under its clients; returns the report's lines.

    Sessions run for ``seconds`` before that, so that each client's backoff has begun anew.
    """
    async with open_environment() as environment:
        await environment.grant((f"customer-{number}" for number in range(clients)), CREDITS)
        servers = [await environment.serve() for _ in range(processes)]
        flusher = await environment.start("flush")
        fleet = await Fleet.start(environment.variables)
        try:
            began = time.monotonic()
            await fleet.open([server.port for server in servers], clients)
            await fleet.ticked()
            opened_s = time.monotonic() - began
            await asyncio.sleep(seconds)
            lines = [
                machine.describe(),
                f"{clients} sessions on {processes} processes, {opened_s:.1f} s to start them",
            ]
            return lines + await _kill(environment, servers, flusher, fleet)
        finally:
            await fleet.close()


async def _kill(
    environment: Environment, servers: list[ChildProcess], flusher: ChildProcess, fleet: Fleet
) -> list[str]:
    """Kills the first process, and measures the consequences."""
    dead, *others = servers
    before = [status_bytes(server.child.pid, "VmRSS") for server in servers]
    killed, killed_at = time.monotonic(), time.time() * 1000
    dead.kill()
    returned = await fleet.returned(dead.port, [server.port for server in others])
    lines = _times(returned, killed)
    peaks = [server.peak_bytes() for server in others]
    receipts = await fleet.stop()
    lines.append(
        f"memory of a server: {_mib(before)} before; {_mib(peaks)} at its peak, of those that stay"
    )
    lines += _counted(receipts, returned, killed_at)
    await environment.flushed()
    for worker in (*others, flusher):
        worker.check()
        await worker.stop()
    return [
        *lines,
        *(f"audit: {line}" for line in await environment.audit() if "audited" not in line),
    ]


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
    """Counted time that the death cost or gave each session.

    The receipts show this time. Where the receipt has a gap, the gap begins at the last billed
    time. Without a gap the session ran on until its client was back: time without a connection was
    counted all the same.
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
