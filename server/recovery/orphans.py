"""Orphans: sessions whose process died, and what becomes of them.

The sockets of a dead process are gone as of its last proof of life. The session is
suspended in its name, so that the step is the one that it would have made itself; a
socket that joins meanwhile, or the end of the grace, decides what follows.
"""

import asyncio
from collections.abc import Awaitable, Callable

from protocol import limits
from protocol.metering.session import session_key
from protocol.metering.states import Event, Phase, after
from protocol.wire.errors import ServiceError
from server.runtime.isolation import for_each
from server.sessions.local_session import LocalSession
from server.sessions.registry import SessionRegistry
from storage.redis.live import FoundSession, Live


class Orphans:
    """Looks after the sessions of dead processes, on behalf of this one."""

    def __init__(self, registry: SessionRegistry, live: Live) -> None:
        self.registry = registry
        self.live = live
        self.suspected: dict[str, int] = {}
        """Processes that are taken for dead where the members are not polled, by their last proof
        of life."""
        self.missing: Callable[[frozenset[str]], Awaitable[dict[str, int]]] | None = None
        """Polls other processes, and answers who is missing; the membership's, once it
        beats."""
        registry.before_joining = self.detach_dead

    async def adopt(self, tenant: str, session_id: str, node: str, alive_at: int | None) -> None:
        """Looks after a session that a dead process left behind.

        ``alive_at`` is the last proof of life of the process whose sockets are gone;
        None: the session had none any more, only its grace runs.
        """
        registry = self.registry
        await registry.turns.take(tenant)
        async with registry.lock(tenant, session_id):
            local = registry.local_sessions.get(session_key(tenant, session_id))
            if local is not None and alive_at is None:
                return
            found = await self.live.attach(tenant, session_id, read_only=True)
            await registry.turns.take(tenant)
            if found is None or found.session.standing.phase is Phase.ENDED:
                await self.live.leave(tenant, session_id, node)
                return
            if local is not None and local.meter.sockets:
                if node != self.live.node:
                    await self.live.depart(tenant, session_id, node)
                return
            if local is None:
                local = await registry.local_session_of(found.session)
            local.meter.read(found.session, found.notices, registry.clock.now())
            if alive_at is not None:
                await self._lose(local, node, alive_at)
            else:
                local.drain()

    async def reconcile(self) -> None:
        """Looks after sessions that this process is noted for and has no socket of.

        A command that was given up on may be done all the same, when Redis is slow: then a
        session that nobody wanted any more has started, or there is no socket where somebody
        joined. What it has settled is all that anybody proved.
        """

        async def look(name: tuple[str, str]) -> None:
            local = self.registry.local_sessions.get(session_key(*name))
            if local is None or not (local.meter.sockets or local.meter.asked):
                await self.adopt(*name, self.live.node, 0)

        names = [name async for name in self.live.sessions_of_node(self.live.node)]
        await for_each("reconcile", names, look)

    async def detach_dead(self, found: FoundSession) -> None:
        """A session is joined whose other processes may just have died: its sockets are gone
        as of the last proof of life of any, so that nobody pays for the time between.

        A process that lives, and is only too slow to say so, loses its sockets for a moment:
        its next step finds the session moved, and counts on from there.
        """
        others = found.nodes - {self.live.node}
        missing = await self._missing(others) if others else {}
        if not missing or len(missing) < len(others):
            return
        name = (found.session.identity.tenant, found.session.identity.session_id)
        last = max(missing, key=missing.__getitem__)
        for node in (others - {last}) | {self.live.node}:
            await self.live.depart(*name, node)
        await self._lose(await self.registry.local_session_of(found.session), last, missing[last])
        await self.live.attach(*name)

    async def _missing(self, nodes: frozenset[str]) -> dict[str, int]:
        if self.missing is not None:
            return await self.missing(nodes)
        return {node: at for node, at in self.suspected.items() if node in nodes}

    async def _lose(self, local: LocalSession, node: str, alive_at: int) -> None:
        """Suspends a session in the name of the dead process that had its last socket."""
        identity, phase = local.meter.session.identity, local.meter.session.standing.phase
        if after(phase, Event.LOST) is None:
            # Its socket came back to it, and it died before it could say so.
            await self.live.depart(identity.tenant, identity.session_id, node)
            local.drain()
            return
        local.node = node
        local.meter.sockets = 1
        local.meter.proof_at = alive_at
        local.meter.detach(alive_at, self.registry.clock.now(), died=node != self.live.node)
        local.drain()
        try:
            async with asyncio.timeout(2 * limits.REDIS_TIMEOUT_MS / 1000):
                await local.settled.wait()
        except TimeoutError:
            raise ServiceError("the session store does not answer") from None
        finally:
            local.node = self.live.node
