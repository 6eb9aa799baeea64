"""Presence: this process proves that it lives, and looks after what dead ones leave.

A process that was silent for five seconds is dead. Whoever notices takes its sockets off
its sessions, as of its last proof of life; doing it twice, or from two processes at
once, changes nothing, because the steps carry versions.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator

import structlog

from protocol import limits
from protocol.errors import ProtocolError
from server.clock import ClusterClock
from server.orphans import Orphans
from storage.live import Live, LiveError

log = structlog.get_logger()

SUSPECT_MS = 1_500
"""A process that missed a beat may be dead: who joins its sessions does not wait to know."""
RECONCILE_BEATS = 60
"""How often a process looks after what it is noted for and does not have, in beats."""


class Presence:
    """The beat of a process, and the sweep of others."""

    def __init__(self, live: Live, orphans: Orphans, clock: ClusterClock) -> None:
        self.live = live
        self.orphans = orphans
        self.clock = clock
        self.nodes: dict[str, int] = {}
        """Every process by its last proof of life."""
        self.redis_up = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The first beat, which sets the clock; then one a second."""
        await self.beat()
        for node, alive_at in self.nodes.items():
            if node != self.live.node and self.clock.now() - alive_at > limits.NODE_SILENT_MS:
                await self.sweep(node, alive_at)
        await self.adopt_graces()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """No more beats; the process leaves the list, so that nobody waits for it."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        with contextlib.suppress(LiveError):
            await self.live.forget_node(self.live.node)

    async def beat(self) -> None:
        """Proves that this process lives, and learns who else does."""
        sent_at = time.monotonic()
        beat = await self.live.beat(self.clock.now())
        self.clock.observe(beat.redis_ms, sent_at, time.monotonic())
        self.nodes = beat.nodes
        now_ms = self.clock.now()
        self.orphans.suspects = {
            node: alive_at
            for node, alive_at in beat.nodes.items()
            if node != self.live.node and now_ms - alive_at > SUSPECT_MS
        }

    async def _run(self) -> None:
        for beats in itertools.count(1):
            await asyncio.sleep(limits.PRESENCE_BEAT_MS / 1000)
            try:
                await self.beat()
                self.redis_up = True
                for node in self._dead():
                    await self.sweep(node, self.nodes[node])
                    await self.adopt_graces()
                if beats % RECONCILE_BEATS == 0:
                    await self.orphans.reconcile()
            except (LiveError, ProtocolError) as error:
                self.redis_up = False
                log.warning("beat_unanswered", error=str(error))
            except Exception:
                # A beat that stopped would have this process buried alive.
                log.exception("beat_failed")

    def _dead(self) -> list[str]:
        now_ms = self.clock.now()
        return [
            node
            for node, alive_at in self.nodes.items()
            if node != self.live.node and now_ms - alive_at > limits.NODE_SILENT_MS
        ]

    async def sweep(self, node: str, alive_at: int) -> None:
        """Detaches the sockets of a dead process as of its last proof of life."""
        count = 0
        async for tenant, session_id in self.live.sessions_of_node(node):
            await self.orphans.adopt(tenant, session_id, node, alive_at)
            count += 1
        await self.live.forget_node(node)
        log.info("node_swept", node=node, sessions=count, alive_at=alive_at)

    async def adopt_graces(self) -> None:
        """Looks after sessions whose grace runs: whoever began it may be dead."""
        async for tenant, session_id in _until(self.live, self.clock.now()):
            await self.orphans.adopt(tenant, session_id, self.live.node, None)


def _until(live: Live, now_ms: int) -> AsyncIterator[tuple[str, str]]:
    return live.graces(now_ms + limits.RECONNECT_GRACE_MS_MAX)
