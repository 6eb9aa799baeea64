"""The embedded engines: they keep what they are given, whoever comes, goes or is killed."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from storage.embedded import EngineError, EngineURLs, start_engines

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
    """Another process that uses the engines until it is told to leave, or is killed."""

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
        """Where it found the engines; returns when they are ready."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            return EngineURLs(*json.loads(await self._process.stdout.readline()))

    async def leave(self) -> None:
        await self._process.communicate(b"")
        assert self._process.returncode == 0

    async def kill(self) -> None:
        self._process.kill()
        await self._process.communicate()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory of one's own, not pytest's, whose permissions every other run resets."""
    with tempfile.TemporaryDirectory(prefix="taximeter-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def used_dir() -> Iterator[Path]:
    """A directory that several tests share, each with a word of its own.

    Making a cluster takes a second, and what these tests leave behind must harm nobody.
    """
    with tempfile.TemporaryDirectory(prefix="taximeter-") as directory:
        yield Path(directory)


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
    """The engines of a directory, which have stopped at the end if nobody else uses them."""
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
    """The engines of the directory that have a keeper, each as often as it has one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_text().split("\0")
            if "storage.embedded" in command and str(data_dir) in command:
                found.append(command[3])
    return sorted(found)


async def test_a_restart_keeps_what_both_engines_were_given(data_dir: Path) -> None:
    async with running(data_dir / "made" / "for us") as urls:
        await put(urls, "kept")

    async with running(data_dir / "made" / "for us") as again:
        assert again == urls
        assert await got(again) == (b"kept", "kept")


async def test_postgres_is_set_up_for_money_and_for_utc(used_dir: Path) -> None:
    expected = {
        "listen_addresses": "",
        "max_connections": "100",
        "TimeZone": "UTC",
        "synchronous_commit": "on",
        "fsync": "on",
        "server_encoding": "UTF8",
    }
    async with running(used_dir, redis=False) as urls:
        connection = await asyncpg.connect(urls.postgres)
        found = {name: await connection.fetchval(f"SHOW {name}") for name in expected}
        await connection.close()

    assert found == expected
    assert urls.redis == ""


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


async def test_a_user_starts_a_new_keeper_when_the_old_one_was_killed(data_dir: Path) -> None:
    async with running(data_dir, postgres=False) as urls:
        async with client(urls.redis) as redis:
            await redis.set("word", "kept")
        engine = os.pidfd_open(process_id(data_dir, "redis.engine"))
        await kill(process_id(data_dir, "redis.json"))
        # The kernel ends the engine along with its keeper.
        await ended(engine)

        assert await in_redis(urls) == b"kept"
        assert keepers(data_dir) == ["redis"]


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


async def test_a_stale_pid_file_harms_nobody_who_has_got_the_number(used_dir: Path) -> None:
    async with running(used_dir, redis=False):
        pass
    (used_dir / "engines" / "postgres.engine").write_text(str(os.getpid()))
    (used_dir / "postgres" / "postmaster.pid").write_text(
        f"{os.getpid()}\n{used_dir}/postgres\n1\n5432\n{used_dir}/postgres\n\n0 0\nready\n"
    )

    async with running(used_dir, redis=False):
        assert process_id(used_dir, "postgres.engine") != os.getpid()


async def test_sockets_of_a_deep_directory_are_put_elsewhere(data_dir: Path) -> None:
    deep = data_dir / ("deep" * 20)
    async with running(deep, redis=False, durable=False) as urls:
        sockets = Path(parse_qs(urlsplit(urls.postgres).query)["host"][0])
        connection = await asyncpg.connect(urls.postgres)
        await connection.close()

        assert deep not in sockets.parents

    assert sockets not in sockets.parent.iterdir()


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
