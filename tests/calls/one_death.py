"""A fixed call whose process dies at one message to an engine."""

from tests.calls.call_histories import CREDIT, CallHistory, Engine
from tests.simulation.driver import Laboratory
from tests.simulation.virtual import VirtualLoop, run


class OneDeath(CallHistory):
    """A fixed call whose process dies at one message to an engine.

    The event of a leave comes late, so that a correction is made too.
    """

    def __init__(
        self, lab: Laboratory, loop: VirtualLoop, where: Engine, message: int, *, after: bool
    ) -> None:
        super().__init__(0, lab, loop)
        self.is_livekit = False
        self.calls.lost = lambda sent: False
        self.calls.late_ms = lambda: [0]
        self.credits = dict.fromkeys(self.credits, 1_000 * CREDIT)
        self.where, self.message, self.after = where, message, after
        self.spare = 0
        """Messages that the first process had left when it was to die; 0: it died."""

    async def play(self) -> None:
        """Lets the call happen; another process goes on after the death."""
        calls, fake = self.calls, self.fake
        await self._begin_with(1)
        first = calls.cluster.nodes[0]
        calls.kill_at(first, self.where, self.message, after=self.after)
        run_ = fake.start("default:one", kind="class")
        there = [fake.join(run_, "ann"), fake.join(run_, "bob")]
        await self._pass(70_000)
        fake.leave(run_, there[0])
        calls.late_ms = lambda: [15_000]
        calls.collect()
        calls.late_ms = lambda: [0]
        await self._pass(5_000)
        fake.join(run_, "cy")
        await self._pass(20_000)
        fake.end(run_)
        await self._pass(30_000)
        await calls.settled()
        line = first.line if self.where == "redis" else first.postgres
        self.spare = len(line.mishaps)
        await self.heal()

    async def _pass(self, ms: int) -> None:
        """Lets time pass, with a process again three seconds after the death."""
        until = self.calls.now + ms
        while self.calls.now < until:
            await self.calls.advance(1_000)
            if not self.calls.cluster.nodes:
                await self.calls.advance(3_000)
                await self.calls.serve()


def play_one_death(lab: Laboratory, where: Engine, message: int, *, after: bool) -> int:
    """Plays a fixed call with one death, and checks its bills.

    Returns how many messages were left until the death: 0 where the process died.
    """
    found: list[int] = []

    async def main(loop: VirtualLoop) -> None:
        history = OneDeath(lab, loop, where, message, after=after)
        try:
            await history.play()
            history.check()
            found.append(history.spare)
        finally:
            history.calls.cluster.stop()
            await history.calls.cluster.settle()

    with lab.emptied():
        run(main)
    return found[0]
