"""The embedded Postgres: its settings, and safe permissions of its files."""

import os
from pathlib import Path

import asyncpg

from tests.storage.embedded_engines import process_id, running


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


async def test_a_stale_pid_file_kills_no_other_process(used_dir: Path) -> None:
    async with running(used_dir, redis=False):
        pass
    (used_dir / "engines" / "postgres.engine").write_text(str(os.getpid()))
    (used_dir / "postgres" / "postmaster.pid").write_text(
        f"{os.getpid()}\n{used_dir}/postgres\n1\n5432\n{used_dir}/postgres\n\n0 0\nready\n"
    )

    async with running(used_dir, redis=False):
        assert process_id(used_dir, "postgres.engine") != os.getpid()
