"""Users of embedded engines: processes that come, go or are killed."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from storage.embedded import EngineError, start_engines
from tests.storage.embedded_engines import (
    STOPPED,
    User,
    client,
    ended,
    got,
    in_redis,
    keepers,
    kill,
    lives,
    process_id,
    put,
    running,
)


async def test_a_restart_keeps_what_both_engines_were_given(data_dir: Path) -> None:
    async with running(data_dir / "made" / "for us") as urls:
        await put(urls, "kept")

    async with running(data_dir / "made" / "for us") as again:
        assert again == urls
        assert await got(again) == (b"kept", "kept")


async def test_the_engines_outlive_their_first_user_and_leave_with_the_last(
    used_dir: Path,
) -> None:
    first = await User.start(used_dir)
    urls = await first.urls()
    async with running(used_dir) as second:
        engines = [process_id(used_dir, f"{name}.engine") for name in ("redis", "postgres")]
        await first.leave()
        await put(second, "still here")

        assert second == urls
        assert await got(urls) == (b"still here", "still here")
        assert keepers(used_dir) == ["postgres", "redis"]

    assert keepers(used_dir) == []
    assert not any(lives(pid) for pid in engines)


async def test_several_who_start_at_once_share_one_engine(data_dir: Path) -> None:
    users = await asyncio.gather(*(User.start(data_dir, "redis") for _ in range(4)))
    urls = await asyncio.gather(*(user.urls() for user in users))
    async with running(data_dir, postgres=False) as mine:
        await asyncio.gather(*(user.leave() for user in users))

        assert keepers(data_dir) == ["redis"]
        assert set(urls) == {mine}


async def test_who_comes_while_the_engines_stop_gets_new_ones(data_dir: Path) -> None:
    counts = []
    for _ in range(5):
        async with (
            await start_engines(data_dir, postgres=False) as engines,
            client(engines.urls.redis) as redis,
        ):
            counts.append(await redis.incr("count"))
    await engines.stopped()

    assert counts == [1, 2, 3, 4, 5]


async def test_the_engines_stop_cleanly_when_their_user_is_killed(used_dir: Path) -> None:
    user = await User.start(used_dir)
    await put(await user.urls(), "stopped cleanly")
    log = used_dir / "engines" / "postgres.log"
    stops = log.read_text().count(STOPPED)
    going = [os.pidfd_open(process_id(used_dir, f"{name}.json")) for name in ("redis", "postgres")]
    await user.kill()
    for keeper in going:
        await ended(keeper)

    assert log.read_text().count(STOPPED) == stops + 1
    async with running(used_dir) as urls:
        assert await got(urls) == (b"stopped cleanly", "stopped cleanly")


async def test_a_start_after_everybody_was_killed_finds_everything(used_dir: Path) -> None:
    user = await User.start(used_dir)
    await put(await user.urls(), "all killed")
    pids = [process_id(used_dir, f"{name}.json") for name in ("redis", "postgres")]
    # Halted first, so that the keepers cannot tidy up after their user.
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    await user.kill()
    for pid in pids:
        await kill(pid)

    async with running(used_dir) as urls:
        assert await got(urls) == (b"all killed", "all killed")


async def test_a_user_replaces_a_killed_keeper(data_dir: Path) -> None:
    async with running(data_dir, postgres=False) as urls:
        async with client(urls.redis) as redis:
            await redis.set("word", "kept")
        engine = os.pidfd_open(process_id(data_dir, "redis.engine"))
        await kill(process_id(data_dir, "redis.json"))
        # The kernel ends the engine along with its keeper.
        await ended(engine)

        assert await in_redis(urls) == b"kept"
        assert keepers(data_dir) == ["redis"]


async def test_an_engine_that_cannot_start_says_why(data_dir: Path) -> None:
    (data_dir / "redis").mkdir()
    (data_dir / "redis" / "appendonly.aof").write_text("this is no append-only file")

    with pytest.raises(EngineError, match="Bad file format reading the append only file"):
        await start_engines(data_dir, postgres=False)
    assert keepers(data_dir) == []


async def test_who_asks_for_durable_engines_does_not_get_others(data_dir: Path) -> None:
    async with running(data_dir, postgres=False, durable=False):
        with pytest.raises(EngineError, match="not durably"):
            await start_engines(data_dir, postgres=False)
