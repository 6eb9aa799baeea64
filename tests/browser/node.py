"""Node and the npm package's tools, for tests of the browser client.

``scripts/test`` installs them. Where they are missing, tests are skipped with a message; in CI such
tests fail.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "protocol" / "browser"
MODULES = PACKAGE / "node_modules"
PATIENCE_S = 120
"""Longest run of a tool. It decides nothing while tests pass."""


def run_tool(name: str, *arguments: str, cwd: Path = PACKAGE) -> str:
    """Runs a tool of ``node_modules``; returns its output."""
    path = MODULES / ".bin" / name
    if not path.exists():
        _miss(f"{name} is not installed: run scripts/test, or `npm ci` in protocol/browser")
    return run_command(str(path), *arguments, cwd=cwd)


def needs_tools() -> None:
    """Skips a test that lacks ``node_modules``; fails it in CI."""
    run_tool("esbuild", "--version")


def run_npm(*arguments: str) -> str:
    """Runs npm in the package; returns its output."""
    if shutil.which("npm") is None:
        _miss("npm is missing (apt-get install npm)")
    return run_command("npm", *arguments, cwd=PACKAGE)


def run_module(source: str) -> str:
    """Runs an ES module in Node; returns its output.

    ``CORE`` in the module is the client's address. It fails unless Node ends by itself.
    """
    address = json.dumps((PACKAGE / "taximeter.js").as_uri())
    text = f"const CORE = {address};\n{source}"
    return run_command("node", "--input-type=module", "--eval", text, cwd=PACKAGE)


def run_script(source: str) -> str:
    """Runs a classic script in Node; returns its output."""
    with tempfile.NamedTemporaryFile("w", suffix=".cjs") as file:
        file.write(source)
        file.flush()
        return run_command("node", file.name, cwd=PACKAGE)


def run_command(command: str, *arguments: str, cwd: Path) -> str:
    """Runs a command that must succeed; returns its output."""
    if shutil.which("node") is None:
        _miss("node is missing (apt-get install nodejs npm)")
    done = subprocess.run(
        [command, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _miss(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
