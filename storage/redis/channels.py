"""Channels on Redis Cluster: one connection to each node that has channels.

A channel has a hash tag as keys have. Messages are published at the master of its slot, so the
process subscribes there. A sharded channel (Redis 7) goes no further; a message by PUBLISH goes to
all nodes, which costs them some work. Either way, a broken connection is made again with the
present masters of its channels, and every channel is confirmed anew. That confirmation is the sign
to resynchronise, as on a single Redis.
"""

import asyncio
import contextlib
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as LineError
from redis.exceptions import RedisError

from storage import limits as storage_limits
from storage.redis.cluster import UNANSWERED, Address, ClusterRedis, ask_all
from storage.redis.pubsub import PubSubConnection
from storage.tasks import end

log = structlog.get_logger()


def channels_of(redis: Redis) -> "PubSub | ClusterChannels":
    """Returns the object that subscribes to channels."""
    return ClusterChannels(redis) if isinstance(redis, ClusterRedis) else redis.pubsub()


async def agree_on_channels(redis: ClusterRedis, key: str) -> bool:
    """Whether channels are sharded, which all servers must support.

    All processes must do the same, so the first one writes the result under ``key``. Servers that
    are upgraded later get sharded channels after all processes have been stopped.
    """
    found = await ask_all(redis, lambda client: client.info("server"))
    is_able = all(int(info["redis_version"].split(".")[0]) >= 7 for info in found)
    await redis.set(key, int(is_able), nx=True)
    redis.shards_channels = await redis.get(key) == b"1"
    return redis.shards_channels


class ClusterChannels:
    """A cluster's channels, with the methods of ``PubSub`` in use."""

    def __init__(self, redis: ClusterRedis) -> None:
        self._redis = redis
        self._homes: dict[str, Address] = {}
        """The node at which each channel is subscribed to."""
        self._connections: dict[Address, PubSubConnection] = {}
        self._readers: dict[Address, asyncio.Task[None]] = {}
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue(
            storage_limits.MESSAGES_WAITING_MAX
        )
        self._lost: dict[str, None] = {}
        """Channels whose connection broke, and that need another node."""
        self._mover: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def subscribed(self) -> bool:
        """Whether any channel is subscribed to."""
        return bool(self._homes)

    async def subscribe(self, channel: str) -> None:
        """Subscribes to a channel; the confirmation arrives as a message."""
        await self._redis.initialize()
        home = self._home_of(channel)
        self._homes[channel] = home
        connection = self._connection_to(home)
        try:
            await self._say(connection, "subscribe", channel)
        except (RedisError, *UNANSWERED):
            self._homes.pop(channel, None)
            self._drop(home, connection)
            raise

    async def unsubscribe(self, channel: str) -> None:
        """Ends the subscription to a channel."""
        home = self._homes.pop(channel, None)
        connection = self._connections.get(home) if home is not None else None
        if connection is not None:
            await self._say(connection, "unsubscribe", channel)

    async def get_message(self, timeout: float) -> dict[str, Any] | None:  # noqa: ASYNC109
        """Returns the next message of any connection; None: none arrived in time."""
        try:
            async with asyncio.timeout(timeout):
                return await self._told.get()
        except TimeoutError:
            return None

    async def aclose(self) -> None:
        """Closes all connections for good."""
        self._is_closed = True
        tasks = [*self._readers.values(), *([self._mover] if self._mover else [])]
        lines = list(self._connections.values())
        self._connections.clear()
        self._homes.clear()
        closing = [connection.aclose() for connection in lines]
        await asyncio.gather(end(tasks), *self._closing, *closing, return_exceptions=True)

    def _home_of(self, channel: str) -> Address:
        """Returns the node that publishes a channel, according to the present map."""
        home = self._redis.master_of(channel)
        if home is None:
            raise LineError("no known node has the channel")
        return home

    def _connection_to(self, home: Address) -> PubSubConnection:
        """Returns the connection to a node; a task reads each."""
        if self._is_closed:
            raise LineError("the connection is closed")
        connection = self._connections.get(home)
        if connection is None:
            connection = self._connections[home] = PubSubConnection(
                self._redis.client_at(home).connection_pool
            )
            self._readers[home] = asyncio.create_task(self._read(home, connection))
        return connection

    async def _say(self, connection: PubSubConnection, what: str, channel: str) -> None:
        sharded = "s" if self._redis.shards_channels else ""
        await getattr(connection, f"{sharded}{what}")(channel)

    async def _read(self, home: Address, connection: PubSubConnection) -> None:
        """Passes on the messages of one node until the connection breaks."""
        try:
            while True:
                message = await connection.get_message(timeout=storage_limits.CHANNEL_POLL_S)
                if message is None:
                    continue
                if message["type"] == "sunsubscribe" and message["channel"].decode() in self._homes:
                    break  # the slot has moved; this process did not unsubscribe
                await self._told.put(message)
        except (RedisError, *UNANSWERED) as error:
            log.warning("pubsub_lost", node=f"{home.host}:{home.port}", error=str(error))
        except Exception:
            log.exception("line_not_read")
        self._drop(home, connection)

    def _drop(self, home: Address, connection: PubSubConnection) -> None:
        """Gives up a connection once; its channels get other nodes."""
        if self._connections.get(home) is not connection:
            return
        del self._connections[home]
        reader = self._readers.pop(home)
        if reader is not asyncio.current_task():
            reader.cancel()
        closing = asyncio.create_task(self._close(connection))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._lost.update((channel, None) for channel, at in self._homes.items() if at == home)
        if self._mover is None or self._mover.done():
            self._mover = asyncio.create_task(self._move())

    @staticmethod
    async def _close(connection: PubSubConnection) -> None:
        with contextlib.suppress(RedisError, *UNANSWERED):
            await connection.aclose()

    async def _move(self) -> None:
        """Subscribes broken connections' channels at other nodes, until it succeeds.

        A node that broke may still count as the master until a replica takes over.
        """
        while True:
            try:
                await self._redis.refresh()
                await self._move_lost()
            except (RedisError, *UNANSWERED):
                pass  # no node knows the map
            except Exception:
                log.exception("channels_not_moved")
            if not self._lost:
                return
            await asyncio.sleep(storage_limits.CHANNEL_RETRY_S)

    async def _move_lost(self) -> None:
        away: set[Address] = set()
        for channel in list(self._lost):
            if channel not in self._homes:
                self._lost.pop(channel, None)
                continue
            home = self._redis.master_of(channel)
            if home is None or home in away:
                continue
            self._homes[channel] = home
            connection = self._connection_to(home)
            try:
                await self._say(connection, "subscribe", channel)
            except (RedisError, *UNANSWERED):
                away.add(home)
            else:
                if self._connections.get(home) is connection:  # else it broke again meanwhile
                    self._lost.pop(channel, None)
