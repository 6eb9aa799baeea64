"""Embedded engines for tests: another process that uses them, and their data."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from storage.embedded import EngineURLs, start_engines

DEADLINE_S = 60
"""Only a test that has gone wrong waits this long."""
PAUSE_S = 0.01
STOPPED = "database system is shut down"
USER = """
import asyncio, json, sys
from pathlib import Path
from storage.embedded import start_engines

async def use(data_dir):
    asked = {name: name in sys.argv for name in ("redis", "postgres")}
    engines = await start_engines(Path(data_dir), **asked)
    print(json.dumps(engines.urls), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await engines.release()

asyncio.run(use(sys.argv[1]))
"""


class User:
    """A second process that uses the engines.

    It runs until the test ends or kills it.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, data_dir: Path, *engines: str) -> "User":
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                USER,
                str(data_dir),
                *(engines or ("redis", "postgres")),
                cwd=Path(__file__).parents[2],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )

    async def urls(self) -> EngineURLs:
        """The URLs of its engines; returns when they are ready."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            return EngineURLs(*json.loads(await self._process.stdout.readline()))

    async def leave(self) -> None:
        await self._process.communicate(b"")
        assert self._process.returncode == 0

    async def kill(self) -> None:
        self._process.kill()
        await self._process.communicate()


def process_id(data_dir: Path, file: str) -> int:
    """The process id of a keeper (``.json``) or an engine (``.engine``)."""
    text = (data_dir / "engines" / file).read_text()
    return int(json.loads(text)["keeper"] if file.endswith(".json") else text)


async def ended(process: int) -> None:
    """Returns when a process, named by a descriptor of ``pidfd_open``, has ended."""
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_reader(process, end.set)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await end.wait()
    finally:
        loop.remove_reader(process)
        os.close(process)


async def kill(pid: int) -> None:
    """Kills a process and returns when it has ended."""
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    await ended(process)


@contextlib.asynccontextmanager
async def running(
    data_dir: Path, *, redis: bool = True, postgres: bool = True, durable: bool = True
) -> AsyncIterator[EngineURLs]:
    """The engines of a directory; leaving waits until they have stopped.

    They stop only if no other process uses them.
    """
    async with await start_engines(
        data_dir, redis=redis, postgres=postgres, durable=durable
    ) as engines:
        yield engines.urls
    async with asyncio.timeout(DEADLINE_S):
        await engines.stopped()


def client(url: str) -> Redis:
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0))


async def put(urls: EngineURLs, word: str) -> None:
    """Writes a word into both engines."""
    async with client(urls.redis) as redis:
        await redis.set("word", word)
    connection = await asyncpg.connect(urls.postgres)
    await connection.execute("CREATE TABLE IF NOT EXISTS words (word text)")
    await connection.execute("INSERT INTO words VALUES ($1)", word)
    await connection.close()


async def got(urls: EngineURLs) -> tuple[bytes, str]:
    """The last word in both engines, once they take connections."""
    return await in_redis(urls), await in_postgres(urls)


async def in_redis(urls: EngineURLs) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(RedisConnectionError):
                async with client(urls.redis) as redis:
                    word = await redis.get("word")
                assert isinstance(word, bytes)
                return word
            await asyncio.sleep(PAUSE_S)


async def in_postgres(urls: EngineURLs) -> str:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(OSError, asyncpg.CannotConnectNowError):
                connection = await asyncpg.connect(urls.postgres)
                word = await connection.fetchval("SELECT word FROM words ORDER BY ctid DESC")
                await connection.close()
                return str(word)
            await asyncio.sleep(PAUSE_S)


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def keepers(data_dir: Path) -> list[str]:
    """The directory's engines that have a keeper, one item for each keeper."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_text().split("\0")
            if "storage.embedded" in command and str(data_dir) in command:
                found.append(command[3])
    return sorted(found)
