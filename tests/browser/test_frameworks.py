"""Runs the documentation's bindings for Vue, Svelte and Solid."""

import json
from pathlib import Path

import pytest

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import tick
from tests.browser.node import MODULES, needs_tools, run_command, run_tool
from tests.test_docs import ROOT, section

__all__ = ["chromium", "client", "mock_server"]

GUIDE = ROOT / "docs" / "in-your-app.md"
LINES_MOST = 16
OPTIONS = "{ kind: 'chat', sessionId: 'session-1' }"

VUE = """
import { createApp, h } from 'vue';
import { useSession } from './binding.js';

window.mount = (meter, place) => {
  const app = createApp({
    setup() {
      const view = useSession(meter, OPTIONS);
      return () => h('p', `${view.value.status} ${view.value.elapsed_ms ?? ''}`);
    },
  });
  app.mount(place);
  return () => app.unmount();
};
"""
SVELTE = """
import { mount, unmount } from 'svelte';
import Chat from './Chat.js';

window.mount = (meter, target) => {
  const chat = mount(Chat, { target, props: { meter } });
  return () => unmount(chat);
};
"""
CHAT = """
<script>
  import { useSession } from './binding.js';
  const { meter } = $props();
  const session = useSession(meter, OPTIONS);
</script>
<p>{session.view.status} {session.view.elapsed_ms ?? ''}</p>
"""
SOLID = """
import { createComponent, render } from 'solid-js/web';
import { createEffect } from 'solid-js';
import { createSession } from './binding.js';

function Chat({ meter }) {
  const view = createSession(meter, OPTIONS);
  const element = document.createElement('p');
  createEffect(() => { element.textContent = `${view().status} ${view().elapsed_ms ?? ''}`; });
  return element;
}
window.mount = (meter, place) => render(() => createComponent(Chat, { meter }), place);
"""
COMPILE = """
import { readFileSync, writeFileSync } from 'node:fs';
import { compile } from 'svelte/compiler';
const { js } = compile(readFileSync('Chat.svelte', 'utf8'), { generate: 'client' });
writeFileSync('Chat.js', js.code);
"""


def binding(heading: str) -> str:
    """The code under a heading of the guide."""
    code = section(GUIDE, heading).split("```js\n")[1].split("```")[0]
    assert len(code.splitlines()) <= LINES_MOST
    return code


@pytest.mark.parametrize(
    ("heading", "app"), [("Vue 3", VUE), ("Svelte 5", SVELTE), ("Solid", SOLID)]
)
async def test_a_binding_of_the_guide_holds_and_shows_a_session(
    client: ClientPage, tmp_path: Path, heading: str, app: str
) -> None:
    needs_tools()
    (tmp_path / "node_modules").symlink_to(MODULES)
    (tmp_path / "binding.js").write_text(binding(heading))
    (tmp_path / "app.js").write_text(app.replace("OPTIONS", OPTIONS))
    (tmp_path / "package.json").write_text(json.dumps({"type": "module"}))
    if app is SVELTE:
        (tmp_path / "Chat.svelte").write_text(CHAT.replace("OPTIONS", OPTIONS))
        (tmp_path / "compile.js").write_text(COMPILE)
        run_command("node", "compile.js", cwd=tmp_path)
    flags = ("--bundle", "--format=iife", "--conditions=browser,production")
    script = run_tool("esbuild", "app.js", *flags, "--log-level=error", cwd=tmp_path)

    await client.construct()
    await client.page.evaluate(script)
    await client.run("() => { window.unmount = mount(meter, document.body); }")
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await line.send(**tick(65_000))
    shown = "() => document.querySelector('p').textContent.startsWith('running 65000')"
    await client.page.wait_for_function(shown)
    await client.run("() => unmount()")
    await client.page.wait_for_function(
        "() => { clock.advance(0); return meter.find('session-1') === undefined; }"
    )
    await line.receive("leave")
