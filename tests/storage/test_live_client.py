"""Calls to Redis have a deadline, and raise one kind of error."""

import asyncio

import pytest
from redis.exceptions import ResponseError

from protocol import limits
from storage.redis.cluster import ClusterRedis
from storage.redis.live import Live, LiveError


async def test_an_answer_is_handed_on(live: Live) -> None:
    await live.ping()
    await live.ask(live.redis.set("{p0}:x", "1"))
    assert await live.ask(live.redis.get("{p0}:x")) == b"1"


async def test_what_redis_refuses_and_what_is_late_is_one_error(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live.redis.set("{p0}:x", "1")
    with pytest.raises(LiveError, match="wrong kind of value") as refused:
        await live.ask(live.redis.smembers("{p0}:x"))
    assert isinstance(refused.value.__cause__, ResponseError)
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_MS", 1)
    with pytest.raises(LiveError, match="TimeoutError"):
        await live.ask(asyncio.Event().wait())


async def test_steps_of_one_redis_belong_together(live: Live) -> None:
    await live.prepare()
    assert live.publish in {"PUBLISH", "SPUBLISH"}
    alike = live.shard("user:ann") == live.shard("user:bob")
    assert alike or isinstance(live.redis, ClusterRedis)
