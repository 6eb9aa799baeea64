"""The embedded Redis has the settings that are configured."""

from pathlib import Path

from redis.asyncio import Redis

from tests.storage.embedded_engines import running


async def test_redis_appends_to_its_file_and_has_no_port(data_dir: Path) -> None:
    expected = {"appendonly": "yes", "appendfsync": "everysec", "port": "0", "save": ""}
    found: dict[str | None, str | None] = {}
    async with (
        running(data_dir, postgres=False) as urls,
        Redis.from_url(urls.redis, decode_responses=True) as redis,
    ):
        for name in expected:
            found |= await redis.config_get(name)

    assert found == expected
    assert urls.postgres == ""
