"""An engine under its keeper: restarts, shutdown in time, and its socket."""

import asyncio
import fcntl
import os
import signal
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg

from tests.storage.embedded_engines import (
    got,
    keepers,
    kill,
    process_id,
    put,
    running,
)


async def test_a_killed_engine_is_started_again_under_the_same_url(used_dir: Path) -> None:
    async with running(used_dir) as urls:
        await put(urls, "engine killed")
        for name in ("redis", "postgres"):
            await kill(process_id(used_dir, f"{name}.engine"))

        assert await got(urls) == (b"engine killed", "engine killed")
        assert keepers(used_dir) == ["postgres", "redis"]


async def test_an_engine_that_outlived_its_keeper_is_ended(data_dir: Path) -> None:
    async with running(data_dir, postgres=False):
        pass
    engine_lock = os.open(data_dir / "engines" / "redis.engine", os.O_RDWR)
    fcntl.flock(engine_lock, fcntl.LOCK_EX)
    orphan = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys; print(flush=True); sys.stdin.read()",
        cwd=data_dir / "redis",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=[engine_lock],
    )
    os.ftruncate(engine_lock, 0)
    os.pwrite(engine_lock, str(orphan.pid).encode(), 0)
    os.close(engine_lock)

    async with running(data_dir, postgres=False):
        await orphan.communicate()
        assert orphan.returncode == -signal.SIGTERM


async def test_sockets_of_a_deep_directory_are_put_elsewhere(data_dir: Path) -> None:
    deep = data_dir / ("deep" * 20)
    async with running(deep, redis=False, durable=False) as urls:
        sockets = Path(parse_qs(urlsplit(urls.postgres).query)["host"][0])
        connection = await asyncpg.connect(urls.postgres)
        await connection.close()

        assert deep not in sockets.parents

    assert sockets not in sockets.parent.iterdir()
