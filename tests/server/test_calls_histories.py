"""Histories of calls: lost, late and repeated facts, dying processes.

After the sweep's truth each bill is that of the true call, within the tolerance; the same facts
again change nothing. These histories work on the meter alone; ``tests/calls`` has a thousand of the
whole, from the webhook to the bill.
"""

import random

import pytest

from server.calls.facts import Fact, FactKind
from server.calls.limits import CALL_PROOF_MS
from tests.server.call_desk import CallDesk
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT

HISTORIES = 6
CALL_MS = 1_200_000
SLACK_MS = 1_000
"""The last increment."""
assert CALL_MS < CALL_PROOF_MS


class History:
    """One call: who was there when, and what is heard of it."""

    def __init__(self, seed: int, desk: CallDesk) -> None:
        self.random = random.Random(seed)
        self.begin = desk.clock.now()
        self.end = self.begin + self.random.randrange(60_000, CALL_MS)
        self.truth: dict[str, list[tuple[int, int]]] = {"ann": [], "ben": []}
        self.facts: list[Fact] = []
        for who, stretches in self.truth.items():
            for number in range(self.random.randrange(1, 4)):
                first, last = sorted(self.random.sample(range(self.begin, self.end), 2))
                device = f"{who}-{number}"
                stretches.append((first, last))
                self.facts += [
                    desk.fact(FactKind.JOINED, who, first, device=device),
                    desk.fact(FactKind.LEFT, who, last, device=device, duration_ms=last - first),
                ]
        self.facts.append(desk.fact(FactKind.ENDED, at=self.end))

    def heard(self) -> list[tuple[int, Fact]]:
        """The facts as they arrive: a tenth lost, some twice, all late."""
        found = []
        for fact in self.facts:
            for _ in range(self.random.choice((1, 1, 2))):
                if self.random.random() > 0.1:
                    late_ms = self.random.choice((50, 300, 2_000, 90_000))
                    found.append((fact.at_ms + self.random.randrange(late_ms), fact))
        return sorted(found, key=lambda one: one[0])

    def true_ms(self, who: str) -> int:
        """How long a user was there, on whichever device."""
        total, until = 0, 0
        for first, last in sorted(self.truth[who]):
            total += max(0, last - max(first, until))
            until = max(until, last)
        return total


@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_bills_are_those_of_the_true_call(cluster: Cluster, node: Node, seed: int) -> None:
    for who in ("ann", "ben"):
        await cluster.grant(1_000 * CREDIT, who)
    desk = CallDesk(cluster)
    history = History(seed, desk)
    nodes = [node, await cluster.node()]
    heard = history.heard()
    dies_at = history.random.randrange(len(heard))
    for number, (at, fact) in enumerate(heard):
        await cluster.advance(max(0, at - cluster.clock.now()))
        if number == dies_at:
            dead, alive_at = nodes.pop(0), cluster.clock.now() - 500
            dead.is_alive = False
            await dead.stop()
            await cluster.advance(6_000)
            for name in [one async for one in nodes[0].live.sessions_of_node(dead.name)]:
                desk.meter(nodes[0])
                await nodes[0].orphans.adopt(*name, dead.name, alive_at)
        await desk.take(history.random.choice(nodes), fact)
    await cluster.advance(max(0, history.end - cluster.clock.now()) + 60_000)
    for fact in history.random.sample(history.facts, len(history.facts)):  # the sweep's truth
        await desk.take(nodes[0], fact)
    durations = {who: history.true_ms(who) for who in history.truth}
    await desk.confirm(nodes[0], desk.truth(ended=True, ended_at_ms=history.end))
    bills = {}
    for who, true_ms in durations.items():
        row, known = await desk.row(who), await desk.duration(who)
        bills[who] = await desk.billed(who)
        off_ms = desk.terms.tolerance_ms + SLACK_MS
        cost = desk.terms.cost_micros
        assert cost(max(0, true_ms - off_ms), 0) <= bills[who] <= cost(true_ms + off_ms, 0)
        assert (row.state, row.reason) == ("ended", "call_ended")
        if abs(known.provider_ms - row.elapsed_ms) > desk.terms.tolerance_ms:
            assert known.corrections
    for fact in history.random.sample(history.facts, len(history.facts)):
        await desk.take(nodes[0], fact)
    assert {who: await desk.billed(who) for who in bills} == bills
