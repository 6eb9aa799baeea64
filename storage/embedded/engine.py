"""The common part of both engines: start, watch and stop."""

import asyncio
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from storage import limits as storage_limits
from storage.embedded.agreement import EngineError, EngineFiles, lock, open_lock

PR_SET_PDEATHSIG = 1


class Engine(ABC):
    """One engine, as its keeper sees it."""

    stop_signal: ClassVar[signal.Signals]
    socket_name: ClassVar[str]

    def __init__(self, files: EngineFiles, durable: bool) -> None:
        self.files = files
        self.durable = durable
        self.directory = files.data_dir / files.name
        self.socket_dir = _socket_directory(self.directory, self.socket_name)
        self.user: tuple[int, int] | None = None
        self.process: asyncio.subprocess.Process | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The engine's address, for its client library."""

    @abstractmethod
    def command(self) -> list[str]:
        """Returns the server's command line."""

    @abstractmethod
    async def prepare(self, engine_lock: int) -> None:
        """Prepares the directory so that the server can start in it."""

    @abstractmethod
    async def answers(self) -> bool:
        """Whether the server answers; before that, False or an ``OSError``."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Starts the engine, and starts it again whenever it ends; never returns.

        Calls ``ready`` each time the engine answers. Raises the error of a failed first start.
        After that it tries again, with growing pauses.
        """
        was_ready = False
        pause_s = 0.0
        while True:
            began_s = time.monotonic()
            try:
                await self.start()
                ready()
                was_ready = True
                assert self.process is not None
                note(f"{self.files.name} ended by itself: {await self.process.wait()}")
            except (EngineError, OSError) as error:
                if not was_ready:
                    raise
                note(f"{self.files.name} does not start again: {error}")
            if time.monotonic() - began_s > storage_limits.ENGINE_RESTART_S_MAX:
                pause_s = 0.0
            await asyncio.sleep(pause_s)
            pause_s = min(
                max(2 * pause_s, storage_limits.ENGINE_RESTART_S_MIN),
                storage_limits.ENGINE_RESTART_S_MAX,
            )

    async def start(self) -> None:
        """Returns when the engine answers; raises ``EngineError`` when it ends instead."""
        engine_lock = await self._alone()
        try:
            await self.prepare(engine_lock)
            self.process = await self.spawn(self.command(), engine_lock)
        finally:
            os.close(engine_lock)
        # Neither engine informs a parent when it is ready, so this process probes it.
        while not await self._probe():
            if self.process.returncode is not None:
                raise EngineError(f"{self.files.name} ended: {self.process.returncode}")
            await asyncio.sleep(storage_limits.ENGINE_PROBE_PAUSE_S)

    async def stop(self) -> None:
        """Stops the engine cleanly, or by force after ``ENGINE_STOP_S_MAX``."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(self.stop_signal)
            try:
                await asyncio.wait_for(self.process.wait(), storage_limits.ENGINE_STOP_S_MAX)
            except TimeoutError:
                waited_s = storage_limits.ENGINE_STOP_S_MAX
                note(f"{self.files.name} did not stop in {waited_s} s: the keeper kills it")
                self.process.kill()
                await self.process.wait()
        if self.socket_dir != self.directory:
            shutil.rmtree(self.socket_dir, ignore_errors=True)

    async def spawn(self, command: list[str], engine_lock: int) -> asyncio.subprocess.Process:
        """Starts a program with the engine's lock.

        It is stopped if the keeper dies.
        """
        keeper = os.getpid()
        tell_at_death = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

        def bind_to_keeper() -> None:
            if tell_at_death is not None:
                tell_at_death(PR_SET_PDEATHSIG, int(self.stop_signal), 0, 0, 0)
            if os.getppid() != keeper:
                os._exit(1)

        as_user: dict[str, Any] = {}
        if self.user is not None:
            as_user = {"user": self.user[0], "group": self.user[1], "extra_groups": []}
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.directory if self.directory.exists() else "/",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            pass_fds=[engine_lock],
            # Runs after the change of user, which would undo the binding. Only this hook runs
            # there.
            preexec_fn=bind_to_keeper,
            **as_user,
        )
        os.ftruncate(engine_lock, 0)
        os.pwrite(engine_lock, str(process.pid).encode(), 0)
        return process

    async def _probe(self) -> bool:
        try:
            async with asyncio.timeout(storage_limits.ENGINE_PROBE_S_MAX):
                return await self.answers()
        except OSError:
            return False

    async def _alone(self) -> int:
        """Returns the engine's lock once no earlier process is left."""
        engine_lock = open_lock(self.files.engine)
        for end in (self.stop_signal, signal.SIGKILL):
            with suppress(BlockingIOError):
                fcntl.flock(engine_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return engine_lock
            pid = int(os.pread(engine_lock, 20, 0) or 0)
            note(f"an earlier {self.files.name}, process {pid}, has not ended yet")
            if runs_in(pid, self.directory):
                os.kill(pid, end)
            with suppress(TimeoutError):
                async with asyncio.timeout(storage_limits.ENGINE_ORPHAN_STOP_S_MAX):
                    await lock(engine_lock, fcntl.LOCK_EX)
                    return engine_lock
        os.close(engine_lock)
        raise EngineError(f"an earlier {self.files.name} does not end")


def note(text: str) -> None:
    """Writes a line into the engine's log: the keeper's standard error."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    print(f"{stamp} UTC keeper {os.getpid()}: {text}", file=sys.stderr, flush=True)


def package(name: str) -> Path:
    """Returns an installed package's directory; its programs are used, not its Python."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EngineError(f"{name} is not installed: pip install -r requirements.lock")
    return Path(spec.origin).parent


def runs_in(pid: int, directory: Path) -> bool:
    """Whether the process exists and works in the engine's directory."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == directory
    except OSError:
        return False


def _socket_directory(directory: Path, socket_name: str) -> Path:
    """Returns the engine's directory; a temporary one replaces too long a path.

    The kernel bounds the path of a Unix socket.
    """
    if len(os.fsencode(directory / socket_name)) <= storage_limits.ENGINE_SOCKET_PATH_BYTES_MAX:
        return directory
    name = f"taximeter-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"
    short = Path(tempfile.gettempdir()) / name
    if len(os.fsencode(short / socket_name)) > storage_limits.ENGINE_SOCKET_PATH_BYTES_MAX:
        short = Path("/tmp") / name  # noqa: S108 it is made private, or refused
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    if not private or os.geteuid() not in (0, found.st_uid):
        raise EngineError(f"{short} is not a private directory of this user")
    return short
