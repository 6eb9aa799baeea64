"""Tests the elements against the real server, down to the receipt."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import BrowserContext, expect

from tests.browser.fixtures import chromium, context
from tests.browser.test_real_client import CONSTRUCT, RealPage
from tests.fixtures.server import TestServer

__all__ = ["chromium", "context"]

CLOCK = '<taximeter-clock session="chat-17" kind="chat"></taximeter-clock>'
SHOW = """async (html) => {
  const { use } = await import('/client/elements.js');
  use(meter);
  const { send } = WebSocket.prototype;
  window.sent = [];
  WebSocket.prototype.send = function (text) {
    sent.push(JSON.parse(text).type);
    send.call(this, text);
  };
  document.body.innerHTML = `<section></section><main>${html}</main>`;
}"""


@pytest.fixture
async def page(server: TestServer, context: BrowserContext) -> AsyncIterator[RealPage]:
    """The server's page without its script: a script's document upgrades no elements."""
    page = RealPage(await context.new_page())
    await server.grant(10_000_000)
    await page.page.route("**/pages/demo.js", lambda route: route.abort())
    await page.page.goto(f"{server.url}/")
    await page.page.evaluate(CONSTRUCT, server.token())
    yield page
    await page.page.close()


async def test_ten_elements_that_move_cost_one_segment(page: RealPage) -> None:
    await page.page.evaluate(SHOW, CLOCK * 10)
    await expect(page.page.locator("taximeter-clock").first).to_have_attribute(
        "data-status", "running"
    )
    receipt = await page.run(
        """async () => {
          const [section, main] = document.querySelectorAll('section, main');
          const session = meter.find('chat-17');
          for (let i = 0; i < 20; i += 1) {
            const [from, to] = i % 2 ? [section, main] : [main, section];
            to.append(...from.children);
            await macrotask();
          }
          while (section.children.length + main.children.length > 1) {
            (main.firstChild ?? section.firstChild).remove();
          }
          await macrotask();
          await ticks(session, 2);
          return (await session.stop()).receipt;
        }"""
    )
    assert await page.run("() => sent") == ["auth", "start", "stop"]
    assert (len(receipt["segments"]), receipt["gaps"]) == (1, [])
    await expect(page.page.locator("taximeter-clock")).to_have_attribute("data-status", "ended")


async def test_the_last_element_that_goes_leaves(page: RealPage) -> None:
    await page.page.evaluate(SHOW, CLOCK * 2)
    clocks = page.page.locator("taximeter-clock")
    await expect(clocks.first).to_have_attribute("data-status", "running")
    await page.run("() => { document.querySelector('main').firstChild.remove(); }")
    await page.run("() => macrotask()")
    assert await page.run("() => sent") == ["auth", "start"]
    await page.run("() => { document.querySelector('main').replaceChildren(); }")
    await page.run("() => macrotask()")
    assert await page.run("() => meter.find('chat-17') === undefined")
    assert await page.run("() => sent") == ["auth", "start", "leave"]


async def test_the_month_is_shown_as_the_server_pushes_it(page: RealPage) -> None:
    await page.page.evaluate(SHOW, f"<taximeter-usage></taximeter-usage>{CLOCK}")
    await expect(page.page.locator("[part=value]").first).to_have_text("0 mins used")
    await expect(page.page.get_by_role("meter")).to_have_count(0)
