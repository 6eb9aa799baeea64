"""The migrations make exactly the schema of ``schema.sql``."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from storage.postgres.migrate import ADVISORY_LOCK, MIGRATIONS, MigrationError, migrate, pending

SCHEMA = MIGRATIONS.parent / "sql" / "schema.sql"

# Every part of a schema that a change could miss in one of the two places.
CATALOGUE = """
SELECT 'column' AS what, c.relname || '.' || a.attname AS name,
    concat_ws(' ', a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
        a.attgenerated, pg_get_expr(d.adbin, d.adrelid)) AS definition
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
  AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'relation', relname, concat_ws(' ', relkind, relpersistence, reloptions)
FROM pg_class WHERE relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid)
FROM pg_index JOIN pg_class c ON c.oid = indrelid
WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'function', oid::regprocedure::text, pg_get_functiondef(oid)
FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT 'trigger', tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid) || tgenabled::text
FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT 'type', typname, typtype::text
FROM pg_type WHERE typnamespace = 'public'::regnamespace
"""


async def catalogue(connection: "asyncpg.Connection[Any]") -> dict[tuple[str, str], str]:
    """The database's catalogue without the table of ``migrate`` itself."""
    rows = await connection.fetch(CATALOGUE)
    return {
        (row["what"], row["name"]): row["definition"]
        for row in rows
        if "schema_migrations" not in row["name"]
    }


async def test_migrations_yield_exactly_the_schema_file(database: str, empty_database: str) -> None:
    migrated = await asyncpg.connect(database)
    written = await asyncpg.connect(empty_database)
    try:
        await written.execute(SCHEMA.read_text())
        expected = await catalogue(written)
        assert await catalogue(migrated) == expected
        kinds = {what for what, _ in expected}
        assert kinds == {"column", "relation", "constraint", "index", "function", "trigger", "type"}
    finally:
        await migrated.close()
        await written.close()


async def test_catalogue_shows_every_kind_of_difference(database: str) -> None:
    connection = await asyncpg.connect(database)
    seen = [await catalogue(connection)]
    changes = [
        "ALTER TABLE sessions ADD COLUMN forgotten text",
        "ALTER TABLE sessions ALTER COLUMN elapsed_ms SET DEFAULT 1",
        "ALTER TABLE usage_tracking DROP CONSTRAINT usage_tracking_seconds_check",
        "DROP INDEX usage_tracking_free",
        "DROP TRIGGER refuse_ledger_change ON credit_ledger",
        "CREATE OR REPLACE FUNCTION limit_minutes(p_hours numeric) RETURNS integer "
        "LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS 'SELECT 60'",
    ]
    transaction = connection.transaction()
    await transaction.start()
    try:
        for change in changes:
            await connection.execute(change)
            seen.append(await catalogue(connection))
    finally:
        await transaction.rollback()
        await connection.close()
    assert all(after != before for before, after in pairwise(seen))
    assert len(seen) == 1 + len(changes)


OF_THE_INSTALLATION = {
    "call_facts", "calls", "call_sessions", "call_participants",
    "operators", "operator_sessions", "operator_actions", "operator_outcomes",
}  # fmt: skip
"""Tables whose rows belong to no tenant, or to none yet: a fact arrives before it is known whose it
is."""


async def test_every_primary_key_begins_with_the_tenant(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        rows = await connection.fetch(
            """
            SELECT c.relname AS name, a.attname AS first, format_type(a.atttypid, NULL) AS type
            FROM pg_class c
            LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p'
            LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.conkey[1]
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
              AND c.relname <> 'schema_migrations'
            """
        )
    finally:
        await connection.close()
    assert {row["name"] for row in rows if row["first"] != "tenant"} == OF_THE_INSTALLATION
    assert len(rows) == 14 + len(OF_THE_INSTALLATION)
    firsts = {(row["first"], row["type"]) for row in rows}
    assert firsts == {
        ("tenant", "text"),
        ("provider", "text"),
        ("name", "text"),
        ("secret_hash", "bytea"),
        ("action_id", "text"),
    }


async def test_migrate_applies_what_is_missing_and_then_nothing(empty_database: str) -> None:
    names = sorted(path.name for path in MIGRATIONS.glob("*.sql"))
    connection = await asyncpg.connect(empty_database)
    try:
        assert await pending(connection) == names
        assert await migrate(connection) == names
        assert await pending(connection) == []
        assert await migrate(connection) == []
    finally:
        await connection.close()


async def test_processes_that_start_together_migrate_once(empty_database: str) -> None:
    connections = [await asyncpg.connect(empty_database) for _ in range(3)]
    try:
        applied = await asyncio.gather(*(migrate(connection) for connection in connections))
    finally:
        for connection in connections:
            await connection.close()
    assert sorted(map(len, applied)) == [0, 0, len(list(MIGRATIONS.glob("*.sql")))]


async def test_migrate_waits_for_the_advisory_lock(empty_database: str) -> None:
    holder = await asyncpg.connect(empty_database)
    waiter = await asyncpg.connect(empty_database)
    try:
        await holder.execute("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
        task = asyncio.create_task(migrate(waiter))
        while not await holder.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        ):
            assert not task.done()
        await holder.execute("SELECT pg_advisory_unlock($1)", ADVISORY_LOCK)
        assert await task
    finally:
        await holder.close()
        await waiter.close()


def write_files(directory: Path, **scripts: str) -> None:
    for name, script in scripts.items():
        (directory / f"{name}.sql").write_text(script)


async def test_a_changed_file_is_refused_by_name(empty_database: str, tmp_path: Path) -> None:
    write_files(tmp_path, m1="CREATE TABLE one ()", m2="CREATE TABLE two ()")
    connection = await asyncpg.connect(empty_database)
    try:
        assert await migrate(connection, tmp_path) == ["m1.sql", "m2.sql"]
        write_files(tmp_path, m1="CREATE TABLE uno ()", m3="CREATE TABLE three ()")
        with pytest.raises(MigrationError, match=r"m1\.sql was changed"):
            await migrate(connection, tmp_path)
        with pytest.raises(MigrationError, match=r"m1\.sql was changed"):
            await pending(connection, tmp_path)
        assert await connection.fetchval("SELECT to_regclass('three')") is None
    finally:
        await connection.close()


async def test_line_ends_of_a_checkout_are_no_change(empty_database: str, tmp_path: Path) -> None:
    (tmp_path / "m1.sql").write_bytes(b"CREATE TABLE one (\n)")
    connection = await asyncpg.connect(empty_database)
    try:
        await migrate(connection, tmp_path)
        (tmp_path / "m1.sql").write_bytes(b"CREATE TABLE one (\r\n)")
        assert await migrate(connection, tmp_path) == []
    finally:
        await connection.close()


async def test_a_file_that_comes_too_late_is_refused(empty_database: str, tmp_path: Path) -> None:
    write_files(tmp_path, m2="CREATE TABLE two ()")
    connection = await asyncpg.connect(empty_database)
    try:
        await migrate(connection, tmp_path)
        write_files(tmp_path, m1="CREATE TABLE one ()")
        with pytest.raises(MigrationError, match=r"m1\.sql comes before m2\.sql"):
            await migrate(connection, tmp_path)
    finally:
        await connection.close()


async def test_older_code_runs_on_a_newer_schema(empty_database: str, tmp_path: Path) -> None:
    write_files(tmp_path, m1="CREATE TABLE one ()", m2="CREATE TABLE two ()")
    connection = await asyncpg.connect(empty_database)
    try:
        await migrate(connection, tmp_path)
        (tmp_path / "m2.sql").unlink()
        assert await migrate(connection, tmp_path) == []
    finally:
        await connection.close()


async def test_a_failure_leaves_nothing_half_done(empty_database: str, tmp_path: Path) -> None:
    write_files(tmp_path, m1="CREATE TABLE one ()", m2="CREATE TABLE two (; )")
    connection = await asyncpg.connect(empty_database)
    try:
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await migrate(connection, tmp_path)
        assert await connection.fetchval("SELECT to_regclass('one')") is None
        assert await pending(connection, tmp_path) == ["m1.sql", "m2.sql"]
    finally:
        await connection.close()


async def test_sessions_reported_before_are_known_as_such(
    empty_database: str, tmp_path: Path
) -> None:
    names = sorted(path.name for path in MIGRATIONS.glob("*.sql"))
    before = names[: names.index("0013_reported_sessions.sql")]
    for name in before:
        (tmp_path / name).write_text((MIGRATIONS / name).read_text())
    free, paid = (
        '{"counts_minutes":true,"price_micros":0}',
        '{"counts_minutes":true,"price_micros":1}',
    )
    rows = [
        ("reported", "live", '{"tracked":true,"room":7}', free, '{"room": 7}', True),
        ("alone", "live", '{"tracked":true}', free, None, True),
        ("ended", "ended", '{"tracked":true}', free, '{"tracked": true}', False),
        ("word", "live", '{"tracked":"true"}', free, '{"tracked": "true"}', False),
        ("metered", "live", '{"tracked":true}', paid, '{"tracked": true}', False),
        ("plain", "live", None, free, None, False),
    ]
    connection = await asyncpg.connect(empty_database)
    try:
        await migrate(connection, tmp_path)
        for session_id, state, metadata, terms, _, _ in rows:
            await connection.execute(
                "INSERT INTO sessions (tenant, session_id, state, kind, user_id, account_id,"
                " started_at, ended_at, reason, terms, metadata) VALUES ('user:ann', $1, $2,"
                " 'recording', 'ann', 'ann', now(), CASE WHEN $2 = 'ended' THEN now() END,"
                " CASE WHEN $2 = 'ended' THEN 'client' END, $3::text::jsonb, $4::text::jsonb)",
                session_id, state, terms, metadata,
            )  # fmt: skip
        await migrate(connection)
        found = await connection.fetch("SELECT session_id, metadata, is_reported FROM sessions")
        assert {tuple(row) for row in found} == {(row[0], *row[4:]) for row in rows}
    finally:
        await connection.close()


def test_no_two_migrations_have_one_number() -> None:
    numbers = [path.name.partition("_")[0] for path in sorted(MIGRATIONS.glob("*.sql"))]
    assert numbers == [f"{number:04d}" for number in range(1, len(numbers) + 1)]
