"""Elements in a page of the mock server, with the test's time.

Its policy for scripts and styles is the strictest. A test module imports the fixture ``elements``,
with ``chromium`` and ``mock_server``.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.browser.fixtures import HARNESS, PAID, ClientPage
from tests.browser.mock_server import (
    SERVER_TIME_AT,
    BrowserSocket,
    Message,
    MockServer,
    snapshot,
)

NONE = "\N{EN DASH}"
CLOCK = '<taximeter-clock session="session-1" kind="chat"></taximeter-clock>'
NOTICES = '<taximeter-notices session="session-1"></taximeter-notices>'
EVERYTHING = f"""
    <h1>A session</h1>
    {CLOCK}
    <taximeter-clock session="session-1" figure="remaining" tenths></taximeter-clock>
    <taximeter-credits session="session-1" digits="4"></taximeter-credits>
    <taximeter-usage></taximeter-usage>
    <taximeter-notices session="session-1" upgrade-href="/plans">
      <button slot="actions">End now</button>
    </taximeter-notices>
"""

SETUP = """
async () => {
  Object.assign(window, await import('/client/taximeter.js'));
  Object.assign(window, { elements: await import('/client/elements.js') });
  document.documentElement.lang = 'en-GB';
  document.body.innerHTML = '<main></main>';
  window.main = document.querySelector('main');
  window.meter = new Taximeter({ platform, token: 'token-1' });
  elements.use(meter);
  // What is outstanding: frames, timers and subscriptions.
  window.outstanding = { frames: new Set(), timers: new Set(), subscriptions: 0 };
  const count = (arm, disarm, set) => {
    const [old, cancel] = [window[arm], window[disarm]];
    window[arm] = (callback, ...rest) => {
      const id = old((...values) => { set.delete(id); callback(...values); }, ...rest);
      set.add(id);
      return id;
    };
    window[disarm] = (id) => { set.delete(id); cancel(id); };
  };
  count('requestAnimationFrame', 'cancelAnimationFrame', outstanding.frames);
  count('setTimeout', 'clearTimeout', outstanding.timers);
  const { subscribe } = meter;
  meter.subscribe = (listener) => {
    const end = subscribe(listener);
    outstanding.subscriptions += 1;
    return () => { outstanding.subscriptions -= 1; end(); };
  };
}
"""


class ElementsPage(ClientPage):
    """A page of elements, which share one meter."""

    async def put(self, html: str) -> None:
        await self.run("(html) => { main.innerHTML = html; }", html)

    async def begin(self, html: str = CLOCK, **changes: Any) -> BrowserSocket:
        """Shows elements that start ``session-1``; returns its connection."""
        await self.put(html)
        line = await self.server.line()
        await line.welcome()
        await line.join(**changes)
        await self.page.wait_for_function(
            "() => meter.find('session-1')?.getSnapshot().status !== 'starting'"
        )
        return line

    async def come_back(self, line: BrowserSocket, **changes: Any) -> BrowserSocket:
        """Cuts the line, and takes the session on the next one."""
        line.cut()
        await self.page.wait_for_function("() => meter.state === 'reconnecting'")
        await self.advance(10_000)
        again = await self.server.line()
        await again.welcome()
        await again.join(**changes)
        return again

    def at(self, selector: str) -> Any:
        return self.page.locator(selector)

    def part(self, name: str) -> Any:
        return self.page.locator(f"[part~={name}]")


async def open_page(page: Page, server: MockServer) -> ElementsPage:
    await page.clock.install()
    await page.goto(f"{server.url}/blank")
    await page.evaluate(HARNESS)
    elements = ElementsPage(page, server)
    await elements.run(SETUP)
    return elements


@pytest_asyncio.fixture(loop_scope="session")
async def elements(chromium: Browser, mock_server: MockServer) -> AsyncIterator[ElementsPage]:
    page = await chromium.new_page(timezone_id="Europe/London")
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: faults.append(message.text) if "Content Security" in message.text else None,
    )
    yield await open_page(page, mock_server)
    await page.close()
    assert faults == [], "an element threw, or broke the page's policy"


def limit_reached(seq: int, limit: str = "credits") -> Message:
    return {
        "type": "limit_reached",
        "session_id": "session-1",
        "seq": seq,
        "limit": limit,
        "stopped_at": SERVER_TIME_AT,
        "elapsed_ms": 210_000,
        "grace_ms": 15_000,
    }


def usage(**changes: Any) -> Message:
    """The month of a member with two of ten hours."""
    return {
        "type": "usage",
        "month": "2026-11",
        "member_used_ms": 7_200_000,
        "member_limit_ms": 36_000_000,
        "org_used_ms": None,
        "org_limit_ms": None,
        **changes,
    }


async def stop_at(line: BrowserSocket, limit: str = "credits", seq: int = 3) -> None:
    await line.send(**limit_reached(seq, limit))
    state = {"state": "stopping", "seq": seq, "elapsed_ms": 210_000, "credits": "0", **PAID}
    await line.send(**snapshot(limit=limit, remaining_ms=0, **state))
