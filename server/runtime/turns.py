"""Turns: work for many sessions or sockets is done in bounded parts.

One customer may have hundreds of sessions and sockets, and one cause often concerns all of them:
they lose their connections together, receive the same credit, count on the same month. Such work is
cut into units, one for each session, and a turn of the event loop does a bounded number of them.
The customers take turns with one unit each, be it work or a task that waits. So no customer's work
makes a turn long, and no customer waits behind another's. A small piece of work is done at once, in
the turn that requests it.

Local deadlines do not wait here: a timer stops a session.
"""

import asyncio
from collections import deque
from collections.abc import Hashable, Iterator

from server import limits as server_limits
from server.runtime.isolation import failed
from server.runtime.round_robin import RoundRobin

Work = Iterator[object]
"""An iterator that does one unit of work for each ``next``."""


class Turns:
    """The units of work of one process."""

    def __init__(self, units_per_turn: int = server_limits.UNITS_PER_TURN) -> None:
        self._units_per_turn = units_per_turn
        self._left = units_per_turn
        self._queues: dict[Hashable, deque[Work]] = {}
        """Work by its customer; the customer whose turn it is comes first."""
        self._waiting = RoundRobin[asyncio.Future[None]]()
        """Waiting tasks by their customer."""
        self._is_working = False
        self._is_due = False

    @property
    def busy(self) -> bool:
        """Whether anything waits for a turn."""
        return bool(self._queues or self._waiting)

    def run(self, owner: Hashable, work: Work) -> None:
        """Does the work after this customer's waiting work.

        It runs now, as far as this turn has room, and in the turns that follow. A unit that raises
        ends its work, and is logged.
        """
        self._queues.setdefault(owner, deque()).append(work)
        if not self._is_working:
            self._work()

    async def take(self, owner: Hashable) -> None:
        """Returns when a turn has room for this customer's next unit.

        It may be this turn or a later one.
        """
        if self._left > 0 and not self._waiting:
            self._spend()
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(owner, waiting)
        self._come_back()
        await waiting

    async def idle(self) -> None:
        """Returns when nothing waits for a turn."""
        while self.busy:  # noqa: ASYNC110 -- each turn of the loop does some of it
            await asyncio.sleep(0)

    def _spend(self) -> None:
        self._left -= 1
        self._come_back()

    def _come_back(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_due = False
        self._left = self._units_per_turn
        # When both wait, tasks get half of the units at most, and work gets the others.
        for _ in range(self._units_per_turn // 2 if self._queues else self._units_per_turn):
            if not self._waiting:
                break
            waiting = self._waiting.popleft()
            if not waiting.done():
                self._spend()
                waiting.set_result(None)
        self._work()
        if self.busy:
            self._come_back()

    def _work(self) -> None:
        self._is_working = True
        try:
            while self._queues and self._left > 0:
                self._spend()
                owner = next(iter(self._queues))
                queue = self._queues.pop(owner)
                if not self._goes_on(queue[0]):
                    queue.popleft()
                if queue:
                    # New work of the same customer comes after its older work.
                    queue.extend(self._queues.pop(owner, ()))
                    self._queues[owner] = queue
        finally:
            self._is_working = False
        if self._queues:
            self._come_back()

    @staticmethod
    def _goes_on(work: Work) -> bool:
        try:
            next(work)
        except StopIteration:
            return False
        except Exception:
            failed("turn")
            return False
        return True
