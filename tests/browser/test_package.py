"""Tests the npm package ``taximeter``: its types, and what it holds."""

import json
import re
from pathlib import Path

import pytest

from tests.browser.node import PACKAGE, run_tool

APP = """
import { Taximeter, Unauthorized, type MeterView, type SessionView } from 'taximeter';

const meter = new Taximeter({ token: async () => { throw new Unauthorized(); } });
const session = meter.retain({ kind: 'chat', sessionId: 'chat-17' });
const words = (view: SessionView): string => {
  switch (view.status) {
    case 'off': return '';
    case 'starting': return view.session_id;
    case 'running': case 'paused': case 'suspended': return `${view.credits.toFixed(2)}`;
    case 'stopping': return `${view.grace_ms}`;
    case 'ended': return view.receipt?.credits ?? '';
    case 'failed': return view.error.code;
  }
};
const end: () => void = session.subscribe(() => words(session.getSnapshot()));
const view: MeterView = meter.getSnapshot();
// @ts-expect-error a figure of a running session only
session.getSnapshot().credits;
export { end, view };
"""

REACT = """
import { createElement } from 'react';
import { Clock, TaximeterProvider, useCredits, useNotices, useSession } from 'taximeter/react';

function Chat() {
  const { status, stop } = useSession({ kind: 'chat', id: 'chat-17' });
  const isPaid: boolean = useSession({ kind: 'chat', id: 'chat-17' }, (session) =>
    session.status === 'running' && session.paid);
  const credits: number | null = useCredits(Math.floor);
  useNotices('chat-17', ({ type, seq }) => console.log(type, seq));
  return createElement('p', { onClick: () => stop() }, status, isPaid, credits,
    createElement(Clock, { session: 'chat-17', className: 'clock' }));
}
export const app = createElement(TaximeterProvider, { token: async () => 'token' },
  createElement(Chat));
"""


@pytest.mark.parametrize("resolution", ["bundler", "node16", "nodenext"])
def test_an_app_compiles_against_the_types(tmp_path: Path, resolution: str) -> None:
    (tmp_path / "app.ts").write_text(APP)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "react.ts").write_text(REACT)
    modules = tmp_path / "node_modules"
    modules.mkdir()
    (modules / "taximeter").symlink_to(PACKAGE)
    for name in ("react", "@types"):
        (modules / name).symlink_to(PACKAGE / "node_modules" / name)
    module = {"bundler": "esnext"}.get(resolution, resolution)
    options = {"strict": True, "noEmit": True, "target": "es2022", "lib": ["es2023", "dom"]}
    config = {**options, "module": module, "moduleResolution": resolution, "types": []}
    (tmp_path / "tsconfig.json").write_text(
        json.dumps({"compilerOptions": config, "files": ["app.ts", "react.ts"]})
    )
    assert run_tool("tsc", "-p", "tsconfig.json", cwd=tmp_path) == ""


def test_the_lock_file_names_no_host() -> None:
    """It installs from the registry that is configured, whichever this is."""
    lock = json.loads((PACKAGE / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())


def test_nothing_is_depended_on() -> None:
    package = json.loads((PACKAGE / "package.json").read_text())
    assert not package.get("dependencies")
    version = re.search(r'^version = "(.*)"$', _pyproject(), re.MULTILINE)
    assert version is not None
    assert package["version"] == version[1]


def _pyproject() -> str:
    return (PACKAGE.parents[1] / "pyproject.toml").read_text()
