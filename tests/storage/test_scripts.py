"""Scripts run by their digest, and clients run none of them twice."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from protocol import limits
from storage import limits as storage_limits
from storage.redis.cluster import ClusterRedis
from storage.redis.scripts import LUA_DIR, LiveError, Script, connect

KEY = "{p0}:x"


async def test_a_script_runs_by_digest_though_redis_forgot_it(redis: Redis) -> None:
    script = Script(redis, "", "return {KEYS[1], ARGV[1]}")
    for _ in range(2):
        assert await script([KEY], ["a"]) == [KEY.encode(), b"a"]
        await redis.script_flush()
    await script.load(KEY)
    assert await redis.execute_command("EVALSHA", script.digest, 1, KEY, "b") == [  # type: ignore[no-untyped-call]
        KEY.encode(), b"b",
    ]  # fmt: skip


async def test_a_mistake_of_the_script_is_no_outage(redis: Redis) -> None:
    with pytest.raises(ResponseError, match="wrong"):
        await Script(redis, "", "return redis.error_reply('ERR wrong')")([KEY], [])


async def test_an_answer_that_does_not_come_is_an_outage(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(redis, "", "return 1")
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_MS", 1)

    async def wait(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(redis, "execute_command", wait)
    with pytest.raises(LiveError, match="TimeoutError"):
        await script([KEY], [])


async def test_without_redis_a_script_fails_in_time() -> None:
    async with connect("unix:///nonexistent/redis.sock") as nowhere:
        with pytest.raises(LiveError):
            await Script(nowhere, "", "return 1")([KEY], [])


def test_every_lua_file_is_a_script() -> None:
    names = [path.stem for path in LUA_DIR.glob("*.lua")]
    scripts = [Script(Redis(), name) for name in names]
    assert len({script.digest for script in scripts}) == len(names) > 10


async def test_a_client_has_a_bounded_number_of_connections(redis_url: str) -> None:
    client = connect(redis_url)
    async with client:
        one = client.client_at(client.masters[0]) if isinstance(client, ClusterRedis) else client
        assert one.connection_pool.max_connections == storage_limits.REDIS_CONNECTIONS_MAX
