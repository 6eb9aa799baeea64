"""Tests many tabs on one connection, against the real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import BrowserContext, Page, WebSocket

from tests.browser.fixtures import chromium, context
from tests.browser.mock_server import PATIENCE_S
from tests.browser.test_real_client import Message, RealPage, receipt_of
from tests.fixtures.blocking_proxy import blocking_proxy
from tests.fixtures.server import TestServer

__all__ = ["chromium", "context"]

CONSTRUCT = """async (token) => {
  const { Taximeter } = await import('/client/taximeter.js');
  const { tabs } = await import('/client/tabs.js');
  window.meter = new Taximeter({ token, tabs });
  window.start = (id = 'chat-17') => {
    window.session = meter.start({ kind: 'chat', sessionId: id });
    return session.ready;
  };
  window.ticks = (many) => new Promise((done) => session.addEventListener(
    'tick', () => { many -= 1; if (!many) done(); }));
  window.joined = () => new Promise((done) => session.addEventListener('session', done,
    { once: true }));
}"""


class RealTabs:
    """Tabs at one address, and what they have sent."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.pages: list[RealPage] = []
        self._sockets: list[tuple[RealPage, WebSocket]] = []

    @property
    def sockets(self) -> int:
        """How many sockets were ever opened."""
        return len(self._sockets)

    def leader(self) -> RealPage:
        """The tab that has the one open socket."""
        open_ones = [page for page, socket in self._sockets if not socket.is_closed()]
        (leader,) = [page for page in open_ones if not page.page.is_closed()]
        return leader

    async def open(self, token: str) -> RealPage:
        page = RealPage(await self.context.new_page())
        page.page.on("websocket", lambda socket: self._sockets.append((page, socket)))
        self.pages.append(page)
        await page.page.goto(f"{self.url}/client/taximeter.js")
        await page.page.evaluate(CONSTRUCT, token)
        return page

    def count(self, kind: str) -> int:
        return sum(page.count(kind) for page in self.pages)


@pytest.fixture
async def tabs(server: TestServer, context: BrowserContext) -> RealTabs:
    await server.grant(10_000_000)
    return RealTabs(context, server.url)


async def end(page: RealPage) -> Message:
    receipt: Message = await page.run("async () => (await session.stop()).receipt")
    return receipt


def check_gaps(receipt: Message, most: int) -> None:
    """Checks that gaps are few and unbilled.

    Their length depends on the machine; the tests with a clock show that a tab waits for nothing.
    """
    assert len(receipt["gaps"]) <= most
    assert not any(gap["billed"] for gap in receipt["gaps"])


@pytest.mark.parametrize("is_at_once", [True, False])
async def test_ten_tabs_are_one_socket_one_start_and_one_segment(
    server: TestServer, tabs: RealTabs, is_at_once: bool
) -> None:
    first, *others = [await tabs.open(server.token()) for _ in range(10)]
    starting = asyncio.ensure_future(first.run("() => start()"))
    if not is_at_once:
        await starting
    await asyncio.gather(*(page.run("() => start()") for page in others))
    if is_at_once:
        await starting
    await asyncio.gather(*(page.run("() => ticks(1)") for page in (first, *others)))
    assert (tabs.sockets, tabs.count("auth")) == (1, 1)
    leader = tabs.leader()
    for page in tabs.pages:
        if page is not leader:
            await page.page.close()
    await leader.run("() => ticks(1)")
    receipt = await end(leader)
    assert (tabs.count("start"), tabs.count("leave")) == (1, 0)
    assert (len(receipt["segments"]), receipt["gaps"]) == (1, [])
    assert receipt["elapsed_ms"] >= 1_000


async def test_more_tabs_than_a_user_may_have_sockets(server: TestServer, tabs: RealTabs) -> None:
    """Never 4503; without the option the 33rd is refused."""
    page = await tabs.open(server.token())
    many = """async (token) => {
      const { Taximeter } = await import('/client/taximeter.js');
      const { tabs } = await import('/client/tabs.js');
      const live = (meter) => new Promise((done, failed) => {
        meter.addEventListener('welcome', done);
        meter.addEventListener('error', ({ detail }) => failed(detail));
        meter.connect();
      });
      for (let i = 0; i < 40; i += 1) await live(new Taximeter({ token, tabs }));
    }"""
    async with asyncio.timeout(PATIENCE_S):
        await page.page.evaluate(many, server.token())
    assert tabs.sockets == 9, "32 tabs share one, and 8 have their own"


@pytest.mark.parametrize("how", ["closed", "crashed", "frozen", "logged out"])
async def test_a_leader_that_goes_costs_one_gap_at_most(
    server: TestServer, tabs: RealTabs, how: str
) -> None:
    pages = [await tabs.open(server.token()) for _ in range(3)]
    for page in pages:
        await page.run("() => start()")
    await asyncio.gather(*(page.run("() => ticks(1)") for page in pages))
    leader, *others = pages
    for page in others:
        await page.run("() => { window.back = joined(); }")
    if how == "closed":
        await leader.page.close()
    elif how == "crashed":
        await crash(leader.page)
    elif how == "frozen":
        await leader.run("() => { document.dispatchEvent(new Event('freeze')); }")
    else:
        await leader.run("() => meter.switchUser(null)")
    for page in others:
        await page.run("async () => { await back; await ticks(1); }")
    assert tabs.sockets == 2
    receipt = await end(others[0])
    check_gaps(receipt, 0 if how in ("frozen", "logged out") else 1)


@pytest.mark.parametrize("how", ["closed", "crashed", "frozen", "logged out", "navigated"])
async def test_a_session_that_only_followers_have_outlives_the_leader(
    server: TestServer, tabs: RealTabs, how: str
) -> None:
    """One gap at most, and unbilled; none after a log-out."""
    leader, follower = [await tabs.open(server.token()) for _ in range(2)]
    await leader.run("() => start('of-the-leader')")
    await follower.run("() => start()")
    await follower.run("() => ticks(1)")
    await follower.run("() => { window.back = joined(); }")
    if how == "closed":
        await leader.page.close()
    elif how == "crashed":
        await crash(leader.page)
    elif how == "frozen":
        await leader.run("() => { document.dispatchEvent(new Event('freeze')); }")
    elif how == "navigated":
        await leader.page.goto("about:blank")
    else:
        await leader.run("() => meter.switchUser(null)")
    await follower.run("async () => { await back; await ticks(1); }")
    check_gaps(await end(follower), 0 if how == "logged out" else 1)


async def crash(page: Page) -> None:
    cdp = await page.context.new_cdp_session(page)
    async with page.expect_event("crash"):
        crashing = asyncio.ensure_future(cdp.send("Page.crash"))
    crashing.cancel()
    await asyncio.gather(crashing, return_exceptions=True)


async def test_each_leader_that_goes_is_followed_by_the_next(
    server: TestServer, tabs: RealTabs
) -> None:
    pages = [await tabs.open(server.token()) for _ in range(4)]
    for page in pages:
        await page.run("() => start()")
    for _ in range(3):
        leader = tabs.leader()
        pages.remove(leader)
        await pages[0].run("() => { window.back = joined(); }")
        await leader.page.close()
        await pages[0].run("async () => { await back; await ticks(1); }")
    check_gaps(await end(pages[0]), 3)


async def test_when_all_tabs_are_closed_the_session_is_left(
    server: TestServer, tabs: RealTabs
) -> None:
    pages = [await tabs.open(server.token()) for _ in range(2)]
    for page in pages:
        await page.run("() => start()")
    await pages[0].run("() => ticks(1)")
    for page in pages:
        await page.page.close()
    watcher = await tabs.open(server.token())
    state = await watcher.run(
        """async () => {
          const session = meter.watch('chat-17');
          await session.ready;
          while (session.state !== 'suspended') {
            await new Promise((done) => session.addEventListener('session', done, { once: true }));
          }
          return session.state;
        }"""
    )
    assert state == "suspended"


async def test_two_users_have_a_connection_each(server: TestServer, tabs: RealTabs) -> None:
    await server.grant(10_000_000, "bob", entry_id="g2")
    ann, bob = await tabs.open(server.token()), await tabs.open(server.token("bob"))
    await ann.run("() => start('of-ann')")
    await bob.run("() => start('of-bob')")
    refused = await bob.run(
        "() => meter.start({ kind: 'chat', sessionId: 'of-bob-2' }).ready.then(() => meter.welcome)"
    )
    assert refused["user_id"] == "bob"
    await ann.run("() => meter.switchUser(null)")
    await bob.run("() => ticks(1)")
    assert tabs.sockets == 2
    assert (await end(bob))["user_id"] == "bob"


@asynccontextmanager
async def behind_a_proxy(server: TestServer, context: BrowserContext) -> AsyncIterator[RealTabs]:
    async with blocking_proxy(server.port, "403") as proxy:
        tabs = RealTabs(context, proxy.url)
        yield tabs
        for page in tabs.pages:
            if not page.page.is_closed():
                await page.page.close()


async def test_tabs_share_a_stream_where_no_websocket_gets_through(
    server: TestServer, context: BrowserContext
) -> None:
    await server.grant(10_000_000)
    streams: list[str] = []
    context.on(
        "request",
        lambda request: streams.append(request.url) if request.url.endswith("/stream") else None,
    )
    async with behind_a_proxy(server, context) as tabs:
        first = await tabs.open(server.token())
        await first.run("() => start()")
        others = [await tabs.open(server.token()) for _ in range(2)]
        for page in others:
            await page.run("() => start()")
        await asyncio.gather(*(page.run("() => ticks(1)") for page in (first, *others)))
        assert len(streams) == 1
        handshakes = tabs.sockets
        for page in others:
            await page.run("() => { window.back = joined(); }")
        await first.page.close()
        for page in others:
            await page.run("async () => { await back; await ticks(1); }")
        assert (len(streams), tabs.sockets) == (2, handshakes), "no WebSocket is tried again"
        check_gaps(await end(others[0]), 1)


async def test_a_page_that_closes_after_a_stop_ends_the_session(
    server: TestServer, tabs: RealTabs
) -> None:
    pages = [await tabs.open(server.token()) for _ in range(2)]
    for page in pages:
        await page.run("() => start()")
    await pages[1].run("() => ticks(1)")
    await pages[1].run("() => { session.stop(); location.href = 'about:blank'; }")
    assert (await receipt_of(server))["reason"] == "client"
