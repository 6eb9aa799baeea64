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
from storage.redis.cluster import ELSEWHERE, ClusterRedis, is_cluster
from storage.redis.pubsub import FairRedis

Call = tuple[Sequence[str], Sequence[Any]]
"""A script's keys and arguments."""
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
        self._lost: set[object] = set()
        """The nodes that answered that they lack the script, and have not run it since.

        A restart or failover loses it. A slow Redis answers once before the deadline, not twice: so
        the next call sends the text at once.
        """

    def _node_of(self, key: str) -> object:
        """Returns the node that has a key, as far as is known."""
        return self._redis.master_of(key) if isinstance(self._redis, ClusterRedis) else None

    def commands(self, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
        """Returns the commands that make calls in one pipeline, in order.

        The first call to each node that has lost the script carries the text.
        """
        lost, made = set(self._lost), []
        for keys, args in calls:
            node = self._node_of(keys[0])
            name, script = ("EVAL", self.text) if node in lost else ("EVALSHA", self.digest)
            lost.discard(node)
            made.append((name, script, len(keys), *keys, *args))
        return made

    def answered(self, call: Call, answer: object) -> bool:
        """Notes whether the call's node has the script; False: it lacks it.

        The script was not run then. ``answer`` is the answer of Redis, or an exception.
        """
        node = self._node_of(call[0][0])
        if isinstance(answer, NoScriptError):
            if len(self._lost) >= storage_limits.NODES_WITHOUT_SCRIPT_MAX:
                self._lost.clear()
            self._lost.add(node)
            return False
        if not isinstance(answer, Exception):
            self._lost.discard(node)
        return True

    async def run(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs the script, without a deadline; raises redis-py's errors."""
        call = (keys, args)
        try:
            answer = await self._execute(call)
        except NoScriptError as error:
            self.answered(call, error)
            answer = await self._execute(call)
        self.answered(call, answer)
        return answer

    def _execute(self, call: Call) -> Any:
        (command,) = self.commands([call])
        return self._redis.execute_command(*command)  # type: ignore[no-untyped-call]

    async def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs the script. Raises :class:`LiveError` when no answer comes in time."""
        try:
            async with asyncio.timeout(limits.REDIS_TIMEOUT_MS / 1000):
                return await self.run(keys, args)
        except (RedisError, OSError, TimeoutError) as error:
            raise unanswered(error) from error
