"""The sweeper: looks after the sessions that dead processes leave.

A sweep may be repeated, or made by two processes at once, without effect, because the steps carry
versions. However many sessions there are, the heartbeat goes on beside the sweep.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import structlog

from protocol import limits
from protocol.wire.errors import ProtocolError
from server import limits as server_limits
from server.recovery.orphans import Orphans
from server.runtime.clock import ClusterClock
from server.runtime.isolation import alone
from storage.redis.live import Live, LiveError

log = structlog.get_logger()


class Sweeper:
    """Looks after the sessions of dead processes, and after unattended graces.

    ``dead`` returns the dead processes with their last proofs of life.
    """

    def __init__(
        self, live: Live, orphans: Orphans, clock: ClusterClock, dead: Callable[[], dict[str, int]]
    ) -> None:
        self.live = live
        self.orphans = orphans
        self.clock = clock
        self._dead = dead
        self.task: asyncio.Task[None] | None = None
        """The current sweep, or the last one."""
        self.graces_due = True
        """Graces may run that no process looks after."""
        self._reconcile_due = False

    def sweep_if_due(self, *, reconcile: bool = False) -> None:
        """Begins a sweep if one is due and none is running."""
        registry = self.orphans.registry
        self._reconcile_due = self._reconcile_due or reconcile or registry.reconcile_due
        registry.reconcile_due = False
        if self.task is not None and not self.task.done():
            return
        if self.graces_due or self._reconcile_due or self._dead():
            self.task = asyncio.create_task(self._look_after_the_dead())

    async def _look_after_the_dead(self) -> None:
        """Sweeps every dead process; failures are retried after the next beat."""
        for node, alive_at in self._dead().items():
            self.graces_due = True
            with alone("sweep"):
                await self.sweep(node, alive_at)
        if self.graces_due:
            with alone("graces"):
                self.graces_due = not await self.adopt_graces()
        if self._reconcile_due:
            self._reconcile_due, is_done = False, False
            with alone("reconcile"):
                await self.orphans.reconcile()
                is_done = True
            self._reconcile_due = self._reconcile_due or not is_done

    async def sweep(self, node: str, alive_at: int) -> bool:
        """Detaches a dead process's sockets as of its last proof.

        Returns False if a session could not be looked after yet: the process stays in the list.
        """
        count, done = await self._adopt(self.live.sessions_of_node(node), node, alive_at)
        if done:
            await self.live.forget_node(node)
        log.info("node_swept", node=node, sessions=count, done=done, alive_at=alive_at)
        return done

    async def adopt_graces(self) -> bool:
        """Looks after running graces whose process may be dead.

        Returns False if one of them could not be looked after yet.
        """
        until = self.clock.now() + limits.RECONNECT_GRACE_MS_MAX
        _, done = await self._adopt(self.live.graces(until), self.live.node, None)
        return done

    async def _adopt(
        self, sessions: AsyncIterator[tuple[str, str]], node: str, alive_at: int | None
    ) -> tuple[int, bool]:
        """Adopts the sessions; returns their number, and whether all were adopted.

        A session that cannot be adopted (its account is cold, and Postgres does not answer) holds
        up no other.
        """
        names = [name async for name in sessions]
        done = True
        for first in range(0, len(names), server_limits.SWEEP_BATCH_SESSIONS):
            batch = names[first : first + server_limits.SWEEP_BATCH_SESSIONS]
            results = await asyncio.gather(
                *(self.orphans.adopt(*name, node, alive_at) for name in batch),
                return_exceptions=True,
            )
            for (tenant, session_id), result in zip(batch, results, strict=True):
                if isinstance(result, ProtocolError | LiveError):
                    log.warning("not_adopted", session=f"{tenant}/{session_id}", error=str(result))
                elif isinstance(result, BaseException):
                    log.error("not_adopted", session=f"{tenant}/{session_id}", exc_info=result)
                done = done and result is None
        return len(names), done
