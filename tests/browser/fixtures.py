"""Fixtures for the browser: Chromium, a mock server, client and page.

A test module imports the fixtures that it uses, and names them in its ``__all__``. Without Chromium
its tests are skipped, with a message.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    Route,
    async_playwright,
    expect,
)

from tests.browser.mock_server import (
    PATIENCE_S,
    SERVER_TIME_AT,
    BrowserSocket,
    Message,
    MockServer,
    running_server,
    snapshot,
)

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

NOW = datetime.fromtimestamp(SERVER_TIME_AT / 1000, UTC)
PAID: Message = {"free_remaining_ms": 0, "paid": True}

ABOUT_THE_CONNECTION = ("connection", "welcome", "resumed")

HARNESS = """
(() => {
  // Time, chance and timers are the test's: nothing happens that it did not ask for.
  const clock = {
    nowMs: 1000, chance: 0.5, timers: new Map(), lastTimer: 0,
    // Browsers run the timers of a hidden page once a minute.
    hide(isHidden = true) {
      const visibilityState = isHidden ? 'hidden' : 'visible';
      Object.defineProperty(document, 'visibilityState',
        { value: visibilityState, configurable: true });
      this.wakesMs = isHidden ? 60_000 : 0;
      document.dispatchEvent(new Event('visibilitychange'));
    },
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
      const { wakesMs } = clock;
      const dueMs = clock.nowMs + delayMs;
      const atMs = wakesMs ? Math.ceil(dueMs / wakesMs) * wakesMs : dueMs;
      clock.timers.set(id, { callback, atMs });
      return id;
    },
    clearTimeout: (id) => clock.timers.delete(id),
  };
  // Events wait in a queue until the test takes them, in the order in which they came.
  const events = []; const takers = [];
  const put = (event) => (takers.length ? takers.shift()(event) : events.push(event));
  const plain = (detail) => detail instanceof Error
    ? { code: detail.code, message: detail.message, retryable: detail.retryable,
        retryAfterMs: detail.retryAfterMs, limit: detail.limit,
        closeCode: detail.closeCode, name: detail.name,
        cause: detail.cause?.message ?? null }
    : detail?.error instanceof Error ? { ...detail, error: plain(detail.error) } : detail;
  const listen = (target, name, types) => types.forEach((type) => target.addEventListener(
    type, ({ detail }) => put({ target: name, type, detail: plain(detail) })));
  Object.assign(window, { clock, platform, events, plain,
    take: () => events.length ? events.shift() : new Promise((give) => takers.push(give)),
    listenToMeter: (meter) => listen(meter, 'meter',
      ['connection', 'welcome', 'credit', 'resumed', 'error']),
    listenToSession: (session, name) => listen(session, name,
      ['session', 'tick', 'free_time', 'limit_warning', 'limit_cleared', 'limit_reached',
       'minute', 'stopped', 'resumed', 'error']),
    settled: (promise) => promise.then(
      (value) => ({ value }), (error) => ({ error: plain(error) })),
  });
})();
"""


class ClientPage:
    """The client in its own page, with the test's time and chance.

    The test controls time and random numbers.
    """

    def __init__(self, page: Page, server: MockServer) -> None:
        self.page = page
        self.server = server

    async def run(self, script: str, argument: Any = None) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await self.page.evaluate(script, argument)

    async def construct(self, options: str = "token: 'token-1'", is_loaded: bool = True) -> None:
        """Makes ``window.meter``; ``options`` are JavaScript.

        ``is_loaded`` says whether the browser has the module that the client loads later.
        """
        await self.run(
            "async (isLoaded) => {"
            " const client = await import('/client/taximeter.js');"
            " if (isLoaded) await import('/client/live.js');"
            " Object.assign(window, client);"
            f" window.meter = new Taximeter({{ platform, fallback: null, {options} }});"
            " listenToMeter(meter);"
            "}",
            is_loaded,
        )

    async def start(self, options: str = "") -> None:
        """Makes ``window.session`` with ``start``."""
        await self.run(
            "() => { window.session = meter.start({ kind: 'chat', sessionId: 'session-1',"
            f" {options} }}); listenToSession(session, 'session'); }}"
        )

    async def live(self, options: str = "token: 'token-1'", **changes: Any) -> BrowserSocket:
        """Starts a session, and returns its connection.

        ``changes`` are those of the session's first snapshot.
        """
        await self.construct(options)
        await self.start()
        line = await self.server.line()
        await line.welcome()
        await line.join(**changes)
        await self.take("session")
        return line

    async def next_line(self) -> BrowserSocket:
        """Lets the longest backoff pass after a loss; returns the next connection."""
        await self.take_loss()
        return await self.next_line_now()

    async def next_line_now(self) -> BrowserSocket:
        """As ``next_line``, after the test has taken the loss already."""
        await self.advance(10_000)
        return await self.server.line()

    async def take(self, expected: str) -> Any:
        """The detail of the next event that is not about the connection."""
        while True:
            event = await self.run("() => take()")
            if event["type"] == expected:
                return event["detail"]
            assert event["type"] in ABOUT_THE_CONNECTION, event

    async def take_state(self, expected: str) -> Message:
        """Skips events up to the connection's state ``expected``; returns its detail."""
        while True:
            event = await self.run("() => take()")
            if event["type"] == "connection" and event["detail"]["state"] == expected:
                detail: Message = event["detail"]
                return detail
            is_told = event["type"] == "error" and event["detail"]["code"] == "unreachable"
            assert event["type"] in ABOUT_THE_CONNECTION or is_told, event

    async def take_loss(self) -> Message:
        """Skips events up to a connection's or attempt's loss; returns its detail.

        An attempt reports ``reconnecting`` also when it begins. A test that takes this report for
        the loss would let time pass before the browser has noticed the loss, and the client would
        give up the connection.
        """
        while True:
            detail = await self.take_state("reconnecting")
            if detail["retry_in_ms"] is not None:
                return detail

    async def take_backoff(self) -> float:
        """Skips events up to the next reconnect's wait; returns its milliseconds."""
        delay_ms: float = (await self.take_loss())["retry_in_ms"]
        return delay_ms

    async def advance(self, ms: float) -> None:
        await self.run("(ms) => clock.advance(ms)", ms)

    async def chance(self, value: float) -> None:
        """Sets the result of the next random numbers."""
        await self.run("(value) => { clock.chance = value; }", value)

    async def mark(self, line: BrowserSocket) -> None:
        """Sends a request: the client has sent nothing before it."""
        await self.run("() => { settled(meter.find('session-1').pause()); }")
        await line.receive("pause")

    async def reading(self) -> Message:
        reading: Message = await self.run("() => session.now()")
        return reading


class Tab:
    """One tab with the page.

    Its time stands still at ``NOW`` until the test runs it.
    """

    def __init__(self, page: Page, server: MockServer) -> None:
        self.page = page
        self.server = server
        self.has_demonstration = True
        self.requests: list[Message] = []
        self.receipt: Message | None = None
        self.recorded: list[Message] | None = None
        """The session's recorded minutes; None: they cannot be read."""
        self.estimate: Message | None = None
        """How long a session could run; None: the server does not say."""
        self.past: list[Message] = []
        """The pages of past sessions, from the newest on."""
        self.asked: list[str] = []
        self.session_id = ""
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self._hear(message.text))
        page.on("request", lambda request: self._see(request.url))

    def _hear(self, text: str) -> None:
        if "Content Security Policy" in text:
            self.faults.append(text)

    def _see(self, url: str) -> None:
        if not url.startswith((self.server.url, "data:", "ws://127.0.0.1")):
            self.faults.append(f"asked for {url}")

    async def open(self, path: str = "/") -> None:
        await self.page.clock.install(time=NOW - timedelta(minutes=1))
        await self.page.clock.pause_at(NOW)
        await self.page.route("**/demo/*", self._answer)
        await self.page.route("**/v1/sessions/*", self._answer_receipt)
        await self.page.route("**/v1/sessions/*/minutes", self._answer_minutes)
        await self.page.route("**/v1/sessions?*", self._answer_past)
        await self.page.route("**/v1/accounts/*/estimate?*", self._answer_estimate)
        await self.page.goto(self.server.url + path)

    async def _answer_past(self, route: Route) -> None:
        cursor = parse_qs(urlsplit(route.request.url).query).get("cursor", ["0"])[0]
        if not self.past:
            await route.fulfill(json={"items": [], "next_cursor": None})
        else:
            following = int(cursor) + 1
            await route.fulfill(
                json={
                    "items": [self.past[int(cursor)]],
                    "next_cursor": str(following) if following < len(self.past) else None,
                }
            )

    async def _answer_estimate(self, route: Route) -> None:
        self.asked.append(urlsplit(route.request.url).query)
        if self.estimate is None:
            await route.fulfill(status=503)
        else:
            await route.fulfill(json=self.estimate)

    async def _answer(self, route: Route) -> None:
        """Answers the endpoints that only a server in development has."""
        path = urlsplit(route.request.url).path
        body: Message = route.request.post_data_json or {}
        self.requests.append({"path": path, "headers": route.request.headers, **body})
        if not self.has_demonstration:
            await route.fulfill(status=404)
        elif path == "/demo/token":
            user = {"user_id": body.get("user_id", "user-1"), "account_id": "user-1"}
            await route.fulfill(json={"token": "token-1", "credits": "2.5", **user})
        else:
            await route.fulfill(json={"credits": "7.5"})

    async def _answer_receipt(self, route: Route) -> None:
        if self.receipt is None:
            await route.fulfill(status=404)
        else:
            await route.fulfill(json=self.receipt)

    async def _answer_minutes(self, route: Route) -> None:
        if self.recorded is None:
            await route.fulfill(status=503)
        else:
            await route.fulfill(json={"session_id": self.session_id, "minutes": self.recorded})

    async def line(self) -> BrowserSocket:
        line = await self.server.line()
        await line.welcome()
        return line

    async def choose(self, control: Locator, is_checked: bool = True) -> None:
        """Sets a control of the form, once the form is there.

        Its picture lies over the control, so Playwright must be forced, and waits for nothing.
        """
        await expect(self.at("#start")).to_be_visible()
        await control.set_checked(is_checked, force=True)

    async def ride(self, **changes: Any) -> BrowserSocket:
        """Starts a chat; returns the connection on which the session is ``session-1``."""
        await self.open()
        line = await self.line()
        await self.page.get_by_role("button", name="Start the meter").click()
        start = await line.receive("start")
        await line.answer(start, **snapshot(**{"session_id": start["session_id"], **changes}))
        # The dial and the top-ups exist before the ride too, so the next step could meet the old
        # ones.
        await expect(self.at("[data-panel=ride]")).to_be_visible()
        self.session_id = start["session_id"]
        return line

    async def send(self, line: BrowserSocket, message: Message) -> None:
        await line.send(**{**message, "session_id": self.session_id})

    async def reach_limit(self, line: BrowserSocket, limit: str = "credits") -> None:
        reached = {"limit": limit, "stopped_at": SERVER_TIME_AT, "grace_ms": 15_000}
        reached["elapsed_ms"] = 210_000
        state = snapshot(state="stopping", seq=3, elapsed_ms=210_000, credits="0", **PAID)
        await self.send(line, {"type": "limit_reached", "seq": 3, **reached})
        await self.send(line, {**state, "limit": limit, "remaining_ms": 0})

    def at(self, selector: str) -> Any:
        return self.page.locator(selector)

    @property
    def credits(self) -> Any:
        return self.at("taximeter-credits:visible").locator("[part=amount]")

    @property
    def toast(self) -> Any:
        return self.at("[part=toast-text]").last


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """A browser of the module.

    One for the session would stay open until the last test.
    """
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
    """A blank page of the mock server, which can import the client."""
    page = await chromium.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    await page.goto(f"{mock_server.url}/blank")
    await page.evaluate(HARNESS)
    yield ClientPage(page, mock_server)
    await page.close()
    assert faults == [], "the client threw an error that no caller could catch"


@pytest_asyncio.fixture(loop_scope="session")
async def context(chromium: Browser) -> AsyncIterator[BrowserContext]:
    context = await chromium.new_context(timezone_id="Europe/London", locale="en-GB")
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def tab(context: BrowserContext, mock_server: MockServer) -> AsyncIterator[Tab]:
    tab = Tab(await context.new_page(), mock_server)
    yield tab
    assert tab.faults == [], "the page broke its policy, threw, or asked for things elsewhere"
