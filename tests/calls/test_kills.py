"""Bills of calls whose real web process is killed are true."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.calls.real_kills import killed_histories

SHORT, LONG = 1, 16


async def play(histories: range, directory: Path, redis_url: str, database: str) -> None:
    async with killed_histories(directory, redis_url, database) as begin:
        for seed in histories:
            history = begin(seed)
            await history.play()
            await history.check()
        assert history.web.kills == 2 * len(histories)
        await history.replay()
        await history.check()


async def test_each_bill_is_the_true_call_s_where_a_real_process_is_killed(
    tmp_path: Path, redis: Redis, redis_url: str, database: str
) -> None:
    await play(range(SHORT), tmp_path, redis_url, database)


@pytest.mark.full
async def test_more_histories_with_kills(
    tmp_path: Path, redis: Redis, redis_url: str, database: str
) -> None:
    await play(range(SHORT, LONG), tmp_path, redis_url, database)
