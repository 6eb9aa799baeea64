"""Tests React against the real server: what mounts twice is billed once."""

import pytest
from playwright.async_api import BrowserContext

from tests.browser.bundles import bundle
from tests.browser.fixtures import chromium, context
from tests.browser.test_real_client import RealPage
from tests.fixtures.server import TestServer

__all__ = ["chromium", "context"]

APP = """
() => {
  window.macrotask = () => new Promise((done) => setTimeout(done));
  window.ticks = (many) => new Promise((done) => meter.find('chat-17').addEventListener(
    'tick', () => { many -= 1; if (!many) done(); }));
  window.running = () => new Promise((done) => {
    const look = () => meter.find('chat-17')?.state === 'active' ? done() : setTimeout(look, 10);
    look();
  });
  window.CHAT = { kind: 'chat', id: 'chat-17', tickMs: 250 };
  window.Chat = () => h('p', null, useSession(CHAT, (it) => it.status));
  window.strict = (...children) => h(React.StrictMode, null,
    h(TaximeterProvider, { meter }, ...children));
  window.render = (element) => ReactDOM.flushSync(() => root.render(element));
  window.end = async () => (await meter.find('chat-17').stop()).receipt;
}
"""

STRICT = """async () => {
  render(strict(h(Chat)));
  await running(); await macrotask(); await ticks(1);
  return end();
}"""
TEN = """async () => {
  const many = (count) => strict(...Array.from({ length: count }, (_, key) => h(Chat, { key })));
  render(many(10));
  await running(); await ticks(1);
  for (const count of [7, 3, 1]) { render(many(count)); await macrotask(); }
  await ticks(1);
  return end();
}"""
ROUTE = """async () => {
  const route = (name) => strict(h(name, { key: name }, h(Chat)));
  render(route('main'));
  await running(); await ticks(1);
  for (const name of ['section', 'article', 'main']) { render(route(name)); await macrotask(); }
  await ticks(1);
  return end();
}"""
SUSPENSE = """async () => {
  const gates = {};
  const Gate = ({ name }) => {
    gates[name] ??= Promise.withResolvers();
    if (!gates[name].isOpen) throw gates[name].promise;
    return null;
  };
  const gated = (name) => strict(
    h(React.Suspense, { fallback: 'wait' }, h(Chat), h(Gate, { name })));
  const open = async (name) => { gates[name].isOpen = true; gates[name].resolve(); };
  render(gated('a')); await open('a');
  await running(); await ticks(1);
  render(gated('b')); await macrotask(); await ticks(1); await open('b');
  await macrotask(); await ticks(1);
  return end();
}"""
RELOAD = """async (isReset) => {
  const version = (text) => {
    const Page = () => {
      const status = useSession(CHAT, (it) => it.status);
      return h('p', null, text, status);
    };
    register(Page, 'Page');
    setSignature(Page, 'key', isReset);
    return Page;
  };
  render(strict(h(version('old '))));
  await running(); await ticks(1);
  version('new ');
  performReactRefresh();
  await macrotask(); await ticks(1);
  if (!document.body.textContent.includes('new running')) throw new Error('not reloaded');
  return end();
}"""
CASES = {
    "strict mode": (STRICT, None),
    "ten components": (TEN, None),
    "routes that keep the id": (ROUTE, None),
    "suspense that suspends again": (SUSPENSE, None),
    "a hot reload": (RELOAD, False),
    "a hot reload that mounts anew": (RELOAD, True),
}


@pytest.mark.parametrize("react", [18, 19])
@pytest.mark.parametrize("case", CASES)
async def test_one_start_no_leave_and_one_segment(
    server: TestServer, context: BrowserContext, case: str, react: int
) -> None:
    page = RealPage(await context.new_page())
    await page.open(server)
    await page.run(bundle("react.js", react))
    await page.run(APP)
    script, argument = CASES[case]
    receipt = await page.page.evaluate(script, argument)
    assert (page.count("start"), page.count("leave")) == (1, 0)
    assert (len(receipt["segments"]), receipt["gaps"]) == (1, [])
    assert receipt["elapsed_ms"] >= 250
