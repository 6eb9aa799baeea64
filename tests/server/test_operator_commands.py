"""``python -m server operator``, as it is run."""

import os
import subprocess
import sys

import pytest

from tests.fixtures.server import TestServer
from tests.server.operators import PASSWORD, OperatorPage


def run(database: str, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TAXIMETER_DATABASE_URL": database,
                   "TAXIMETER_REDIS_URL": "redis://127.0.0.1:1"}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "server", "operator", *arguments],
        input=typed, capture_output=True, text=True, check=False, env=environment, timeout=60,
    )  # fmt: skip


async def test_an_operator_by_command_signs_in(server: TestServer, database: str) -> None:
    added = run(database, "add", "olga", "--role", "act", typed=f"{PASSWORD}\n")
    assert (added.returncode, added.stdout) == (0, "olga may act\n"), added.stderr
    proxied = run(database, "add", "rita", "--role", "read", "--no-password")
    assert proxied.returncode == 0, proxied.stderr
    listed = run(database, "list")
    assert listed.stdout == "olga\tact\tpassword\nrita\tread\tproxy\n"
    async with OperatorPage(server) as browser:
        assert (await browser.login()).status_code == 200
        assert run(database, "password", "olga", typed="another long one\n").returncode == 0
        assert (await browser.ask("GET", "/v1/ops/log")).status_code == 401
        assert (await browser.login(password="another long one")).status_code == 200
        assert run(database, "remove", "olga").returncode == 0
        assert (await browser.ask("GET", "/v1/ops/log")).status_code == 401


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (("add", "olga", "--role", "act"), "short\n"),
        (("add", "olga", "--role", "act"), ""),
        (("add", "two words", "--role", "act"), f"{PASSWORD}\n"),
        (("add", "olga", "--role", "admin"), f"{PASSWORD}\n"),
        (("add", "olga"), f"{PASSWORD}\n"),
        (("remove", "nemo"), ""),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    database: str, arguments: tuple[str, ...], typed: str
) -> None:
    failed = run(database, *arguments, typed=typed)
    assert failed.returncode in (1, 2)
    assert "Traceback" not in failed.stderr
    assert PASSWORD not in failed.stdout + failed.stderr
    assert run(database, "list").stdout == ""
