"""The client of Pub/Sub: reads the channels that this process subscribes to.

Messages that are published while the connection to Redis is lost never arrive. So every channel
gets ``{"reload": True}`` once its subscription is confirmed again.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import orjson
import structlog
from redis.exceptions import RedisError

from server import limits as server_limits
from server.runtime.waiting import Signal
from storage import limits as storage_limits
from storage.redis.channels import channels_of
from storage.redis.live import LiveError
from storage.tasks import end

log = structlog.get_logger()

Hearer: TypeAlias = "Callable[[dict[str, Any]], None]"
"""Takes the messages of a channel."""


class Channel(Signal):
    """A channel of Redis; set once the subscription is confirmed."""

    __slots__ = ("hears",)

    def __init__(self, hears: Hearer) -> None:
        super().__init__()
        self.hears = hears


class ChannelReader:
    """The channels of a process, over one connection to ``redis``."""

    def __init__(self, redis: Any) -> None:
        self._channels: dict[str, Channel] = {}
        self._pubsub = channels_of(redis)
        self._reader: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.resynchronised: Callable[[], None] = lambda: None
        """Called after the connection to Redis was lost: another Redis may answer now."""
        self._is_resynchronising = False

    def __len__(self) -> int:
        return len(self._channels)

    def start(self) -> None:
        """Begins to listen."""
        self._reader = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Stops listening, and closes the connection."""
        await end([self._reader])
        await self._pubsub.aclose()

    async def subscribe(self, channel: str, hears: Hearer) -> None:
        """Subscribes to a channel; returns once Redis has confirmed the subscription.

        Raises ``LiveError`` without a confirmation in time.
        """
        listened = self._channels.setdefault(channel, Channel(hears))
        listened.hears = hears
        try:
            async with asyncio.timeout(server_limits.CHANNEL_SUBSCRIBE_S_MAX):
                await self._pubsub.subscribe(channel)
                self._wake.set()
                await listened.wait()
        except (RedisError, OSError, TimeoutError) as error:
            raise LiveError(str(error) or "no confirmation of a subscription") from error

    async def unsubscribe(self, channel: str) -> None:
        """Ends the subscription to a channel."""
        self._channels.pop(channel, None)
        with contextlib.suppress(RedisError, OSError):
            await self._pubsub.unsubscribe(channel)

    async def _listen(self) -> None:
        """Reads messages while the process lives, also after the connection was lost."""
        for taken in itertools.count():
            if taken % server_limits.MESSAGES_PER_TURN == 0:
                # Reading messages that have already arrived gives the event loop no turn.
                await asyncio.sleep(0)
            try:
                if not self._pubsub.subscribed:
                    self._wake.clear()
                    await self._wake.wait()
                message = await self._pubsub.get_message(timeout=storage_limits.CHANNEL_POLL_S)
            except (RedisError, OSError) as error:
                log.warning("pubsub_lost", error=str(error))
                await asyncio.sleep(storage_limits.CHANNEL_RETRY_S)
                continue
            except Exception:
                log.exception("pubsub_not_read")
                await asyncio.sleep(storage_limits.CHANNEL_RETRY_S)
                continue
            if message is None:
                continue
            try:
                self._take(message)
            except Exception:
                # One malformed message must not end the reader.
                log.exception("message_not_taken")

    def _take(self, message: dict[str, Any]) -> None:
        channel = self._channels.get(message["channel"].decode())
        if channel is None:
            return
        if message["type"] in {"subscribe", "ssubscribe"}:
            if channel.is_set:
                # The connection was lost and is back: messages of that time are lost.
                channel.hears({"reload": True})
                self._resynchronise_soon()
            else:
                channel.set()
        elif message["type"] in {"message", "smessage"}:
            channel.hears(orjson.loads(message["data"]))

    def _resynchronise_soon(self) -> None:
        """Calls ``resynchronised`` once for all channels that are confirmed together."""
        if not self._is_resynchronising:
            self._is_resynchronising = True
            asyncio.get_running_loop().call_soon(self._resynchronise)

    def _resynchronise(self) -> None:
        self._is_resynchronising = False
        self.resynchronised()
