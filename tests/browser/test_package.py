"""Tests the npm package ``taximeter``: its types, and what it holds."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.node import PACKAGE, run_npm, run_tool
from tests.test_docs import ROOT

APP = """
import { Taximeter, Unauthorized, type MeterView, type SessionView } from 'taximeter';
import { tabs } from 'taximeter/tabs';

const meter = new Taximeter({ token: async () => { throw new Unauthorized(); }, tabs });
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
import { useEstimate, useSessions } from 'taximeter/react/records';

function Before() {
  const { estimate, refresh } = useEstimate({ kind: 'chat' });
  const { sessions, more } = useSessions({ limit: 10 });
  const cost: string | undefined = sessions?.[0]?.receipt?.credits;
  return createElement('p', { onClick: refresh, onBlur: more }, estimate?.remaining_ms, cost);
}

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
  createElement(Before), createElement(Chat));
"""

ELEMENTS = """
import { Taximeter } from 'taximeter';
import { refresh, use, words } from 'taximeter/elements';

use(new Taximeter({ token: 'token' }));
words.credits = { one: 'coin', other: 'coins' };
words.limits.credits = { soon: 'Soon', why: 'why', name: 'Coins' };
refresh();
const notices = document.querySelector('taximeter-notices');
notices?.toast('Saved.', 'ok');
export const status: string | undefined = notices?.shown?.getSnapshot().status;
"""


@pytest.mark.parametrize("resolution", ["bundler", "node16", "nodenext"])
def test_an_app_compiles_against_the_types(tmp_path: Path, resolution: str) -> None:
    files = {"app.ts": APP, "react.ts": REACT, "elements.ts": ELEMENTS}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    modules = tmp_path / "node_modules"
    modules.mkdir()
    (modules / "taximeter").symlink_to(PACKAGE)
    for name in ("react", "@types"):
        (modules / name).symlink_to(PACKAGE / "node_modules" / name)
    module = {"bundler": "esnext"}.get(resolution, resolution)
    options = {"strict": True, "noEmit": True, "target": "es2022", "lib": ["es2023", "dom"]}
    config = {**options, "module": module, "moduleResolution": resolution, "types": []}
    (tmp_path / "tsconfig.json").write_text(
        json.dumps({"compilerOptions": config, "files": list(files)})
    )
    assert run_tool("tsc", "-p", "tsconfig.json", cwd=tmp_path) == ""


BUDGETS = {
    "taximeter.js": 5 * 1024,
    "live.js": 3 * 1024 + 512,
    "react.js": 2 * 1024,
    "react-legacy.js": 2 * 1024,
    "elements.js": 5 * 1024,
    "study.js": 1024 + 384,
    "records.js": 1024,
    "react-records.js": 1024,
    "fallback.js": 2 * 1024,
    "tabs.js": 5 * 1024,
}
"""The most bytes of an entry, or of a part that the core loads later, minified and gzipped.

Without the entries that it builds on: the core counts without ``live.js`` and ``fallback.js``,
which it loads later.
"""
SHARED = ("errors.js", "line.js")
"""Modules of the core that ``live.js`` finds loaded."""


def names_of(output: dict[str, Any]) -> set[str]:
    return {Path(path).name for path in output["inputs"]}


def exports() -> dict[str, set[str]]:
    """What each entry of the package exports."""
    entries = json.loads((PACKAGE / "package.json").read_text())["exports"]
    found = {}
    for path, entry in entries.items():
        if isinstance(entry, dict):
            text = (PACKAGE / entry["types"]).read_text()
            named = re.findall(
                r"export (?:declare )?(?:async )?(?:function|const|class) (\w+)", text
            )
            listed = re.findall(r"export \{([^}]*)\}", text)
            named += [
                name.split()[-1] for part in listed for name in part.split(",") if name.strip()
            ]
            found["taximeter" + path.removeprefix(".")] = set(named)
    return found


def test_examples_of_the_guide_import_what_they_use() -> None:
    """And what they import exists."""
    guide = (ROOT / "docs" / "in-your-app.md").read_text()
    known, used = exports(), 0
    names = {name for entry, found in known.items() for name in found if "legacy" not in entry}
    for block in re.findall(r"```(?:jsx?|tsx?|html|vue|svelte)\n(.*?)```", guide, re.DOTALL):
        imported: set[str] = set()
        for listed, path in re.findall(r"import \{([^}]*)\} from '([^']+)'", block):
            module = path.replace("/client/", "taximeter/").removesuffix(".js")
            entry = module.replace("taximeter/taximeter", "taximeter")
            wanted = {name.strip() for name in listed.split(",")}
            if entry.startswith("taximeter"):
                assert wanted <= known[entry], (wanted, entry)
            imported |= wanted
            used += 1
        defined = set(re.findall(r"(?:function|const|class) (\w+)", block))
        called = set(re.findall(r"\b(\w+)(?=\()", block)) | set(re.findall(r"<(\w+)", block))
        assert (called & names) <= imported | defined, block
    assert used > 5


@pytest.mark.parametrize("name", BUDGETS)
def test_an_entry_is_small(name: str) -> None:
    others = [other for other in BUDGETS if other != name]
    others += SHARED if name == "live.js" else ()
    apart = [f"--external:./{other}" for other in others]
    small = ["--bundle", "--minify", "--format=esm", "--external:react", *apart]
    script = run_tool("esbuild", name, *small).encode()
    assert len(gzip.compress(script, 9)) <= BUDGETS[name]


def test_a_bundler_that_splits_keeps_apart_what_is_loaded_later(tmp_path: Path) -> None:
    """The scripts that the entry imports at once contain nothing of it."""
    metafile = tmp_path / "meta.json"
    split = ["--bundle", "--splitting", "--format=esm", f"--outdir={tmp_path}"]
    run_tool("esbuild", "taximeter.js", *split, f"--metafile={metafile}")
    outputs = json.loads(metafile.read_text())["outputs"]
    (entry,) = [path for path in outputs if Path(path).name == "taximeter.js"]
    later = {
        name
        for found in outputs[entry]["imports"]
        if found["kind"] == "dynamic-import"
        for name in names_of(outputs[found["path"]])
    }
    assert later == {"live.js", "figures.js", "upkeep.js", "http.js", "fallback.js"}
    at_once = {entry}
    for path in [entry, *outputs]:
        if path in at_once:
            found = outputs[path]["imports"]
            at_once |= {each["path"] for each in found if each["kind"] == "import-statement"}
    assert not later & {name for path in at_once for name in names_of(outputs[path])}


def test_a_bundler_that_does_not_split_makes_one_script() -> None:
    script = run_tool("esbuild", "taximeter.js", "--bundle", "--format=esm")
    assert not re.findall(r"""import\(\s*['"`]|^import\b""", script, re.MULTILINE)
    assert "Figures = class" in script
    assert "StreamSocket = class" in script


def test_the_package_holds_its_modules_types_and_texts() -> None:
    (packed,) = json.loads(run_npm("pack", "--dry-run", "--json", "--ignore-scripts"))
    expected = {path.name for path in PACKAGE.iterdir() if path.suffix in (".js", ".ts")}
    expected |= {"package.json", "README.md", "LICENSE", "custom-elements.json"}
    assert {file["path"] for file in packed["files"]} == expected


def test_every_entry_has_its_types_first() -> None:
    for path, entry in json.loads((PACKAGE / "package.json").read_text())["exports"].items():
        if path == "./package.json":
            continue
        assert list(entry) == ["types", "default"], path
        assert all((PACKAGE / file).is_file() for file in entry.values()), path


def test_publint_finds_nothing() -> None:
    assert "All good" in run_tool("publint", "--strict")


def test_the_types_are_right_for_modules() -> None:
    """``esm-only``: CommonJS loads the package with a dynamic import."""
    run_tool("attw", "--pack", ".", "--profile", "esm-only")


def test_the_license_is_that_of_the_repository() -> None:
    assert (PACKAGE / "LICENSE").read_text() == (PACKAGE.parents[1] / "LICENSE").read_text()


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
