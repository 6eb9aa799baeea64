"""A laboratory for one process, with engines in a directory.

It starts and empties a Redis and a Postgres.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import asyncpg

from storage.embedded import start_engines
from storage.postgres.migrate import migrate
from tests.simulation.driver import Laboratory


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    """Engines that no other process uses, and a laboratory with them."""
    with tempfile.TemporaryDirectory(prefix="taximeter-") as directory, asyncio.Runner() as runner:

        async def start() -> tuple[object, str, str]:
            engines = await start_engines(Path(directory), durable=False)
            connection = await asyncpg.connect(engines.urls.postgres)
            try:
                await migrate(connection)
            finally:
                await connection.close()
            return engines, engines.urls.redis, engines.urls.postgres

        engines, redis_url, dsn = runner.run(start())
        made = Laboratory(unquote(redis_url.removeprefix("unix://")), dsn)
        try:
            yield made
        finally:
            made.close()

            async def stop() -> None:
                async with engines:  # type: ignore[attr-defined]
                    pass
                await engines.stopped()  # type: ignore[attr-defined]

            runner.run(stop())
