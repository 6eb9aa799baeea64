"""Measures the speed and cost of ticks, beside other ways of sending."""

import asyncio
import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.benchmarks import machine
from tests.benchmarks.contestants import (
    Bare,
    BareMade,
    Broadcast,
    Contestant,
    SendText,
    Taximeter,
    TaximeterWire,
)
from tests.benchmarks.sink import Sink

CONTESTANTS: tuple[type[Contestant], ...] = (
    Bare,
    BareMade,
    Taximeter,
    TaximeterWire,
    Broadcast,
    SendText,
)
SETTLE_SECONDS = 0.05
"""Time for the clients to read the rest of the previous turn."""


@dataclass
class Turn:
    """One contestant's turn in one round."""

    messages: int
    seconds: float
    processor_seconds: float

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    @property
    def cost(self) -> float:
        """Microseconds of processor time for a message."""
        return self.processor_seconds / self.messages * 1e6


@dataclass
class TickScore:
    """All the turns of a contestant."""

    name: str
    sockets: int
    turns: list[Turn] = field(default_factory=list)
    lost: int = 0
    """Ticks that a socket skipped because its client was slow."""

    @property
    def rate(self) -> float:
        """Messages a second, in the median round."""
        return statistics.median(turn.rate for turn in self.turns)

    @property
    def cost(self) -> float:
        """Microseconds of processor time for a message, in the median round."""
        return statistics.median(turn.cost for turn in self.turns)

    def rate_ratio(self, yardstick: "TickScore") -> float:
        """The rate divided by another's, round by round; the median."""
        pairs = zip(self.turns, yardstick.turns, strict=True)
        return statistics.median(mine.rate / its.rate for mine, its in pairs)

    def cost_ratio(self, yardstick: "TickScore") -> float:
        """The processor time divided by another's, round by round; the median."""
        pairs = zip(self.turns, yardstick.turns, strict=True)
        return statistics.median(mine.cost / its.cost for mine, its in pairs)


async def take_turn(contestant: Contestant, seconds: float, score: TickScore) -> None:
    """Pushes for ``seconds``, as fast as possible."""
    gc.collect()
    await asyncio.sleep(SETTLE_SECONDS)
    pushed = passes = 0
    began = now = time.perf_counter()
    processor = time.process_time()
    while now - began < seconds:
        passes += 1
        pushed += await contestant.push(passes)
        await asyncio.sleep(0)
        now = time.perf_counter()
    score.turns.append(Turn(pushed, now - began, time.process_time() - processor))
    score.lost += passes * contestant.count - pushed


async def compare(sockets: int, seconds: float, rounds: int) -> list[TickScore]:
    """Lets all contestants push in turns, for ``rounds`` rounds.

    Each pushes to ``sockets`` sockets.
    """
    sink = Sink()
    try:
        contestants = [kind(pings=False) for kind in CONTESTANTS]
        for contestant in contestants:
            port = await contestant.start()
            await sink.open(port, sockets, handshake=contestant.handshake)
            await contestant.until_open(sockets)
        scores = [TickScore(contestant.name, sockets) for contestant in contestants]
        slice_seconds = seconds / rounds
        for first in range(rounds):
            # Each round begins with another contestant, so none is always behind the same one.
            for place in range(len(contestants)):
                index = (first + place) % len(contestants)
                await take_turn(contestants[index], slice_seconds, scores[index])
        return scores
    finally:
        sink.close()


async def sweep(counts: Sequence[int], seconds: float, rounds: int) -> list[TickScore]:
    """Measures one tick's cost among growing numbers of sockets.

    One contestant at a time has its sockets open, because a process may not have twice the largest
    number.
    """
    scores = []
    for count in sorted(counts):
        for kind in (Bare, Taximeter):
            sink = Sink()
            try:
                contestant = kind(pings=False)
                await sink.open(await contestant.start(), count, handshake=contestant.handshake)
                await contestant.until_open(count)
                score = TickScore(contestant.name, count)
                for _ in range(rounds):
                    await take_turn(contestant, seconds / rounds, score)
                scores.append(score)
            finally:
                sink.close()
    return scores


def report(scores: Sequence[TickScore]) -> str:
    """The table. Ratios are to the first score with equally many sockets."""
    head = f"{'':<22}{'sockets':>8}{'messages/s':>12}{'ratio':>7}{'us/message':>12}{'ratio':>7}"
    lines = [machine.describe(), head + f"{'skipped':>9}"]
    for score in scores:
        first = next(other for other in scores if other.sockets == score.sockets)
        lines.append(
            f"{score.name:<22}{score.sockets:>8}"
            f"{score.rate:>12,.0f}{score.rate_ratio(first):>7.2f}"
            f"{score.cost:>12.2f}{score.cost_ratio(first):>7.2f}{score.lost:>9}"
        )
    return "\n".join(lines)
