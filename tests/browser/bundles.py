"""Scripts that esbuild makes of a page's modules, with what they import."""

import functools

from tests.browser.node import MODULES, PACKAGE, run_tool

PAGES = PACKAGE.parents[1] / "tests" / "browser" / "pages"
DEFINE = '--define:process.env.NODE_ENV="development"'


@functools.cache
def bundle(name: str, react: int) -> str:
    """Returns a page's module as one script, with that version of React.

    A name that ends in ``_server.js`` is a script for Node.
    """
    suffix = "" if react == 19 else f"-{react}"
    # The page lies outside of the package, where it would not find the package's modules.
    found = [f"--alias:{part}={MODULES}/{part}{suffix}" for part in ("react", "react-dom")]
    found.append(f"--alias:react-refresh={MODULES}/react-refresh")
    kind = "--platform=node" if name.endswith("_server.js") else "--format=iife"
    return run_tool("esbuild", str(PAGES / name), "--bundle", kind, DEFINE, *found)
