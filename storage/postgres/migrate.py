"""Brings a database to the schema of this code.

The migrations are the numbered files in ``storage/postgres/migrations``, applied in the order of
their names. One transaction applies all missing files, under an advisory lock that ends with it. So
several processes may start at once, a failure leaves no part done, and a pooler in transaction mode
works. An applied file must never change; a further file changes what it made.
"""

import hashlib
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"

MIGRATIONS = Path(__file__).parent / "migrations"

# A number that nothing else locks in the same database: "taxi" in ASCII.
ADVISORY_LOCK = 0x74617869

_CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class MigrationError(Exception):
    """The applied migrations and the files do not match; nothing was done."""


async def migrate(connection: Connection, directory: Path = MIGRATIONS) -> list[str]:
    """Applies the missing files, and returns their names.

    Raises ``MigrationError`` if an applied file has changed since, or if a missing file comes
    before an applied one.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)
        await connection.execute(_CREATE_TABLE)
        # Read again under the lock: another process may have applied files meanwhile.
        names = _missing(_files(directory), await _applied(connection))
        for name in names:
            script = (directory / name).read_text("utf-8")
            await connection.execute(script)
            await connection.execute(
                "INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)",
                name,
                _checksum(script),
            )
    return names


async def pending(connection: Connection, directory: Path = MIGRATIONS) -> list[str]:
    """Returns the files that ``migrate`` would apply; raises its errors."""
    return _missing(_files(directory), await _applied(connection))


def _files(directory: Path) -> dict[str, str]:
    """Returns the checksum of every migration by name, in order."""
    return {
        path.name: _checksum(path.read_text("utf-8")) for path in sorted(directory.glob("*.sql"))
    }


def _checksum(script: str) -> str:
    """Returns the text's checksum: a checkout may change line ends."""
    return hashlib.sha256(script.encode()).hexdigest()


async def _applied(connection: Connection) -> dict[str, str]:
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return {}
    rows = await connection.fetch("SELECT name, checksum FROM schema_migrations")
    return {row["name"]: row["checksum"] for row in rows}


def _missing(files: dict[str, str], applied: dict[str, str]) -> list[str]:
    """Returns the files that are not applied, in their order.

    Applied migrations without a file are no error: during a roll-back, and during a rollout, code
    runs on a schema that is newer than itself.
    """
    for name, checksum in files.items():
        if name in applied and applied[name] != checksum:
            raise MigrationError(
                f"{name} was changed after it had been applied: "
                "put it back, and make the change in a new migration"
            )
    missing = [name for name in files if name not in applied]
    newest = max(applied, default="")
    for name in missing:
        if name < newest:
            raise MigrationError(
                f"{name} comes before {newest}, which has been applied already: "
                "give it a number that comes after"
            )
    return missing


async def migrate_database(dsn: str) -> list[str]:
    """Runs ``migrate`` on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        return await migrate(connection)
    finally:
        await connection.close()
