"""How a process uses the embedded engines, from ``start_engines`` to ``release``."""

import asyncio
import fcntl
import json
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from storage import limits as storage_limits
from storage.embedded.agreement import EngineError, EngineFiles, lock, open_lock

_log = logging.getLogger(__name__)


class EngineURLs(NamedTuple):
    """The engines' addresses, for redis-py and asyncpg.

    An engine that was not asked for has an empty one.
    """

    redis: str
    postgres: str


class Engines:
    """The engines that this process uses, until it releases them.

    This asynchronous context manager releases them at its end.
    """

    def __init__(self, uses: "list[_Use]", urls: EngineURLs) -> None:
        self.urls = urls
        self._uses = uses

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    async def release(self) -> None:
        """Ends the use.

        The engines stop after their last user's release. The call may be repeated.
        """
        for use in self._uses:
            await use.end()

    async def stopped(self) -> None:
        """Returns when the engines have stopped, which follows their last user's release."""
        for use in self._uses:
            await use.keeper_gone()


async def start_engines(
    data_dir: Path, *, redis: bool = True, postgres: bool = True, durable: bool = True
) -> Engines:
    """Starts the engines of a data directory, or joins running ones.

    Makes the directory if it is missing. ``durable=False`` is for tests: Postgres does not wait for
    the disk, and Redis writes nothing. Raises ``EngineError``, within ``ENGINE_START_S_MAX``, when
    an engine does not start, or when a running engine is less durable than asked.
    """
    wanted = [name for name, asked in (("redis", redis), ("postgres", postgres)) if asked]
    uses = [_Use(EngineFiles.make(data_dir, name), durable) for name in wanted]
    try:
        async with asyncio.TaskGroup() as group:
            begun = [group.create_task(use.begin()) for use in uses]
    except BaseException as error:
        for use in uses:
            await use.end()
        if isinstance(error, BaseExceptionGroup):
            raise error.exceptions[0] from None
        raise
    urls = dict(zip(wanted, (task.result() for task in begun), strict=True))
    return Engines(uses, EngineURLs(urls.get("redis", ""), urls.get("postgres", "")))


class _Use:
    """The use of one engine."""

    def __init__(self, files: EngineFiles, durable: bool) -> None:
        self._files = files
        self._durable = durable
        self._users: int | None = None
        self._attendance: asyncio.Task[None] | None = None

    async def begin(self) -> str:
        """Returns the engine's URL once it is ready."""
        url = await self._join()
        self._attendance = asyncio.create_task(self._attend())
        return url

    async def end(self) -> None:
        if self._attendance is not None:
            self._attendance.cancel()
            await asyncio.wait([self._attendance])
            self._attendance = None
        if self._users is not None:
            os.close(self._users)
            self._users = None

    async def keeper_gone(self) -> None:
        """Returns when the keeper has ended."""
        keeper = open_lock(self._files.keeper)
        try:
            await lock(keeper, fcntl.LOCK_SH)
        finally:
            os.close(keeper)

    async def _attend(self) -> None:
        """Starts a new keeper whenever the present keeper has died."""
        while True:
            await self.keeper_gone()
            _log.warning("the keeper of the embedded %s has died", self._files.name)
            try:
                await self._join()
            except (EngineError, OSError):
                _log.exception("no new keeper of the embedded %s yet", self._files.name)
                await asyncio.sleep(storage_limits.ENGINE_JOIN_RETRY_S)

    async def _join(self) -> str:
        """Returns the ready engine's URL, and keeps sharing the lock ``users``."""
        try:
            async with asyncio.timeout(storage_limits.ENGINE_START_S_MAX):
                record = await self._keeper_record()
        except TimeoutError:
            raise self._files.failure(
                f"was not ready after {storage_limits.ENGINE_START_S_MAX} s"
            ) from None
        if self._durable and not record["durable"]:
            raise EngineError(f"The embedded {self._files.name} runs already, but not durably")
        return str(record["url"])

    async def _keeper_record(self) -> dict[str, Any]:
        """Returns the keeper's record; starts a keeper if there is none."""
        started = 0
        while True:
            start = open_lock(self._files.start)
            try:
                await lock(start, fcntl.LOCK_EX)
                if self._users is None:
                    self._users = open_lock(self._files.users)
                    await lock(self._users, fcntl.LOCK_SH)
                record = await self._living_record()
                if record is not None:
                    return record
                # A keeper that was killed before it was ready gets a successor. A keeper that gave
                # up gets none.
                if started == storage_limits.ENGINE_KEEPERS_TRIED_MAX or (
                    started and self._files.failed.exists()
                ):
                    raise self._files.failure("did not start")
                await self._start_keeper(start)
                started += 1
            finally:
                # A started keeper has inherited the lock and holds it until it is ready. The next
                # round waits for exactly that.
                os.close(start)

    async def _living_record(self) -> dict[str, Any] | None:
        """Returns a ready keeper's record; None: there is none.

        The caller must hold the lock ``start``. For that caller, a keeper without a record is about
        to end.
        """
        keeper = open_lock(self._files.keeper)
        try:
            fcntl.flock(keeper, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(FileNotFoundError):
                record: dict[str, Any] = json.loads(self._files.record.read_bytes())
                return record
            await lock(keeper, fcntl.LOCK_SH)
        finally:
            os.close(keeper)
        return None

    async def _start_keeper(self, start: int) -> None:
        files = self._files
        with suppress(FileNotFoundError):
            if files.log.stat().st_size > storage_limits.ENGINE_LOG_BYTES_MAX:
                files.log.replace(files.log.with_suffix(".log.1"))
        command = [sys.executable, "-m", "storage.embedded", files.name, str(files.data_dir)]
        command += [f"--start={start}", "--durable" if self._durable else "--no-durable"]
        with files.log.open("ab") as log:
            # The started process forks its keeper and ends at once; the keeper has no parent here.
            detached = await asyncio.create_subprocess_exec(
                *command,
                cwd=Path(__file__).parents[2],
                # The engines must not see the server's secrets.
                env={k: v for k, v in os.environ.items() if not k.startswith("TAXIMETER_")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[start],
                start_new_session=True,
            )
        if await detached.wait() > 0:
            raise files.failure("got no keeper")
