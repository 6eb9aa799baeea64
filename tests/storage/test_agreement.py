"""Users and keepers of an engine: private files, locks, and quoted logs."""

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from storage import limits as storage_limits
from storage.embedded.agreement import EngineFiles, lock, open_lock


def test_files_are_made_private_and_one_set_for_each_engine(data_dir: Path) -> None:
    files = EngineFiles.make(data_dir / "new", "redis")
    assert (data_dir / "new" / "engines").stat().st_mode & 0o777 == 0o700
    other = EngineFiles.make(data_dir / "new", "postgres")
    ours = {path for path in vars(files).values() if isinstance(path, Path)}
    theirs = {path for path in vars(other).values() if isinstance(path, Path)}
    assert ours & theirs == {files.data_dir}
    assert EngineFiles.make(data_dir / "new" / ".." / "new", "redis").data_dir == files.data_dir


def test_an_error_quotes_the_end_of_the_log(data_dir: Path) -> None:
    files = EngineFiles.make(data_dir, "redis")
    assert str(files.failure("did not start")) == "The embedded redis did not start"
    lines = [f"line {number}" for number in range(storage_limits.ENGINE_LOG_SHOWN_BYTES)]
    files.log.write_text("\n".join(lines) + "\n\xff")
    said = str(files.failure("did not start"))
    assert said.startswith(f"The embedded redis did not start. The end of {files.log}:")
    assert lines[-1] in said
    assert lines[-25] not in said


async def test_a_cancelled_wait_for_a_lock_leaves_it_free(
    data_dir: Path,
) -> None:
    path = data_dir / "lock"
    held, second, third = (open_lock(path) for _ in range(3))
    assert path.stat().st_mode & 0o777 == 0o600
    try:
        await lock(held, fcntl.LOCK_EX)
        given_up = asyncio.create_task(lock(second, fcntl.LOCK_EX))
        waiting = asyncio.create_task(lock(third, fcntl.LOCK_EX))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        os.close(second)
        assert not waiting.done()
        fcntl.flock(held, fcntl.LOCK_UN)
        async with asyncio.timeout(20):
            await waiting
        with pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(held)
        os.close(third)
