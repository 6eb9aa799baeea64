"""The processes in Redis: heartbeats, and their sessions with sockets."""

from collections.abc import AsyncIterator

from redis.asyncio import Redis

from protocol.metering.session import session_key
from storage.redis.beats import Beat, ClusterView, beat_of, cluster_view_of
from storage.redis.keys import CLOCK, LOOK_CHANNEL, NODES, Keys
from storage.redis.live_client import LiveClient
from storage.redis.scripts import Script


class LiveProcesses(LiveClient):
    """The living processes, and the sessions that each of them serves."""

    def __init__(self, redis: Redis, keys: Keys, node: str) -> None:
        super().__init__(redis, keys, node)
        self._beat = Script(redis, "beat")
        self._look = Script(redis, "look")
        self._retreat = Script(redis, "retreat")

    async def beat(self, now_ms: int, redis_ms: float) -> Beat:
        """Sends a heartbeat of this process, with its assumed Redis time."""
        sent_at = self.times.reading()
        beat = beat_of(await self._beat([NODES, CLOCK], [self.node, now_ms, redis_ms]))
        self.times.observe(NODES, beat.redis_ms, sent_at)
        return beat

    async def look(self, *, ask: bool) -> ClusterView:
        """Returns what living processes sent of the time; ``ask``: requests it."""
        arguments = [int(ask), self.publish, LOOK_CHANNEL]
        return cluster_view_of(await self._look([NODES, CLOCK], arguments))

    async def forget_node(self, node: str) -> None:
        """Removes a process without sessions, or whose sessions were swept."""
        await self.ask(self.redis.zrem(NODES, node))

    async def sessions_of_node(self, node: str) -> AsyncIterator[tuple[str, str]]:
        """Yields the sessions that a process has sockets of: tenant and id."""
        for partition in range(self.keys.partitions):
            for member in await self.ask(self.redis.smembers(self.keys.node(partition, node))):
                tenant, _, session_id = member.decode().rpartition("/")
                yield tenant, session_id

    async def confirm_join(self, tenant: str, session_id: str) -> None:
        """Confirms that a socket has joined: this process's heartbeats prove its life."""
        key = self.keys.session(tenant, session_id)
        await self.ask(self.redis.hdel(key, f"joining:{self.node}"))

    async def depart(self, tenant: str, session_id: str, node: str) -> None:
        """Removes a process from a session that other processes serve."""
        await self.ask(self.redis.srem(self.keys.sockets(tenant, session_id), node))
        await self.leave(tenant, session_id, node)

    async def retreat(self, tenant: str, session_id: str) -> bool:
        """Removes this process from a session that it cannot serve.

        False: no other process serves the session, so this one must watch over it.
        """
        keys = self.keys
        names = [
            keys.sockets(tenant, session_id),
            keys.node(keys.partition(tenant), self.node),
            keys.graces(keys.partition(tenant)),
        ]
        return bool(await self._retreat(names, [self.node, session_key(tenant, session_id)]))

    async def leave(self, tenant: str, session_id: str, node: str) -> None:
        """Removes an ended session from a process's sessions."""
        keys = self.keys
        member = f"{tenant}/{session_id}"
        await self.ask(self.redis.srem(keys.node(keys.partition(tenant), node), member))

    async def graces(self, until_ms: int) -> AsyncIterator[tuple[str, str]]:
        """Yields sessions whose grace ended at ``until_ms`` or before: tenant and id."""
        for partition in range(self.keys.partitions):
            key = self.keys.graces(partition)
            for member in await self.ask(self.redis.zrangebyscore(key, "-inf", until_ms)):
                tenant, _, session_id = member.decode().rpartition("/")
                yield tenant, session_id
