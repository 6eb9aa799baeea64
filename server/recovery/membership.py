"""Presence: this process proves that it lives, and looks after what dead ones leave.

A process that was silent for five seconds is dead. Whoever notices takes its sockets off
its sessions, as of its last proof of life; doing it twice, or from two processes at
once, changes nothing, because the steps carry versions. However much there is to look
after, the beat goes on beside it: it must not make this process the next dead one.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import structlog

from protocol import limits
from protocol.wire.errors import ProtocolError
from server.recovery.orphans import Orphans
from server.recovery.reassertion import Recovery
from server.runtime.clock import ClusterClock, Sample
from server.runtime.isolation import alone
from storage.redis.beats import Look
from storage.redis.keys import LOOK_CHANNEL
from storage.redis.live import Live, LiveError
from storage.tasks import end

log = structlog.get_logger()

ROLL_CALL_MS = limits.PRESENCE_BEAT_MS
"""How long a process has to answer when it is asked whether it lives; one that was silent
for ``NODE_SILENT_MS`` is not asked."""
BREAK_MS = limits.NODE_SILENT_MS - 2 * limits.PRESENCE_BEAT_MS
"""After a break of so long between two beats of its own, a process listens anew: others may
have been kept from theirs just as long."""
LOOK_S = 0.02
"""Pauses between two looks for an answer of the others."""
STEADY_MS = 1
"""Two clocks that nobody stepped meanwhile agree on such a pause to within this."""
PROMPT_MS = 100
"""A beat that came to Redis so long after its sender believed was on its way meanwhile, and
the cluster time in it is as old; or the clock of Redis was stepped. The next one tells."""
RECONCILE_BEATS = 60
"""How often a process looks after what it is noted for and does not have, in beats."""


class Presence:
    """The beat of a process, and the sweep of others."""

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
        self.nodes: dict[str, int] = {}
        """Every process by its last proof of life."""
        self.redis_up = False
        self._beaten_at: int | None = None
        self._listens_since = 0
        """Silence before that says nothing of who was silent."""
        self._beating: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._answering: asyncio.Task[None] | None = None
        self._calling: asyncio.Task[dict[str, int]] | None = None
        self._graces_due = True
        """Graces may run that nobody looks after."""
        self._reconcile_due = False

    async def start(self) -> None:
        """Sets the clock; then one beat a second, and one for everybody who asks."""
        await self._set_clock()
        await self.orphans.hub.accounts.subscribe(LOOK_CHANNEL, self._asked)
        await self.beat()
        self.redis_up = True
        if self.recovery is not None and len(self.nodes) == 1:
            await self.recovery.begin()
        self.orphans.missing = self.missing
        self._sweep_if_due()
        self._beating = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """No more beats. The process leaves the list, and whoever misses it there looks after
        the graces that it began; one that leaves a socket behind stays in it, and is swept."""
        await end((self._beating, self._sweeping, self._answering, self._calling))
        with contextlib.suppress(LiveError):
            if not await self._leaves_sessions():
                await self.live.forget_node(self.live.node)

    async def _leaves_sessions(self) -> bool:
        if any(seat.meter.sockets or seat.meter.asked for seat in self.orphans.hub):
            return True
        return bool([name async for name in self.live.sessions_of_node(self.live.node)])

    async def _set_clock(self) -> None:
        """Takes cluster time over from the processes that live.

        They are asked for a beat, and the one that comes between two looks has the time. A
        process that lives beats within ``PRESENCE_BEAT_MS`` of Redis's coming back. A beat
        that was long on its way says a time that has passed: a prompt one is waited for, and
        where none comes, what its sender took the clock of Redis for tells how far that is from
        cluster time. What Redis says is as old as half a round trip: the look that was answered
        fastest counts. Where nobody beats, the time is that of Redis, but never before what the
        dead have left.
        """
        until_s = (limits.PRESENCE_BEAT_MS + limits.REDIS_TIMEOUT_MS) / 1000
        began_at = asked_at = self.clock.reading()
        ahead_ms: float | None = None  # the clock of Redis, of cluster time
        behind_ms = 0.0
        last = look = await self.live.look(ask=True)
        best = self._sample(look, asked_at)
        while (look.nodes or look.heard) and self.clock.reading() - began_at < until_s:
            await asyncio.sleep(LOOK_S)
            last, sent_at, asked_at = look, asked_at, self.clock.reading()
            look = await self.live.look(ask=False)
            sample = self._sample(look, asked_at)
            since_ms = look.redis_ms - look.beaten_redis_ms
            # The clock of Redis was not stepped between that beat and this look.
            most_ms = (self.clock.reading() - sent_at) * 1000 + STEADY_MS
            is_steady = 0 <= since_ms <= most_ms
            # Samples of before a step say nothing of the time after it.
            is_alike = abs(sample.redis_ms - best.redis_ms - sample.middle_ms + best.middle_ms) <= (
                (sample.round_trip_ms + best.round_trip_ms) / 2 + STEADY_MS
            )
            if not is_alike:
                best, ahead_ms, behind_ms = sample, None, 0.0
            elif sample.round_trip_ms <= best.round_trip_ms:
                best = sample
            if look.beats != last.beats and is_steady:
                late_ms = look.beaten_redis_ms - look.believed_redis_ms
                if abs(late_ms) <= PROMPT_MS:
                    ahead_ms, behind_ms = look.believed_redis_ms - look.beaten_at, 0.0
                    break
                if 0 < late_ms <= limits.REDIS_TIMEOUT_MS:
                    ahead_ms, behind_ms = look.believed_redis_ms - look.beaten_at, 0.0
                elif ahead_ms is None or behind_ms:
                    # Redis was stepped, and how long this was on its way nobody knows.
                    told_ms = look.beaten_redis_ms - look.beaten_at
                    ahead_ms = told_ms if ahead_ms is None else min(ahead_ms, told_ms)
                    behind_ms = until_s * 1000
        if ahead_ms is not None:
            self.clock.set(best, ahead_ms, behind_ms)
            return
        left_at = max([look.beaten_at, *look.nodes.values()]) if look.nodes else 0
        self.clock.anchor(max(look.redis_ms, left_at), look.redis_ms, asked_at)

    def _sample(self, look: Look, asked_at: float) -> Sample:
        return Sample.of(look.redis_ms, asked_at, self.clock.reading())

    def _asked(self, _: object) -> None:
        """A process has started, or the line to Redis was down: it is told the time now."""
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer())

    def beat_first(self) -> None:
        """This process stood still: its beat is sent before whatever else has waited."""
        self._asked(None)

    async def _answer(self) -> None:
        with contextlib.suppress(LiveError):
            await self.beat()

    async def beat(self) -> None:
        """Proves that this process lives, and learns who else does."""
        sent_at = self.clock.reading()
        beat = await self.live.beat(self.clock.now(), self.clock.redis_ms())
        self.clock.observe(beat.redis_ms, sent_at)
        now_ms = self.clock.now()
        if self._beaten_at is not None and now_ms - self._beaten_at > BREAK_MS:
            self._listens_since = now_ms
        self._beaten_at = now_ms
        self.clock.follow(max(beat.nodes.values(), default=0))
        self._seen(beat.nodes)

    def _seen(self, nodes: dict[str, int]) -> None:
        if self.nodes.keys() - nodes.keys():
            self._graces_due = True  # somebody has left, and maybe a grace behind
        self.nodes = nodes

    async def missing(self, nodes: frozenset[str]) -> dict[str, int]:
        """Those of ``nodes`` that do not live, by their last proof of life.

        One that proved it lately may have died since then: all are asked, and have
        ``ROLL_CALL_MS`` to prove it again. Raises ``LiveError``.
        """
        before = await self._call()
        until_s = self.clock.reading() + ROLL_CALL_MS / 1000
        while True:
            silent = {
                node: self.nodes[node]
                for node in nodes
                if node in self.nodes and self.nodes[node] == before.get(node)
            }
            is_known = silent.keys() <= self._silent(limits.NODE_SILENT_MS).keys()
            if is_known or self.clock.reading() >= until_s:
                return silent
            await self._call()

    async def _call(self) -> dict[str, int]:
        """Asks everybody for a beat, and looks who has made one; all who join sessions at
        the same time share the answer."""

        async def call() -> dict[str, int]:
            await asyncio.sleep(LOOK_S)
            look = await self.live.look(ask=True)
            self._seen(look.nodes)
            return look.nodes

        if self._calling is None or self._calling.done():
            self._calling = asyncio.create_task(call())
        return await asyncio.shield(self._calling)

    def _silent(self, silent_ms: int) -> dict[str, int]:
        """The other processes that gave no proof of life for so long, by their last one."""
        since = self.clock.now() - silent_ms
        return {
            node: alive_at
            for node, alive_at in self.nodes.items()
            if node != self.live.node and max(alive_at, self._listens_since) < since
        }

    async def _run(self) -> None:
        for beats in itertools.count(1):
            await asyncio.sleep(limits.PRESENCE_BEAT_MS / 1000)
            try:
                await self.beat()
                self.redis_up = True
                if self.recovery is not None:
                    await self.recovery.look()
                self._sweep_if_due(reconcile=beats % RECONCILE_BEATS == 0)
            except LiveError as error:
                self.redis_up = False
                log.warning("beat_unanswered", error=str(error))
            except Exception:
                # A beat that stopped would have this process buried alive.
                log.exception("beat_failed")

    def _sweep_if_due(self, *, reconcile: bool = False) -> None:
        hub = self.orphans.hub
        self._reconcile_due = self._reconcile_due or reconcile or hub.reconcile_due
        hub.reconcile_due = False
        if self._sweeping is not None and not self._sweeping.done():
            return
        if self._graces_due or self._reconcile_due or self._silent(limits.NODE_SILENT_MS):
            self._sweeping = asyncio.create_task(self._look_after_the_dead())

    async def _look_after_the_dead(self) -> None:
        """Sweeps every dead process; what fails is tried again after the next beat."""
        for node, alive_at in self._silent(limits.NODE_SILENT_MS).items():
            self._graces_due = True
            with alone("sweep"):
                await self.sweep(node, alive_at)
        if self._graces_due:
            with alone("graces"):
                self._graces_due = not await self.adopt_graces()
        if self._reconcile_due:
            self._reconcile_due, is_done = False, False
            with alone("reconcile"):
                await self.orphans.reconcile()
                is_done = True
            self._reconcile_due = self._reconcile_due or not is_done

    async def sweep(self, node: str, alive_at: int) -> bool:
        """Detaches the sockets of a dead process as of its last proof of life.

        False when a session could not be looked after yet: the process stays in the list.
        """
        count, done = await self._adopt(self.live.sessions_of_node(node), node, alive_at)
        if done:
            await self.live.forget_node(node)
        log.info("node_swept", node=node, sessions=count, done=done, alive_at=alive_at)
        return done

    async def adopt_graces(self) -> bool:
        """Looks after sessions whose grace runs: whoever began it may be dead.

        False when that could not be done for one of them yet.
        """
        until = self.clock.now() + limits.RECONNECT_GRACE_MS_MAX
        _, done = await self._adopt(self.live.graces(until), self.live.node, None)
        return done

    async def _adopt(
        self, sessions: AsyncIterator[tuple[str, str]], node: str, alive_at: int | None
    ) -> tuple[int, bool]:
        """Adopts the sessions; how many there were, and whether all could be.

        One that cannot (its account is cold, and Postgres away) holds up no other.
        """
        names = [name async for name in sessions]
        done = True
        for first in range(0, len(names), limits.SWEEP_BATCH_SESSIONS):
            batch = names[first : first + limits.SWEEP_BATCH_SESSIONS]
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
