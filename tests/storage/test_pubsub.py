"""One task reads a connection while others subscribe on it.

The arrangement survives all failures.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as LineError
from redis.exceptions import RedisError

from protocol import limits
from storage import limits as storage_limits
from storage.redis.channels import channels_of
from storage.redis.cluster import is_cluster
from storage.redis.scripts import connect
from tests.storage.outboxes import until

CHANNELS = [f"channel-{number}" for number in range(8)]
BREAKS = 40
NAME = "listener"


@pytest.fixture(autouse=True)
def one_redis(redis_url: str) -> None:
    if is_cluster(redis_url):
        pytest.skip("connections to a cluster are in test_channels")


@pytest.fixture
async def client(redis_url: str, redis: Redis) -> AsyncIterator[Redis]:
    """A named client, as the server makes it for a single Redis."""
    async with connect(f"{redis_url}?client_name={NAME}") as connected:
        yield connected


@pytest.fixture
async def line(client: Redis) -> AsyncIterator[PubSub]:
    made = channels_of(client)
    assert isinstance(made, PubSub)
    yield made
    await made.aclose()  # type: ignore[no-untyped-call]


async def listening(client: Redis) -> int:
    """The connections with subscriptions."""
    return len(
        [one for one in await client.client_list() if one["name"] == NAME and int(one["sub"])]
    )


async def confirmed(line: PubSub, number: int) -> list[str]:
    """The channels of the next messages."""
    messages: list[dict[str, Any] | None] = [
        await line.get_message(timeout=5) for _ in range(number)
    ]
    return sorted(message["channel"].decode() for message in messages if message)


async def test_channels_that_are_asked_for_together_share_one_connection(
    line: PubSub, client: Redis
) -> None:
    await asyncio.gather(*(line.subscribe(channel) for channel in CHANNELS))
    assert await confirmed(line, len(CHANNELS)) == CHANNELS
    assert await listening(client) == 1


class Relay:
    """A machine between client and Redis that can vanish without a reset.

    Afterwards nothing arrives on the old connections, and none of them breaks; new connections
    bypass the relay.
    """

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._open: set[asyncio.StreamWriter] = set()
        self._gone: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"redis://{host}:{port}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def go(self) -> None:
        """The machine vanishes."""
        self._gone |= self._open

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._to.scheme == "unix":
            ahead, back = await asyncio.open_unix_connection(self._to.path)
        else:
            ahead, back = await asyncio.open_connection(self._to.hostname, self._to.port)
        self._open.add(writer)
        for task in (self._pass(reader, back, writer), self._pass(ahead, writer, writer)):
            self._tasks.add(asyncio.create_task(task))

    async def _pass(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, name: asyncio.StreamWriter
    ) -> None:
        try:
            while part := await source.read(65_536):
                if name not in self._gone:
                    to.write(part)
        finally:
            to.close()


async def test_a_line_on_which_nothing_comes_any_more_breaks(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "CHANNEL_QUIET_S", 0.05)
    relay = Relay(redis_url)
    async with relay as url, connect(url) as client:
        line = channels_of(client)
        assert isinstance(line, PubSub)
        await line.subscribe(CHANNELS[0])
        assert await confirmed(line, 1) == CHANNELS[:1]
        # While Redis answers pings, the connection may be silent for any time.
        assert await line.get_message(timeout=0.5) is None
        relay.go()
        with pytest.raises(LineError):
            await line.get_message(timeout=30)
        assert await confirmed(line, 1) == CHANNELS[:1]
        await redis.publish(CHANNELS[0], "again")
        message = await line.get_message(timeout=5)
        assert message is not None
        assert message["data"] == b"again"
        await line.aclose()  # type: ignore[no-untyped-call]


async def test_callers_share_the_outcome_of_one_connection_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Callers of a silent Redis share one failed attempt to connect.

    They do not wait in a row. This Redis accepts connections and answers nothing.
    """
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_MS", 100)
    accepted: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(lambda _, to: accepted.append(to), "127.0.0.1") as mute:
        host, port = mute.sockets[0].getsockname()
        async with connect(f"redis://{host}:{port}") as client:
            line = channels_of(client)
            asked = [line.subscribe(channel) for channel in CHANNELS]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(answer, RedisError) for answer in answers)
            assert len(accepted) == 1
        for writer in accepted:
            writer.close()


async def test_unsubscribing_on_a_broken_connection_lasts(line: PubSub, client: Redis) -> None:
    for channel in CHANNELS:
        await line.subscribe(channel)
    assert await confirmed(line, len(CHANNELS)) == CHANNELS
    await client.client_kill_filter(_type="pubsub")
    with pytest.raises((RedisError, OSError)):
        await line.get_message(timeout=5)
    kept, *others = CHANNELS
    await asyncio.gather(*(line.unsubscribe(channel) for channel in others))
    assert await confirmed(line, 1) == [kept]
    listeners = dict(await client.pubsub_numsub(*CHANNELS))
    assert listeners == {channel.encode(): int(channel == kept) for channel in CHANNELS}


async def is_heard(client: Redis, text: bytes) -> bool:
    """Publishes; answers whether a subscriber received the message."""
    return bool(await client.publish(CHANNELS[0], text))


async def test_a_reader_and_subscribers_find_a_line_broken_together(
    line: PubSub, client: Redis
) -> None:
    await line.subscribe(CHANNELS[0])
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def read() -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):  # and nothing else
                message = await line.get_message(timeout=5)
                if message and message["type"] == "message":
                    heard.put_nowait(message["data"])

    async def subscribe(channel: str) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):
                return await line.subscribe(channel)

    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read())
        for number in range(BREAKS):
            await asyncio.gather(
                client.client_kill_filter(_type="pubsub"),
                *(subscribe(channel) for channel in CHANNELS),
            )
            # Whichever caller reconnected, there is one connection, and it receives everything.
            text = b"%d" % number
            await until(functools.partial(is_heard, client, text))
            async with asyncio.timeout(5):
                while await heard.get() != text:
                    pass
        reader.cancel()
    assert await listening(client) == 1
