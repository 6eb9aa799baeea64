"""``scripts/run`` respects the environment's settings."""

import asyncio
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
