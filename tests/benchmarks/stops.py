"""Measures how late an auto-stop leaves the server under load.

Thousands of sessions tick meanwhile. DESIGN promises that 99 of 100 ``limit_reached`` leave within
10 ms of the instant of the limit. No timer is on time under load, so two kinds of bare timers have
deadlines over the same seconds. Those of the serving loop show the loop's share of the delay; those
of a process that does nothing else show the machine's. A second round has Redis far away, because
no round trip may stand between a limit and the stop.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import asyncpg
import msgspec
import orjson
import uvloop

from protocol.wire.messages import LimitReached
from protocol.wire.money import MICROS_PER_CREDIT, format_credits
from server.transport.push import PushProtocol
from tests.benchmarks import machine
from tests.benchmarks.in_process import InProcessServer, serving

RATES = """
[kinds.chat]
credits_per_minute = "1"
increment_seconds = [1, 1]
stop_grace_seconds = 1
"""
LEAD_S = 2.0
LEAD_S_PER_SESSION = 0.03
"""Additional time of the first session, so that all have started before one stops."""
STOPPED_S_MAX = 120
PROMISED_S = 0.01
AWAY_MS = 600
"""Delay of Redis in the second round."""


class StopTimingSocket(PushProtocol):
    """A socket that notes when a ``limit_reached`` was written to it."""

    __slots__ = ()
    written: ClassVar[list[tuple[float, int]]] = []
    """The monotonic time of each write, and the message's instant of the stop."""

    def push(self, frame: bytes) -> bool:
        """See ``PushSocket.push``."""
        pushed = super().push(frame)
        if b'"limit_reached"' in frame[:40]:
            now = time.monotonic()
            said = msgspec.json.decode(frame[frame.index(b"{") :], type=LimitReached)
            self.written.append((now, said.stopped_at))
        return pushed


async def bare_timers(count: int, seconds: float) -> list[float]:
    """Fires ``count`` timers of this loop over ``seconds``.

    Returns how late each was, in ms.
    """
    loop = asyncio.get_running_loop()
    late_ms: list[float] = []
    all_fired = asyncio.Event()

    def fire(due: float) -> None:
        late_ms.append((time.monotonic() - due) * 1000)
        if len(late_ms) == count:
            all_fired.set()

    began = time.monotonic()
    for number in range(count):
        due = began + seconds * (number + 1) / count
        loop.call_later(due - time.monotonic(), fire, due)
    await all_fired.wait()
    return late_ms


class Round(NamedTuple):
    """The results of one round."""

    stops_ms: list[float]
    loop_ms: list[float]
    machine_ms: list[float]
    promised: str
    owing: int
    audit: str


async def measure(ticking: int, stopping: int, seconds: float) -> list[str]:
    """Measures ``stopping`` sessions that reach their limits while ``ticking`` others tick.

    Returns the report's lines. It runs twice: first with Redis near by, then with a Redis that is
    so distant, from a moment after the last start on, that an answer to a request made at the limit
    comes much too late.
    """
    near = await _round(ticking, stopping, seconds, 0)
    far = await _round(ticking, stopping, seconds, AWAY_MS)
    return [
        machine.describe(),
        f"{stopping} sessions stop over {seconds:g} s, while {ticking} tick",
        f"{'':<36}{'Redis near by':>24}{f'Redis {AWAY_MS} ms away':>24}",
        f"{'late, in ms':<36}" + f"{'p50':>8}{'p99':>8}{'most':>8}" * 2,
        _row("limit_reached, after its instant", near.stops_ms, far.stops_ms),
        _row("a bare timer of the same loop", near.loop_ms, far.loop_ms),
        _row("a bare timer of an idle process", near.machine_ms, far.machine_ms),
        f"by /metrics: {near.promised} within 10 ms, and {far.promised}",
        f"accounts that owe: {near.owing}, and {far.owing}",
        f"audit: {near.audit}; {far.audit}",
    ]


async def _round(ticking: int, stopping: int, seconds: float, away_ms: int) -> Round:
    StopTimingSocket.written.clear()
    lead_s = LEAD_S + stopping * LEAD_S_PER_SESSION
    amounts = {f"customer-{number}": "1000" for number in range(ticking)}
    for number in range(stopping):
        run_s = lead_s + seconds * number / stopping
        micros = int(run_s * MICROS_PER_CREDIT / 60)
        amounts[f"customer-{ticking + number}"] = format_credits(micros)
    async with serving(RATES, StopTimingSocket, is_far=away_ms > 0) as inside:
        await inside.environment.grant_each(amounts)
        await inside.fleet.open([inside.port], ticking)
        began = time.monotonic()
        await inside.fleet.open([inside.port], stopping)
        inside.redis.away_ms = away_ms
        # The time until the first of them stops, and then until the last.
        over_s = max(0.0, began + lead_s - time.monotonic()) + seconds
        machine_late = asyncio.create_task(_in_a_process_alone(stopping, over_s))
        loop_late = await bare_timers(stopping, over_s)
        async with asyncio.timeout(STOPPED_S_MAX):
            while len(StopTimingSocket.written) < stopping:  # noqa: ASYNC110 -- nothing waits for it
                await asyncio.sleep(0.1)
        inside.redis.away_ms = 0
        found = _late(inside), loop_late, await machine_late, _promised(inside)
        await inside.fleet.stop()
        await inside.environment.flushed()
        owing = await _owing(inside)
        return Round(*found, owing, (await inside.environment.audit())[-1])


async def _owing(inside: InProcessServer) -> int:
    """How many accounts are below zero."""
    connection = await asyncpg.connect(inside.environment.settings.database_url)
    try:
        query = "SELECT count(*) FROM credit_accounts WHERE balance_micros < 0"
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


async def _in_a_process_alone(count: int, seconds: float) -> list[float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.benchmarks.stops", str(count), str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    late_ms: list[float] = orjson.loads(output)
    return late_ms


def _late(inside: InProcessServer) -> list[float]:
    clock = inside.process.clock
    return [clock.at_ms(written) - stopped_at for written, stopped_at in StopTimingSocket.written]


def _row(text: str, *rounds: Sequence[float]) -> str:
    figures = ""
    for late_ms in rounds:
        ordered = sorted(late_ms)
        p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
        figures += f"{p50:>8.2f}{p99:>8.2f}{ordered[-1]:>8.2f}"
    return f"{text:<36}{figures}"


def _promised(inside: InProcessServer) -> str:
    """The figure of the server's own histogram, which operators see."""
    (metric,) = inside.process.metrics.stop_lateness.collect()
    within: dict[str, Any] = {
        sample.labels["le"]: sample.value for sample in metric.samples if "le" in sample.labels
    }
    return f"{within[str(PROMISED_S)]:.0f} of {within['+Inf']:.0f}"


if __name__ == "__main__":
    found = uvloop.run(bare_timers(int(sys.argv[1]), float(sys.argv[2])))
    sys.stdout.buffer.write(orjson.dumps(found))
