"""Orphans: sessions whose process died, and what happens to them.

The sockets of a dead process count as gone since its last proof of life. The session is suspended
in the dead process's name, so that the step is the one that this process would have made itself. A
socket that joins meanwhile, or the end of the grace, decides what follows.
"""

import asyncio
from collections.abc import Awaitable, Callable

from protocol import limits
from protocol.metering.session import Identity, session_key
from protocol.metering.states import Event, Phase, after
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.runtime.isolation import for_each
from server.sessions.local_session import LocalSession
from server.sessions.registry import SessionRegistry
from server.sessions.session_table import isolated_session
from storage.redis.live import FoundSession, Live


class Orphans:
    """Looks after the sessions of dead processes, on behalf of this one."""

    def __init__(self, registry: SessionRegistry, live: Live) -> None:
        self.registry = registry
        self.live = live
        self.suspected: dict[str, int] = {}
        """Processes taken for dead when ``missing`` is not set, with their last proofs of life."""
        self.missing: Callable[[frozenset[str]], Awaitable[dict[str, int]]] | None = None
        """Polls other processes and returns the missing ones; set by the membership once it beats.
        """
        self.provided: Callable[[Identity], Awaitable[None]] | None = None
        """Looks after an orphan whose time an outside clock decides."""
        registry.before_joining = self.detach_dead

    async def adopt(self, tenant: str, session_id: str, node: str, alive_at: int | None) -> None:
        """Looks after a session that a dead process left behind.

        ``alive_at`` is the last proof of life of the process whose sockets are gone. None: the
        session had no socket any more, and only its grace runs.
        """
        identity = await self._adopt(tenant, session_id, node, alive_at)
        if identity is not None and identity.terms.is_provided and self.provided is not None:
            # Its time goes on where the dead process stopped, if the outside clock says so.
            await self.provided(identity)

    async def _adopt(
        self, tenant: str, session_id: str, node: str, alive_at: int | None
    ) -> Identity | None:
        """Adopts an orphan; returns its identity if nothing here serves it."""
        registry = self.registry
        await registry.turns.take(tenant)
        async with registry.lock(tenant, session_id):
            local = registry.local_sessions.get(session_key(tenant, session_id))
            if local is not None and alive_at is None:
                return None
            found, local = await self._read(tenant, session_id)
            if found is None or found.session.standing.phase is Phase.ENDED:
                await self.live.leave(tenant, session_id, node)
                return None
            if local is not None and local.meter.sockets:
                if node != self.live.node:
                    await self.live.depart(tenant, session_id, node)
                return None
            if local is None:
                local = await registry.local_session_of(found.session)
            local.meter.read(found.session, found.notices, registry.clock.now())
            if alive_at is not None:
                await self._lose(local, node, found.proven_at(node, alive_at))
            else:
                local.drain()
            return found.session.identity

    async def _read(
        self, tenant: str, session_id: str
    ) -> tuple[FoundSession | None, LocalSession | None]:
        """Reads a session and its local one between two local steps.

        The answer to a step of this process may suspend the session or clear the local session.
        What a dead process's sockets mean for the session is known only after that. A session that
        ended here is not adopted: its end is put back if Redis has lost it.
        """
        for _ in range(server_limits.SETTLED_READS_MAX):
            found = await self.registry.attached(tenant, session_id, read_only=True)
            await self.registry.turns.take(tenant)
            local = self.registry.local_sessions.get(session_key(tenant, session_id))
            if local is None or local.meter.sockets or not local.meter.is_busy:
                return found, local
            await _settled(local)
        raise ServiceError("one step of the session follows another")

    async def reconcile(self) -> None:
        """Looks after sessions that Redis lists here wrongly, or omits.

        Redis may carry out a command after this process has given up on it, when Redis is slow.
        Then a session has started that no client wants any more, or this process is noted where its
        socket did not join. What the session has settled is all that was proven. Or Redis has
        removed this process, which another socket had joined since. Then it is noted again.
        """
        served = {local.key: local for local in self.registry if _is_served(local)}

        async def look(name: tuple[str, str]) -> None:
            local = self.registry.local_sessions.get(session_key(*name))
            if local is None or not (local.meter.sockets or local.meter.is_busy):
                await self.adopt(*name, self.live.node, 0)

        names = [name async for name in self.live.sessions_of_node(self.live.node)]
        await for_each("reconcile", names, look)
        for name in names:
            served.pop(session_key(*name), None)
        for local in served.values():
            if self.registry.local_sessions.get(local.key) is local and _is_served(local):
                isolated_session(local, self._note_again, local)

    def _note_again(self, local: LocalSession) -> None:
        local.meter.note_again(self.registry.clock.now())
        local.drain()

    async def detach_dead(self, found: FoundSession) -> None:
        """Detaches a session's dead processes before a socket joins it.

        Their sockets count as gone since the last proof of life of any of them, so that the user
        does not pay for the time after.

        A process that lives, and is only too slow to answer, loses its sockets for a moment. Its
        next step finds that the session has moved, and counts on from there.
        """
        others = found.nodes - {self.live.node}
        missing = await self._missing(others) if others else {}
        if not missing or len(missing) < len(others):
            return
        name = (found.session.identity.tenant, found.session.identity.session_id)
        missing = {node: found.proven_at(node, at) for node, at in missing.items()}
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
        """Suspends a session in the name of its last, dead process."""
        identity, phase = local.meter.session.identity, local.meter.session.standing.phase
        if after(phase, Event.LOST) is None:
            # The socket came back to that process, which died before it could record this.
            await self.live.depart(identity.tenant, identity.session_id, node)
            local.drain()
            return
        local.node = node
        local.meter.sockets = 1
        local.meter.proof_at = alive_at
        local.meter.detach(alive_at, self.registry.clock.now(), died=node != self.live.node)
        local.drain()
        try:
            await _settled(local)
        finally:
            local.node = self.live.node


def _is_served(local: LocalSession) -> bool:
    """Whether Redis must list this process, with sockets and no pending step."""
    meter = local.meter
    return meter.sockets > 0 and meter.session.standing.version > 0 and meter.asked is None


async def _settled(local: LocalSession) -> None:
    """Waits until no local step is pending; raises ``ServiceError``."""
    try:
        async with asyncio.timeout(2 * limits.REDIS_TIMEOUT_MS / 1000):
            await local.settled.wait()
    except TimeoutError:
        raise ServiceError("the session store does not answer") from None
