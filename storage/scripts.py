"""Redis as the live state asks it: a client that repeats nothing, and scripts by digest."""

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from protocol import limits

LUA_DIR = Path(__file__).parent / "lua"
CONNECTIONS_MAX = 32
"""Connections of one process to Redis, which serves one command at a time anyway."""


class LiveError(Exception):
    """Redis did not answer, or not in time. What was asked may have been done."""


def connect(url: str) -> Redis:
    """A client that never runs a command twice (PITFALLS, redis-py).

    Whoever finds all connections taken waits for one, no longer than for an answer: when a
    process dies its clients come back to another one together.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS_MAX,
        timeout=limits.REDIS_TIMEOUT_MS / 1000,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        socket_timeout=limits.REDIS_TIMEOUT_MS / 1000,
        socket_connect_timeout=limits.REDIS_TIMEOUT_MS / 1000,
        health_check_interval=0,
    )
    return Redis.from_pool(pool)


class Script:
    """One ``.lua`` file: called by its digest, and loaded again where Redis forgot it."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        self.text = (LUA_DIR / f"{name}.lua").read_text()
        self._registered = redis.register_script(self.text)

    @property
    def digest(self) -> str:
        """The name under which Redis keeps the script."""
        return self._registered.sha

    async def load(self) -> None:
        """Brings the script to Redis, which forgets all at a restart or failover."""
        await cast(Awaitable[Any], self._redis.script_load(self.text))

    async def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs the script. Raises :class:`LiveError` when no answer comes in time."""
        try:
            async with asyncio.timeout(limits.REDIS_TIMEOUT_MS / 1000):
                return await self._registered(keys=list(keys), args=list(args))
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, ResponseError):
                raise
            raise LiveError(str(error) or type(error).__name__) from error
