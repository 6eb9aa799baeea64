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

from protocol import limits
from storage.cluster import UNANSWERED, Address, ClusterRedis, ask_all
from storage.lines import Line

log = structlog.get_logger()

POLL_S = 15.0
"""How long one wait for a message lasts."""
RETRY_S = 0.2


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
        self._lines: dict[Address, Line] = {}
        self._readers: dict[Address, asyncio.Task[None]] = {}
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue(limits.MESSAGES_WAITING_MAX)
        self._moving: set[asyncio.Task[None]] = set()

    @property
    def subscribed(self) -> bool:
        """Whether anything is listened to."""
        return bool(self._homes)

    async def subscribe(self, channel: str) -> None:
        """Listens to a channel; its confirmation comes as a message."""
        await self._redis.initialize()
        home = self._home_of(channel)
        self._homes[channel] = home
        try:
            await self._send(home, "subscribe", channel)
        except (RedisError, *UNANSWERED):
            self._homes.pop(channel, None)
            self._drop(home)
            raise

    async def unsubscribe(self, channel: str) -> None:
        """Listens no more."""
        home = self._homes.pop(channel, None)
        if home is not None and home in self._lines:
            await self._send(home, "unsubscribe", channel)

    async def get_message(self, timeout: float) -> dict[str, Any] | None:  # noqa: ASYNC109
        """The next message of any line; None: there is none in time."""
        try:
            async with asyncio.timeout(timeout):
                return await self._told.get()
        except TimeoutError:
            return None

    async def aclose(self) -> None:
        """Closes all lines."""
        for task in [*self._readers.values(), *self._moving]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for line in self._lines.values():
            await line.aclose()  # type: ignore[no-untyped-call]
        self._lines.clear()
        self._homes.clear()

    def _home_of(self, channel: str) -> Address:
        """Who tells of a channel, as the map is now: where it is published."""
        home = self._redis.master_of(channel)
        if home is None:
            raise LineError("nobody has the channel")
        return home

    async def _send(self, home: Address, what: str, channel: str) -> None:
        line = self._lines.get(home)
        if line is None:
            line = self._lines[home] = Line(self._redis.client_at(home).connection_pool)
        sharded = "s" if self._redis.shards_channels else ""
        await getattr(line, f"{sharded}{what}")(channel)
        if home not in self._readers:
            self._readers[home] = asyncio.create_task(self._read(home, line))

    async def _read(self, home: Address, line: Line) -> None:
        """Passes on what one node tells, until the line breaks."""
        try:
            while True:
                message = await line.get_message(timeout=POLL_S)
                if message is None:
                    continue
                if message["type"] == "sunsubscribe" and message["channel"].decode() in self._homes:
                    break  # the slot has moved, and nobody asked for this
                await self._told.put(message)
        except (RedisError, *UNANSWERED) as error:
            log.warning("pubsub_lost", node=f"{home.host}:{home.port}", error=str(error))
        self._drop(home)

    def _drop(self, home: Address) -> None:
        """Gives up a line; its channels are listened to elsewhere."""
        line, reader = self._lines.pop(home, None), self._readers.pop(home, None)
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()
        if line is not None:
            self._run(self._move(home, line))

    async def _move(self, home: Address, line: Line) -> None:
        with contextlib.suppress(RedisError, *UNANSWERED):
            await line.aclose()  # type: ignore[no-untyped-call]
        lost = [channel for channel, at in self._homes.items() if at == home]
        while lost:
            try:
                await self._redis.refresh()
                for channel in list(lost):
                    if self._homes.get(channel) == home:
                        self._homes[channel] = self._home_of(channel)
                        await self._send(self._homes[channel], "subscribe", channel)
                    lost.remove(channel)
            except (RedisError, *UNANSWERED):
                # It may still be taken for the master, until a replica takes over.
                for channel in lost:
                    if channel in self._homes:
                        self._homes[channel] = home
                await asyncio.sleep(RETRY_S)

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)
