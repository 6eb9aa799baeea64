"""Fixtures for React: a page with the bindings, in test time."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.browser.bundles import bundle
from tests.browser.fixtures import HARNESS, ClientPage
from tests.browser.mock_server import BrowserSocket, MockServer

APP = """
() => {
  window.meter = new Taximeter({ platform, token: () => 'token-1' });
  window.errors = [];
  console.error = (...args) => errors.push(args.map(String).join(' '));
  window.commits = 0;
  const count = () => { commits += 1; };
  window.profiled = (child) => h(React.Profiler, { id: 'app', onRender: count }, child);
  window.app = (...children) => h(React.StrictMode, null,
    h(TaximeterProvider, { meter }, ...children));
  window.Chat = ({ id = 'session-1', select, show = (value) => value, ...rest }) => {
    const value = useSession({ kind: 'chat', id, metadata: { a: 1 }, ...rest },
      select ?? ((view) => view.status));
    return h('p', null, show(value));
  };
  window.render = (element) => ReactDOM.flushSync(() => root.render(element));
  window.text = () => document.querySelector('main').textContent;
  // Effects of a removal run after it; then the deferred leaves are due.
  window.settle = async () => {
    await new Promise((done) => setTimeout(done));
    clock.advance(0);
  };
}
"""


@pytest_asyncio.fixture(params=[18, 19], loop_scope="session")
async def react(
    request: pytest.FixtureRequest, chromium: Browser, mock_server: MockServer
) -> AsyncIterator[ClientPage]:
    """A page with React, the bindings, and a meter in test time."""
    script = bundle("react.js", request.param)
    page = await chromium.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    await page.goto(f"{mock_server.url}/blank")
    await page.evaluate(HARNESS)
    await page.evaluate(script)
    client = ClientPage(page, mock_server)
    await client.run(APP)
    yield client
    errors = await client.run("() => errors")
    await page.close()
    assert faults == []
    assert errors == [], "React has warned"


async def begin(react: ClientPage, element: str = "app(h(Chat))") -> BrowserSocket:
    """Renders ``element``, which starts ``session-1``; returns its connection."""
    await react.run(f"() => render({element})")
    line = await react.server.line()
    await line.welcome()
    await line.join()
    await react.run(
        "() => new Promise((done) => { const look = () =>"
        " meter.find('session-1')?.getSnapshot().status === 'running' ? done()"
        " : setTimeout(look); look(); })"
    )
    return line


async def heard(react: ClientPage, line: BrowserSocket) -> None:
    """Waits until the page has taken all that was sent to it."""
    await react.run("() => { window.answer = settled(meter.find('session-1').resume()); }")
    request = await line.receive("resume")
    await line.send(type="error", id=request["id"], code="forbidden", message="no", retryable=False)
    await react.run("() => answer")
    await react.run("settle")
