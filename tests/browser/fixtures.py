"""Fixtures of the browser tests: Chromium, a mock server, and the client in a page.

A test module imports those that it takes, and names them in its ``__all__``. Where there
is no Chromium its tests are skipped, and say so.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from tests.browser.mock_server import PATIENCE_S, Line, Message, MockServer, running_server

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

HARNESS = """
(() => {
  // Time, chance and timers are the test's: nothing happens that it did not ask for.
  const clock = {
    nowMs: 1000, chance: 0.5, timers: new Map(), lastTimer: 0, inFlight: 0,
    advance(ms) {
      const untilMs = this.nowMs + ms;
      for (;;) {
        const due = [...this.timers].filter(([, timer]) => timer.atMs <= untilMs);
        if (!due.length) break;
        const [id, timer] = due.sort((a, b) => a[1].atMs - b[1].atMs)[0];
        this.timers.delete(id);
        this.nowMs = Math.max(this.nowMs, timer.atMs);
        timer.callback();
      }
      this.nowMs = untilMs;
    },
    // A page that slept: the time has passed, and only then do the timers run.
    sleep(ms) { this.nowMs += ms; this.advance(0); },
  };
  const platform = {
    now: () => clock.nowMs,
    random: () => clock.chance,
    setTimeout: (callback, delayMs) => {
      const id = ++clock.lastTimer;
      clock.timers.set(id, { callback, atMs: clock.nowMs + delayMs });
      return id;
    },
    clearTimeout: (id) => clock.timers.delete(id),
  };
  // Events wait in a queue until the test takes them, in the order in which they came.
  const events = []; const takers = [];
  const put = (event) => (takers.length ? takers.shift()(event) : events.push(event));
  const plain = (detail) => detail instanceof Error
    ? { code: detail.code, message: detail.message, retryable: detail.retryable,
        limit: detail.limit, closeCode: detail.closeCode, name: detail.name }
    : detail;
  const listen = (target, name, types) => types.forEach((type) => target.addEventListener(
    type, ({ detail }) => put({ target: name, type, detail: plain(detail) })));
  Object.assign(window, { clock, platform, events, plain,
    take: () => events.length ? events.shift() : new Promise((give) => takers.push(give)),
    listenToMeter: (meter) => listen(meter, 'meter',
      ['connection', 'welcome', 'credit', 'error']),
    listenToSession: (session, name) => listen(session, name,
      ['session', 'tick', 'free_time', 'limit_warning', 'limit_cleared', 'limit_reached',
       'minute', 'stopped', 'error']),
    settled: (promise) => promise.then(
      (value) => ({ value }), (error) => ({ error: plain(error) })),
  });
})();
"""


class ClientPage:
    """The client in a page of its own, with the test in charge of its time and chance."""

    def __init__(self, page: Page, server: MockServer) -> None:
        self.page = page
        self.server = server

    async def run(self, script: str, argument: Any = None) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await self.page.evaluate(script, argument)

    async def construct(self, options: str = "token: 'token-1'") -> None:
        """Make ``window.meter``; ``options`` are JavaScript."""
        await self.run(
            "async () => {"
            " const client = await import('/client/taximeter.js');"
            " Object.assign(window, client);"
            f" window.meter = new Taximeter({{ platform, {options} }});"
            " listenToMeter(meter);"
            "}"
        )

    async def start(self, options: str = "") -> None:
        """Make ``window.session`` by ``start``."""
        await self.run(
            "() => { window.session = meter.start({ kind: 'chat', sessionId: 'session-1',"
            f" {options} }}); listenToSession(session, 'session'); }}"
        )

    async def live(self, options: str = "token: 'token-1'", **changes: Any) -> Line:
        """A session that has begun; ``changes`` are those of its first snapshot."""
        await self.construct(options)
        await self.start()
        line = await self.server.line()
        await line.welcome()
        await line.join(**changes)
        await self.take("session")
        return line

    async def next_line(self) -> Line:
        """Let the longest backoff pass; the connection that comes of it."""
        await self.take_state("reconnecting")
        await self.advance(10_000)
        return await self.server.line()

    async def take(self, expected: str) -> Any:
        """The detail of the next event that is not about the connection."""
        while True:
            event = await self.run("() => take()")
            if event["type"] == expected:
                return event["detail"]
            assert event["type"] in ("connection", "welcome"), event

    async def take_state(self, expected: str) -> Message:
        """Events up to the connection's state ``expected``; the detail of that one."""
        while True:
            event = await self.run("() => take()")
            if event["type"] == "connection" and event["detail"]["state"] == expected:
                detail: Message = event["detail"]
                return detail
            assert event["type"] in ("connection", "welcome"), event

    async def take_backoff(self) -> float:
        """Events up to the next wait before coming back; how long it is, in milliseconds."""
        while True:
            delay_ms: float | None = (await self.take_state("reconnecting"))["retry_in_ms"]
            if delay_ms is not None:
                return delay_ms

    async def advance(self, ms: float) -> None:
        await self.run("(ms) => clock.advance(ms)", ms)

    async def chance(self, value: float) -> None:
        """What the next draws of chance give."""
        await self.run("(value) => { clock.chance = value; }", value)

    async def reading(self) -> Message:
        reading: Message = await self.run("() => session.now()")
        return reading


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"there is no Chromium at {CHROMIUM} (set CHROMIUM to its path)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=ARGUMENTS
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def mock_server() -> AsyncIterator[MockServer]:
    async with running_server() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def client(chromium: Browser, mock_server: MockServer) -> AsyncIterator[ClientPage]:
    """A blank page of the mock server, in which the client can be imported."""
    page = await chromium.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    await page.goto(f"{mock_server.url}/blank")
    await page.evaluate(HARNESS)
    yield ClientPage(page, mock_server)
    await page.close()
    assert faults == [], "the client threw where nobody could catch it"
