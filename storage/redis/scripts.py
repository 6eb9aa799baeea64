"""The live state's Redis client, without repetition, and its scripts."""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from protocol import limits
from storage import limits as storage_limits
from storage.redis.cluster import ELSEWHERE, ClusterRedis, client_of, is_cluster
from storage.redis.pubsub import FairRedis

LUA_DIR = Path(__file__).parent / "lua"


class LiveError(Exception):
    """Redis did not answer in time.

    The command may have been run.
    """


class _Pool(BlockingConnectionPool):
    """A pool that marks errors of connecting: no command was sent then.

    The error alone does not tell: a connection may also lose its route with a command under way.
    """

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            unsent: Any = error
            unsent.is_unsent = True
            raise


def was_not_run(error: BaseException) -> bool:
    """Whether the error proves that no command was run.

    There was no connection to send it on, or Redis answered with an error such as ``LOADING``.
    """
    return getattr(error, "is_unsent", False) or getattr(error, "status_code", None) is not None


def unanswered(error: Exception) -> LiveError:
    """Returns what a script raises instead of an error of the driver.

    Raises ``error`` itself if the script is at fault.
    """
    if isinstance(error, ResponseError) and not isinstance(error, ELSEWHERE):
        raise error
    return LiveError(str(error) or type(error).__name__)


def connect(url: str) -> Redis:
    """Returns a client that never runs a command twice (PITFALLS, redis-py).

    The client is for one Redis, or for a whole cluster. A call that finds all connections taken
    waits for one, no longer than for an answer: when a process dies, its clients reconnect to
    another process all at once.
    """
    return ClusterRedis(url, _connect) if is_cluster(url) else _connect(url)


def _connect(url: str) -> Redis:
    pool = _Pool.from_url(
        url,
        max_connections=storage_limits.REDIS_CONNECTIONS_MAX,
        timeout=limits.REDIS_TIMEOUT_MS / 1000,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        socket_timeout=limits.REDIS_TIMEOUT_MS / 1000,
        socket_connect_timeout=limits.REDIS_TIMEOUT_MS / 1000,
        health_check_interval=0,
    )
    return FairRedis.from_pool(pool)


def text_of(name: str) -> str:
    """Returns the text of a ``.lua`` file."""
    return (LUA_DIR / f"{name}.lua").read_text("utf-8")


class Script:
    """One ``.lua`` file, or another text, called by its digest.

    The whole text is sent if Redis has lost the script.
    """

    def __init__(self, redis: Redis, name: str, text: str | None = None) -> None:
        self._redis = redis
        self.text = text_of(name) if text is None else text
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        """The name under which Redis keeps the script."""

    async def load(self, key: str) -> None:
        """Loads the script into a key's Redis.

        A restart or failover loses it.
        """
        client = await client_of(self._redis, key)
        await client.script_load(self.text)

    async def run(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs the script, without a deadline; raises redis-py's errors."""
        try:
            return await self._execute("EVALSHA", self.digest, keys, args)
        except NoScriptError:
            return await self._execute("EVAL", self.text, keys, args)

    def _execute(self, name: str, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self._redis.execute_command(name, script, len(keys), *keys, *args)  # type: ignore[no-untyped-call]

    async def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs the script. Raises :class:`LiveError` when no answer comes in time."""
        try:
            async with asyncio.timeout(limits.REDIS_TIMEOUT_MS / 1000):
                return await self.run(keys, args)
        except (RedisError, OSError, TimeoutError) as error:
            raise unanswered(error) from error
