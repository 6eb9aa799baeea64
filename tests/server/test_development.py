"""Development: what it gives away, and where it is refused."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from server.runtime.loopback import is_local_database, is_local_redis, is_loopback
from server.runtime.settings import ConfigurationError, Settings, exposures, with_secrets
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask, assert_problem

ROOT = Path(__file__).parents[2]
SECRET, KEY = SecretStr("s" * 32), SecretStr("k" * 20)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("LocalHost", True),
        ("localhost.", True), ("::1", True), ("[::1]", True), ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False), ("::", False), ("", False), ("10.0.0.1", False), ("*", False),
        ("localhost.example", False), ("127.0.0.1.example", False), ("example.com", False),
        ("::ffff:10.0.0.1", False), ("127.1", False), ("0", False),
    ],
)  # fmt: skip
def test_loopback_is_told_from_everything_else(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379/0", True), ("redis://localhost", True), ("rediss://[::1]", True),
        ("redis://", True), ("redis:///0", True), ("unix:///run/redis.sock", True),
        ("unix://u:p@/run/redis.sock?db=1", True), ("redis://u:127.0.0.1@cache", False),
        ("redis://cache.example", False), ("redis:///0?host=cache.example", False),
        ("redis+cluster://127.0.0.1:1,[::1]:2", True),
        ("redis+cluster://127.0.0.1:1,cache.example:2", False),
    ],
)  # fmt: skip
def test_a_local_redis_is_told_from_another(url: str, expected: bool) -> None:
    assert is_local_redis(url) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@127.0.0.1:5432/db", True), ("postgres://localhost/db", True),
        ("postgresql:///db", True), ("postgresql://u@/db?host=/run/postgresql", True),
        ("postgresql://%2Frun%2Fpostgresql/db", True), ("postgresql://[::1]:5432/db", True),
        ("postgresql://127.0.0.1:1,localhost:2/db", True),
        ("postgresql://u@127.0.0.1:127.0.0.1@db.example/x", False),
        ("postgresql://db.example/db", False), ("postgresql://10.0.0.5:5432/db", False),
        ("postgresql://127.0.0.1:1,db.example:2/db", False),
        ("postgresql:///db?host=db.example", False),
        ("postgresql:///db?host=/run,db.example", False),
        ("postgresql:///?service=production", False),
        ("postgresql://localhost/db?hostaddr=10.0.0.5", False),
    ],
)  # fmt: skip
def test_a_local_database_is_told_from_another(url: str, expected: bool) -> None:
    assert is_local_database(url) is expected


def test_the_environment_may_name_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    assert not is_local_database("postgresql:///db")
    assert is_local_database("postgresql://127.0.0.1/db")
    monkeypatch.setenv("PGHOST", "/run/postgresql")
    assert is_local_database("postgresql:///db")
    monkeypatch.setenv("PGSERVICE", "production")
    assert not is_local_database("postgresql:///db")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "0.0.0.0"), ("host", "app.example"), ("redis_url", "redis://cache.example"),
        ("database_url", "postgresql://db.example/db"),
    ],
)  # fmt: skip
def test_development_where_others_are_is_confirmed_or_refused(name: str, value: str) -> None:
    given: dict[str, Any] = {
        "env": "development",
        "jwt_secret": SECRET,
        "api_keys": (KEY,),
        name: value,
    }
    with pytest.raises(ConfigurationError) as caught:
        with_secrets(Settings(**given))
    (problem,) = caught.value.problems[:1]
    assert f"TAXIMETER_{name.upper()}" in problem
    assert "TAXIMETER_DEVELOPMENT_CONFIRMED=1" in problem
    assert value not in problem
    confirmed = Settings(**given, development_confirmed=True)
    assert with_secrets(confirmed) is confirmed
    production = Settings(**{**given, "env": "production"})
    assert with_secrets(production) is production


def test_a_given_secret_is_fine_on_a_loopback_host() -> None:
    given = Settings(env="development", jwt_secret=SECRET, api_keys=(KEY,))
    assert with_secrets(given) is given
    assert exposures(Settings(env="development", host="localhost")) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("jwt_secret", SecretStr("s" * 31)), ("api_keys", (KEY, SecretStr("k" * 19)))],
)
def test_outside_development_short_secrets_are_refused(name: str, value: object) -> None:
    given: dict[str, Any] = {"jwt_secret": SECRET, "api_keys": (KEY,), name: value}
    with pytest.raises(ConfigurationError, match=f"TAXIMETER_{name.upper()}"):
        with_secrets(Settings(**given))
    assert with_secrets(Settings(**given, env="development"))


async def test_a_demonstration_is_for_visitors_alone(server: TestServer) -> None:
    for user_id in ("ann", "auth0|5f7c", "Visitor-1", "xvisitor-1", "visitor"):
        response = await ask(server, "POST", "/demo/token", None, json={"user_id": user_id})
        assert_problem(response, 403, "forbidden")
    for body in ({}, {"user_id": "visitor-1"}, {"user_id": None}):
        response = await ask(server, "POST", "/demo/token", None, json=body)
        assert response.json()["user_id"].startswith("visitor-")
    token = response.json()["token"]
    topped = await ask(server, "POST", "/demo/top-up", token, json={"amount": "1"})
    assert topped.status_code == 200


async def test_strangers_behind_a_proxy_get_nothing_unless_it_is_confirmed(
    start_server: StartServer,
) -> None:
    stranger = {"X-Forwarded-For": "198.51.100.7"}
    server = await start_server()
    response = await ask(server, "POST", "/demo/token", None, headers=stranger, json={})
    assert_problem(response, 403, "forbidden")
    server = await start_server(development_confirmed=True)
    response = await ask(server, "POST", "/demo/token", None, headers=stranger, json={})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("given", "used"),
    [(None, "development"), ("", "development"), ("production", "production"),
     ("development", "development")],
)  # fmt: skip
async def test_the_script_keeps_the_environment_that_is_set(
    tmp_path: Path, given: str | None, used: str
) -> None:
    scripts, python = tmp_path / "scripts", tmp_path / ".venv" / "bin" / "python"
    scripts.mkdir()
    python.parent.mkdir(parents=True)
    (scripts / "run").write_text((ROOT / "scripts" / "run").read_text())
    (scripts / "_setup.sh").write_text('cd "$(dirname "$0")/.."\n')
    python.write_text('#!/bin/sh\necho "$TAXIMETER_ENV $*"\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if "TAXIMETER" not in name}
    if given is not None:
        environment["TAXIMETER_ENV"] = given
    shell = await asyncio.create_subprocess_exec(
        *("sh", str(scripts / "run"), "--help"), env=environment, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await shell.communicate()
    assert said.decode().split() == [used, "-m", "server", "all", "--help"]
