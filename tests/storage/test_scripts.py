"""Scripts run by their digest, and clients run none of them twice."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

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


async def test_script_reaches_slow_redis_that_lost_it(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis answers once before the deadline, and not twice."""
    script = Script(redis, "", "return ARGV[1]")
    send, sent = redis.execute_command, list[str]()

    async def send_once(*command: Any, **options: Any) -> Any:
        sent.append(command[0])
        if len(sent) == 2:
            raise TimeoutError
        return await send(*command, **options)  # type: ignore[no-untyped-call]

    await redis.script_flush()
    monkeypatch.setattr(redis, "execute_command", send_once)
    with pytest.raises(LiveError):
        await script([KEY], ["a"])
    assert [await script([KEY], [word]) for word in "bc"] == [b"b", b"c"]
    assert sent == ["EVALSHA", "EVAL", "EVAL", "EVALSHA"]


async def test_nodes_without_a_script_are_bounded(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "NODES_WITHOUT_SCRIPT_MAX", 2)
    script = Script(redis, "", "return 1")
    for number in range(5):
        monkeypatch.setattr(script, "_node_of", lambda _, node=number: node)
        assert not script.answered(([KEY], []), NoScriptError())
    assert script._lost == {4}


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
