"""How one process asks Redis for its live state: the client, the keys, and the deadline."""

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from protocol import limits
from storage.redis.channels import agree_on_channels
from storage.redis.cluster import ClusterRedis
from storage.redis.keys import CHANNELS, Keys
from storage.redis.scripts import LiveError
from storage.redis.timed_scripts import RedisTimes


class LiveClient:
    """Redis, as one process (``node``) asks it: what all parts of the live state share."""

    def __init__(self, redis: Redis, keys: Keys, node: str) -> None:
        self.redis = redis
        self.keys = keys
        self.node = node
        self.times = RedisTimes(redis)
        self.publish = "PUBLISH"
        """``SPUBLISH`` in a cluster that has sharded channels; see ``prepare``."""

    async def prepare(self) -> None:
        """Finds out whom to ask, and how channels are told."""
        if isinstance(self.redis, ClusterRedis):
            await self.ask(self.redis.initialize())
            if await self.ask(agree_on_channels(self.redis, CHANNELS)):
                self.publish = "SPUBLISH"

    def shard(self, tenant: str) -> object:
        """What answers or fails together: steps of different ones belong in different
        pipelines."""
        if isinstance(self.redis, ClusterRedis):
            return self.redis.master_of(self.keys.live(self.keys.partition(tenant)))
        return None

    async def ping(self) -> None:
        """Whether Redis answers, the whole of it. Raises :class:`LiveError`."""
        await self.ask(self.redis.ping())

    async def ask(self, command: Any) -> Any:
        """The answer to one command, or :class:`LiveError`."""
        try:
            async with asyncio.timeout(limits.REDIS_TIMEOUT_MS / 1000):
                return await command
        except (RedisError, OSError, TimeoutError) as error:
            raise LiveError(str(error) or type(error).__name__) from error
