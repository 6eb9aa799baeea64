"""Tests the commands as an operator uses them: output and refusals."""

import asyncio
import signal

import asyncpg

from tests.faults.processes import Installation, free_port, open_installation

PRODUCTION = {"TAXIMETER_ENV": "production"}


async def refused(
    installation: Installation, command: str, *arguments: str, **environment: str
) -> str:
    """The error of a command that refuses to start, without stack trace."""
    process = await installation.run(command, *arguments, **environment)
    assert process.child.returncode == 1, process.errors
    assert "Traceback" not in process.errors
    assert process.output == ""
    return process.errors


async def test_production_does_not_start_without_secrets() -> None:
    async with open_installation() as installation:
        commands = (["web"], ["all"], ["token", "--sub", "ann"])
        answers = await asyncio.gather(
            *(refused(installation, *command, **PRODUCTION) for command in commands)
        )
        for said in answers:
            assert "TAXIMETER_JWT_SECRET" in said
            assert "TAXIMETER_API_KEYS" in said
            assert "TAXIMETER_ENV=development" in said
        # The refusal came before a secret was made or an engine started.
        assert [path.suffix for path in installation.data_dir.iterdir()] == [".log"] * 3


async def test_a_bad_setting_is_named() -> None:
    async with open_installation() as installation:
        said = await refused(installation, "all", TAXIMETER_PORT="many", TAXIMETER_PARTITIONS="0")
        assert "TAXIMETER_PORT" in said
        assert "TAXIMETER_PARTITIONS" in said
        assert "many" not in said


async def test_all_errors_of_a_rate_card_are_named() -> None:
    async with open_installation(
        '[kinds.chat]\ncredits_per_minute = "x"\ntick_seconds = 0\n'
    ) as installation:
        path = installation.environment["TAXIMETER_RATES"]
        bad, missing = await asyncio.gather(
            refused(installation, "all"),
            refused(installation, "web", TAXIMETER_RATES="/nowhere/rates.toml"),
        )
        assert f"{path}: kinds.chat.credits_per_minute" in bad
        assert f"{path}: kinds.chat.tick_seconds" in bad
        assert "TAXIMETER_RATES: cannot read /nowhere/rates.toml" in missing


async def test_missing_engines_are_reported_in_one_line() -> None:
    nobody = free_port()
    urls = {
        "TAXIMETER_REDIS_URL": f"redis://127.0.0.1:{nobody}",
        "TAXIMETER_DATABASE_URL": f"postgresql://ann:secret-word@127.0.0.1:{nobody}/none",
        "TAXIMETER_JWT_SECRET": "x" * 32,
        "TAXIMETER_API_KEYS": "y" * 20,
    }
    async with open_installation() as installation:
        postgres, redis = await asyncio.gather(
            refused(installation, "migrate", **urls),
            refused(installation, "web", **urls, **PRODUCTION),
        )
        for name, said in (("Postgres", postgres), ("connecting", redis)):
            assert name in said.splitlines()[-1]
            assert f"127.0.0.1:{nobody}" in said.splitlines()[-1]
            assert "secret-word" not in said


async def test_a_token_is_accepted_and_migrations_run_once() -> None:
    async with open_installation() as installation:
        first = await installation.run("migrate")
        assert first.child.returncode == 0, first.errors
        assert first.errors.count("migrated") >= 3
        again = await installation.run("migrate")
        assert again.child.returncode == 0, again.errors
        assert "migrated" not in again.errors

        minted = await installation.run("token", "--sub", "ann", "--org", "acme", "--scope", "ops")
        assert minted.child.returncode == 0, minted.errors
        (token,) = minted.output.splitlines()
        bad = await installation.run("token", "--sub", "a/b")
        assert bad.child.returncode == 1
        assert "sub: must be 1-128 characters" in bad.errors

        server = await installation.serve()
        assert "migrated" not in server.errors
        client, welcome = await installation.connect(token)
        assert (welcome["user_id"], welcome["org_id"]) == ("ann", "acme")
        # The port is in use, so another process does not start, and reports that.
        other = await installation.run("web")
        assert other.child.returncode == 1
        assert "Traceback" not in other.errors
        assert str(installation.port) in other.errors.splitlines()[-1]
        assert (await client.ask("ping"))["type"] == "pong"

        record = await asyncpg.connect(installation.url_of("postgres"))
        applied = await record.fetchval("SELECT count(*) FROM schema_migrations")
        await record.close()
        assert applied == first.errors.count("migrated")
        await client.close()
        assert await server.stop(signal.SIGTERM) == 0
