"""Development: what it gives away, and to whom."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask, assert_problem

ROOT = Path(__file__).parents[2]


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
