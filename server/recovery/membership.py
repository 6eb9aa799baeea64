"""Membership: a process proves that it lives, and learns which others do.

A process that was silent for five seconds is dead. A process that notices this detaches the dead
process's sockets from their sessions, as of its last proof of life (``sweeper.py``). The heartbeat
waits for nothing but its own answer. What else a process asks Redis for goes on beside it: the look
for losses, and the sweep, however long they take. They must not make this process the next dead
one.
"""

import asyncio
import contextlib
import itertools

import structlog

from protocol import limits
from server import limits as server_limits
from server.recovery.cluster_time import take_over_time
from server.recovery.orphans import Orphans
from server.recovery.reassertion import Recovery
from server.recovery.sweeper import Sweeper
from server.runtime.clock import ClusterClock
from storage.redis.keys import LOOK_CHANNEL
from storage.redis.live import Live, LiveError
from storage.tasks import end

log = structlog.get_logger()

MEMBER_POLL_MS = server_limits.PRESENCE_BEAT_MS
"""How long a process has to answer a poll. A process that was silent for ``NODE_SILENT_MS`` is not
waited for."""
BREAK_MS = limits.NODE_SILENT_MS - 2 * server_limits.PRESENCE_BEAT_MS
"""After a break of this length between two beats of its own, a process listens anew, because the
others may have been unable to beat just as long."""


class Membership:
    """The heartbeat of a process, and its knowledge of the others."""

    def __init__(
        self,
        live: Live,
        orphans: Orphans,
        clock: ClusterClock,
        recovery: Recovery | None = None,
    ) -> None:
        self.live = live
        self.orphans = orphans
        self.recovery = recovery
        self.clock = clock
        self.sweeper = Sweeper(live, orphans, clock, lambda: self._silent(limits.NODE_SILENT_MS))
        self.nodes: dict[str, int] = {}
        """The last proof of life of every process."""
        self._viewed_at = 0
        """When ``nodes`` was asked for. Redis may know of a newer proof by now."""
        self.redis_up = False
        self._beaten_at: int | None = None
        self._listens_since = 0
        """Silence before this instant does not show that a process is dead."""
        self._beating: asyncio.Task[None] | None = None
        self._answering: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[dict[str, int]] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._reconcile_due = False

    async def start(self) -> None:
        """Sets the clock; then beats every second, and when asked."""
        await take_over_time(self.clock, self.live)
        await self.orphans.registry.accounts.channels.subscribe(LOOK_CHANNEL, self._asked)
        await self.beat()
        self.redis_up = True
        if self.recovery is not None and len(self.nodes) == 1:
            await self.recovery.begin()
        self.orphans.missing = self.missing
        self.sweeper.sweep_if_due()
        self._beating = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends the beats.

        A process without sockets leaves the list; the others see that, and look after the graces
        that it began. A process that leaves a socket behind stays in the list, and is swept.
        """
        await end((self._beating, self._looking))
        await end((self.sweeper.task, self._answering, self._polling))
        with contextlib.suppress(LiveError):
            if not await self._leaves_sessions():
                await self.live.forget_node(self.live.node)

    async def _leaves_sessions(self) -> bool:
        if any(local.meter.sockets or local.meter.is_busy for local in self.orphans.registry):
            return True
        return bool([name async for name in self.live.sessions_of_node(self.live.node)])

    def _asked(self, _: object) -> None:
        """Sends a beat at once.

        A process has started, or the connection to Redis was lost.
        """
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer())

    def beat_first(self) -> None:
        """Sends a beat before all other work, because this process stood still."""
        self._asked(None)

    async def _answer(self) -> None:
        with contextlib.suppress(LiveError):
            await self.beat()

    async def beat(self) -> None:
        """Proves that this process lives, and learns which others do."""
        sent_at, asked_at = self.clock.reading(), self.clock.now()
        beat = await self.live.beat(self.clock.now(), self.clock.redis_ms())
        self.clock.observe(beat.redis_ms, sent_at)
        now_ms = self.clock.now()
        if self._beaten_at is not None and now_ms - self._beaten_at > BREAK_MS:
            self._listens_since = now_ms
        self._beaten_at = now_ms
        self.clock.follow(max(beat.nodes.values(), default=0))
        self._seen(beat.nodes, asked_at)

    def _seen(self, nodes: dict[str, int], asked_at: int) -> None:
        if self.nodes.keys() - nodes.keys():
            self.sweeper.graces_due = True  # a process left, perhaps with a grace unattended
        self.nodes, self._viewed_at = nodes, asked_at

    async def missing(self, nodes: frozenset[str]) -> dict[str, int]:
        """The dead of ``nodes``, with their last proofs of life.

        A process that proved its life lately may have died since. So all are asked, and have
        ``MEMBER_POLL_MS`` to prove it again. Raises ``LiveError``.
        """
        before = await self._poll_members()
        until_s = self.clock.reading() + MEMBER_POLL_MS / 1000
        while True:
            silent = {
                node: self.nodes[node]
                for node in nodes
                if node in self.nodes and self.nodes[node] == before.get(node)
            }
            is_known = silent.keys() <= self._silent(limits.NODE_SILENT_MS).keys()
            if is_known or self.clock.reading() >= until_s:
                return silent
            await self._poll_members()

    async def _poll_members(self) -> dict[str, int]:
        """Asks all processes for a beat; returns the last proofs of life.

        Joins of sessions at the same time share one poll.
        """

        async def poll() -> dict[str, int]:
            await asyncio.sleep(server_limits.BEAT_LOOK_PAUSE_S)
            asked_at = self.clock.now()
            look = await self.live.look(ask=True)
            self._seen(look.nodes, asked_at)
            return look.nodes

        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(poll())
        return await asyncio.shield(self._polling)

    def _silent(self, silent_ms: int) -> dict[str, int]:
        """The others that were silent for ``silent_ms``, with their last proofs.

        What counts is the instant at which Redis was asked for the proofs: over a slow connection,
        a newer proof may have arrived there since.
        """
        since = self._viewed_at - silent_ms
        return {
            node: alive_at
            for node, alive_at in self.nodes.items()
            if node != self.live.node and max(alive_at, self._listens_since) < since
        }

    async def _run(self) -> None:
        took_s = 0.0
        for beats in itertools.count(1):
            # A slow answer does not put off the next beat: that one goes out when it is due.
            await asyncio.sleep(max(0.0, server_limits.PRESENCE_BEAT_MS / 1000 - took_s))
            sent_at = self.clock.reading()
            try:
                await self.beat()
                self.redis_up = True
                self._look_beside(reconcile=beats % server_limits.RECONCILE_BEATS == 0)
            except LiveError as error:
                self.redis_up = False
                log.warning("beat_unanswered", error=str(error))
            except Exception:
                # If the heartbeat loop dies, peers sweep a live process.
                log.exception("beat_failed")
            took_s = self.clock.reading() - sent_at

    def _look_beside(self, *, reconcile: bool) -> None:
        """Looks for losses and the dead, unless a look goes on."""
        self._reconcile_due = self._reconcile_due or reconcile
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        try:
            if self.recovery is not None:
                await self.recovery.look()
            reconcile, self._reconcile_due = self._reconcile_due, False
            self.sweeper.sweep_if_due(reconcile=reconcile)
        except LiveError as error:
            self.redis_up = False
            log.warning("look_unanswered", error=str(error))
        except Exception:
            log.exception("look_failed")
