"""Channels on Redis Cluster: one line to each node that has some, and new ones elsewhere.

A channel has a hash tag as keys have, and is published at the master of its slot, so that
is where it is listened to. Sharded channels (Redis 7) go no further; what is told with
PUBLISH goes to all nodes, which costs them something. Either way a line that breaks is
made again with whoever has its channels by then, and every channel is confirmed anew: the
sign to resynchronise, as on a single Redis.
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
    """What listens to channels."""
    return ClusterChannels(redis) if isinstance(redis, ClusterRedis) else redis.pubsub()


async def agree_on_channels(redis: ClusterRedis, key: str) -> bool:
    """Whether channels are sharded: they are where all servers have them.

    All processes must do alike. So the first one writes it down under ``key``; servers that
    are brought up to date later are used so when all processes have been stopped.
    """
    found = await ask_all(redis, lambda client: client.info("server"))
    is_able = all(int(info["redis_version"].split(".")[0]) >= 7 for info in found)
    await redis.set(key, int(is_able), nx=True)
    redis.shards_channels = await redis.get(key) == b"1"
    return redis.shards_channels


class ClusterChannels:
    """What is told on channels of a cluster, with the methods of ``PubSub`` that are used."""

    def __init__(self, redis: ClusterRedis) -> None:
        self._redis = redis
        self._homes: dict[str, Address] = {}
        """The node on which each channel is listened to."""
        self._connections: dict[Address, PubSubConnection] = {}
        self._readers: dict[Address, asyncio.Task[None]] = {}
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue(
            storage_limits.MESSAGES_WAITING_MAX
        )
        self._lost: dict[str, None] = {}
        """Channels whose line broke, and which are to be listened to elsewhere."""
        self._mover: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def subscribed(self) -> bool:
        """Whether anything is listened to."""
        return bool(self._homes)

    async def subscribe(self, channel: str) -> None:
        """Listens to a channel; its confirmation comes as a message."""
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
        """Listens no more."""
        home = self._homes.pop(channel, None)
        connection = self._connections.get(home) if home is not None else None
        if connection is not None:
            await self._say(connection, "unsubscribe", channel)

    async def get_message(self, timeout: float) -> dict[str, Any] | None:  # noqa: ASYNC109
        """The next message of any line; None: there is none in time."""
        try:
            async with asyncio.timeout(timeout):
                return await self._told.get()
        except TimeoutError:
            return None

    async def aclose(self) -> None:
        """Closes all lines, for good."""
        self._is_closed = True
        tasks = [*self._readers.values(), *([self._mover] if self._mover else [])]
        lines = list(self._connections.values())
        self._connections.clear()
        self._homes.clear()
        closing = [connection.aclose() for connection in lines]
        await asyncio.gather(end(tasks), *self._closing, *closing, return_exceptions=True)

    def _home_of(self, channel: str) -> Address:
        """Who tells of a channel, as the map is now: where it is published."""
        home = self._redis.master_of(channel)
        if home is None:
            raise LineError("nobody has the channel")
        return home

    def _connection_to(self, home: Address) -> PubSubConnection:
        """The line to a node, and whoever reads it: there is never one without the other."""
        if self._is_closed:
            raise LineError("the line is closed")
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
        """Passes on what one node tells, until the line breaks."""
        try:
            while True:
                message = await connection.get_message(timeout=storage_limits.CHANNEL_POLL_S)
                if message is None:
                    continue
                if message["type"] == "sunsubscribe" and message["channel"].decode() in self._homes:
                    break  # the slot has moved, and nobody asked for this
                await self._told.put(message)
        except (RedisError, *UNANSWERED) as error:
            log.warning("pubsub_lost", node=f"{home.host}:{home.port}", error=str(error))
        except Exception:
            log.exception("line_not_read")
        self._drop(home, connection)

    def _drop(self, home: Address, connection: PubSubConnection) -> None:
        """Gives up a line, once; its channels are listened to elsewhere."""
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
        """Listens elsewhere to what was listened to on lines that broke, for as long as that
        takes: who broke may still be taken for the master, until a replica takes over."""
        while True:
            try:
                await self._redis.refresh()
                await self._move_lost()
            except (RedisError, *UNANSWERED):
                pass  # nobody knows the map
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
                if self._connections.get(home) is connection:  # or it broke meanwhile, once more
                    self._lost.pop(channel, None)
