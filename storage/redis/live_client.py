"""A process's client of the live state: Redis, keys, the deadline."""

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
    """Redis as a process (``node``) uses it: the common part."""

    def __init__(self, redis: Redis, keys: Keys, node: str) -> None:
        self.redis = redis
        self.keys = keys
        self.node = node
        self.times = RedisTimes(redis)
        self.publish = "PUBLISH"
        """``SPUBLISH`` in a cluster that has sharded channels; see ``prepare``."""

    async def prepare(self) -> None:
        """Finds the nodes of a cluster, and decides how channels are published."""
        if isinstance(self.redis, ClusterRedis):
            await self.ask(self.redis.initialize())
            if await self.ask(agree_on_channels(self.redis, CHANNELS)):
                self.publish = "SPUBLISH"

    def shard(self, tenant: str) -> object:
        """Returns the part of Redis that answers or fails together.

        Steps of different parts belong in different pipelines.
        """
        if isinstance(self.redis, ClusterRedis):
            return self.redis.master_of(self.keys.live(self.keys.partition(tenant)))
        return None

    async def ping(self) -> None:
        """Returns if all of Redis answers. Raises :class:`LiveError` otherwise."""
        await self.ask(self.redis.ping())

    async def ask(self, command: Any) -> Any:
        """Returns the answer to one command, or raises :class:`LiveError`."""
        try:
            async with asyncio.timeout(limits.REDIS_TIMEOUT_MS / 1000):
                return await command
        except (RedisError, OSError, TimeoutError) as error:
            raise LiveError(str(error) or type(error).__name__) from error
