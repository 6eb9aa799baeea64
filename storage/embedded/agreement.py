"""How an engine's users and keeper agree: files and their locks."""

import asyncio
import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from storage import limits as storage_limits


class EngineError(RuntimeError):
    """An embedded engine does not run; the message quotes its log."""


class EngineFiles:
    """The files in ``<data_dir>/engines`` on which one engine's users and keeper agree."""

    def __init__(self, data_dir: Path, name: str) -> None:
        here = data_dir / "engines"
        self.data_dir = data_dir
        self.name = name
        self.start = here / f"{name}.start"
        self.keeper = here / f"{name}.keeper"
        self.users = here / f"{name}.users"
        self.engine = here / f"{name}.engine"
        self.record = here / f"{name}.json"
        self.failed = here / f"{name}.failed"
        self.log = here / f"{name}.log"

    @classmethod
    def make(cls, data_dir: Path, name: str) -> Self:
        """Returns an engine's files; makes their directory if it is missing."""
        data_dir = data_dir.resolve()
        (data_dir / "engines").mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(data_dir, name)

    def failure(self, what: str) -> EngineError:
        """Returns an error: the cause ``what``, and the log's end."""
        with suppress(OSError):
            text = self.log.read_bytes()[-storage_limits.ENGINE_LOG_SHOWN_BYTES :].decode(
                errors="replace"
            )
            what += f". The end of {self.log}:\n" + "\n".join(text.splitlines()[-20:])
        return EngineError(f"The embedded {self.name} {what}")


def open_lock(path: Path) -> int:
    """Returns a lock file's descriptor; makes the file if it is missing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


async def lock(descriptor: int, operation: int) -> None:
    """Takes a ``flock``, and waits as long as necessary.

    A daemon thread waits, because a blocking ``flock`` cannot be cancelled. The thread of a
    cancelled wait gets the lock later, through a descriptor of its own, and releases it.
    """
    loop = asyncio.get_running_loop()
    taken = asyncio.Event()
    copy = os.dup(descriptor)

    def wait() -> None:
        fcntl.flock(copy, operation)
        os.close(copy)
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(taken.set)

    threading.Thread(target=wait, daemon=True).start()
    await taken.wait()
