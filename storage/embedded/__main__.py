"""The keeper of one embedded engine: ``python -m storage.embedded redis <data_dir> ...``.

``storage.embedded.users`` starts the keeper; ``storage.embedded`` describes its promises.
"""

import argparse
import asyncio
import fcntl
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

from storage.embedded.agreement import EngineError, EngineFiles, lock, open_lock
from storage.embedded.engine import Engine, note
from storage.embedded.postgres_engine import PostgresEngine
from storage.embedded.redis_engine import RedisEngine

ENGINES: dict[str, type[Engine]] = {"redis": RedisEngine, "postgres": PostgresEngine}


async def keep(files: EngineFiles, *, durable: bool, start: int) -> None:
    """Runs the engine until it has no users.

    It releases the lock ``start`` when it is ready.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A handler, because the engines would inherit a signal that is merely ignored.
        asyncio.get_running_loop().add_signal_handler(ignored, lambda: None)
    fcntl.flock(open_lock(files.keeper), fcntl.LOCK_EX)
    files.record.unlink(missing_ok=True)
    files.failed.unlink(missing_ok=True)
    engine = ENGINES[files.name](files, durable)
    record = {"url": engine.url, "durable": durable, "keeper": os.getpid()}
    waiting = [start]

    def ready() -> None:
        if waiting:
            draft = files.record.with_suffix(".new")
            draft.write_text(json.dumps(record))
            draft.replace(files.record)
            os.close(waiting.pop())

    unused = asyncio.create_task(lock(open_lock(files.users), fcntl.LOCK_EX))
    running = asyncio.create_task(engine.run(ready))
    await asyncio.wait({unused, running}, return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    try:
        with suppress(asyncio.CancelledError):
            await running
    finally:
        await engine.stop()
        files.record.unlink(missing_ok=True)


def main() -> None:
    """Detaches and keeps the engine; the process takes the locks along."""
    parser = argparse.ArgumentParser(prog="python -m storage.embedded", description=__doc__)
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("data_dir", type=Path)
    parser.add_argument(
        "--start", type=int, required=True, help="the descriptor of the lock `start`"
    )
    parser.add_argument("--durable", action=argparse.BooleanOptionalAction, default=True)
    asked = parser.parse_args()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    files = EngineFiles(asked.data_dir, asked.engine)
    try:
        asyncio.run(keep(files, durable=asked.durable, start=asked.start))
    except (EngineError, OSError) as error:
        note(f"{files.name} does not start: {error}")
        files.failed.touch()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
