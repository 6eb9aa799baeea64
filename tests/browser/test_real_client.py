"""Tests the client against the real server, down to the receipt."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, get_args

import httpx
import pytest
from playwright.async_api import BrowserContext, Page, Request

from tests.browser.fixtures import chromium, context
from tests.browser.mock_server import PATIENCE_S
from tests.fixtures.blocking_proxy import blocking_proxy
from tests.fixtures.nginx import Upgrades, nginx_before
from tests.fixtures.server import TestServer

__all__ = ["chromium", "context"]

Message = dict[str, Any]

Way = Literal["websocket", "stream", "nginx", "nginx forgets upgrades", "nginx refuses upgrades"]

LONG = pytest.mark.full
EVERY_WAY = pytest.mark.parametrize(
    "way",
    [
        *("websocket", "stream"),
        *(pytest.param(way, marks=LONG) for way in get_args(Way) if way.startswith("nginx")),
    ],
)
"""Runs a test over each way from the browser to the server; those through nginx are long forms."""

OPTIONS = "{ kind: 'chat', sessionId: 'chat-17', tickMs: 250 }"
CONSTRUCT = """async (token) => {
  const client = await import('/client/taximeter.js');
  const sockets = [];
  class Socket extends WebSocket {
    constructor(...address) {
      if (window.isCut) throw new Error('There is no network.');
      super(...address);
      sockets.push(this);
    }
  }
  const platform = { WebSocket: Socket, random: () => 0 };
  const meter = new client.Taximeter({ token, platform });
  const macrotask = () => new Promise((resolve) => setTimeout(resolve));
  const ticks = (session, many) => new Promise((resolve) => session.addEventListener(
    'tick', () => { many -= 1; if (!many) resolve(); }));
  Object.assign(window, client, { sockets, platform, meter, macrotask, ticks });
}"""


class RealPage:
    """A page of the real server, and what its client has sent."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.sent: list[Message] = []
        self.streams = 0
        page.on("websocket", lambda socket: socket.on("framesent", self._hear))
        page.on("request", self._see)

    def _hear(self, text: str | bytes) -> None:
        """Takes what a WebSocket sends, or a request of a stream."""
        found = json.loads(text)
        self.sent += found if isinstance(found, list) else [found]

    def _see(self, request: Request) -> None:
        self.streams += request.url.endswith("/v1/stream")
        if "/v1/stream/" in request.url:
            self._hear(request.post_data or "[]")

    async def open(self, server: TestServer, url: str | None = None) -> None:
        await server.grant(10_000_000)
        # Any page of the server's origin will do; this one runs no script of its own.
        await self.page.goto(f"{url or server.url}/client/taximeter.js")
        await self.page.evaluate(CONSTRUCT, server.token())

    async def run(self, script: str) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await self.page.evaluate(script)

    def count(self, kind: str) -> int:
        return sum(message["type"] == kind for message in self.sent)


@pytest.fixture
def way() -> Way:
    """How the page reaches the server; see ``EVERY_WAY``."""
    return "websocket"


@asynccontextmanager
async def reaching(server: TestServer, way: Way) -> AsyncIterator[str]:
    """The address of the server on this way."""
    if way == "websocket":
        yield server.url
    elif way == "stream":
        async with blocking_proxy(server.port) as proxy:
            yield proxy.url
    else:
        upgrades = get_args(Upgrades)[get_args(Way).index(way) - 2]
        async with nginx_before(server.port, upgrades) as port:
            yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def page(server: TestServer, context: BrowserContext, way: Way) -> AsyncIterator[RealPage]:
    async with reaching(server, way) as url:
        page = RealPage(await context.new_page())
        await page.open(server, url)
        yield page
        await page.page.close()
    assert (page.streams > 0) == (way not in {"websocket", "nginx"})


@EVERY_WAY
async def test_start_leave_start_costs_two_segments(page: RealPage) -> None:
    """This is the receipt if each mount were a start."""
    receipt = await page.run(
        f"""async () => {{
          const first = meter.start({OPTIONS});
          await first.ready;
          first.leave();
          const session = meter.start({OPTIONS});
          await ticks(session, 1);
          return (await session.stop()).receipt;
        }}"""
    )
    assert (page.count("start"), page.count("leave")) == (2, 1)
    assert len(receipt["segments"]) == 2


@EVERY_WAY
@pytest.mark.parametrize("is_live", [False, True])
async def test_retain_release_retain_is_one_start_and_one_segment(
    page: RealPage, is_live: bool
) -> None:
    """Before the line is up, and on a running session."""
    receipt = await page.run(
        f"""async () => {{
          let session = meter.retain({OPTIONS});
          if ({str(is_live).lower()}) await ticks(session, 1);
          session.release();
          session = meter.retain({OPTIONS});
          await macrotask();
          await ticks(session, 1);
          return (await session.stop()).receipt;
        }}"""
    )
    assert (page.count("start"), page.count("leave")) == (1, 0)
    assert (len(receipt["segments"]), receipt["gaps"]) == (1, [])


@EVERY_WAY
async def test_ten_components_are_one_start_and_one_segment(page: RealPage) -> None:
    """Nine that go send nothing, and the tenth leaves."""
    await page.run(
        f"""async () => {{
          window.session = meter.retain({OPTIONS});
          for (let i = 0; i < 9; i += 1) meter.retain({OPTIONS});
          await ticks(session, 1);
          for (let i = 0; i < 9; i += 1) {{ session.release(); await macrotask(); }}
          await ticks(session, 1);
        }}"""
    )
    assert (page.count("start"), page.count("leave")) == (1, 0)
    await page.run("async () => { session.release(); await macrotask(); }")
    assert page.count("leave") == 1
    receipt = await page.run(
        f"async () => {{ const again = meter.retain({OPTIONS}); await again.ready;"
        " return (await again.stop()).receipt; }"
    )
    assert receipt["segments"][0]["to_at"] - receipt["segments"][0]["from_at"] >= 250


@EVERY_WAY
async def test_a_page_that_closes_after_a_stop_ends_the_session_as_client(
    server: TestServer, page: RealPage
) -> None:
    await page.run(
        f"async () => {{ window.session = meter.start({OPTIONS}); await ticks(session, 1); }}"
    )
    await page.run("() => { session.stop(); location.href = 'about:blank'; }")
    receipt = await receipt_of(server)
    assert receipt["reason"] == "client"


async def test_a_page_that_closes_without_a_line_ends_the_session_as_client(
    server: TestServer, page: RealPage
) -> None:
    await page.run(
        f"async () => {{ window.session = meter.start({OPTIONS}); await ticks(session, 1); }}"
    )
    # No further attempt to connect reaches the server.
    state = await page.run(
        "() => { window.isCut = true; sockets[0].onclose({ code: 1006 });"
        " session.stop(); const { state } = meter; location.href = 'about:blank';"
        " return state; }"
    )
    assert state == "reconnecting"
    assert (await receipt_of(server))["reason"] == "client"


async def receipt_of(server: TestServer) -> Message:
    """The receipt of the session, once it has ended."""
    headers = {"Authorization": f"Bearer {server.token()}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as http, asyncio.timeout(30):
        while True:
            found = await http.get("/v1/sessions/chat-17")
            if "reason" in found.json():
                receipt: Message = found.json()
                return receipt
            await asyncio.sleep(0)


@EVERY_WAY
@pytest.mark.parametrize("silent_ms", [2_000, 3_600_000])
async def test_a_page_back_from_sleep_has_one_segment(page: RealPage, silent_ms: int) -> None:
    """Neither joining again nor a new line begins a gap."""
    receipt = await page.run(
        f"""async () => {{
          const session = meter.start({OPTIONS});
          await ticks(session, 2);
          const resumed = new Promise((resolve) => meter.addEventListener('resumed', resolve));
          const now = Date.now;
          Date.now = () => now() + {silent_ms};
          document.dispatchEvent(new Event('visibilitychange'));
          await resumed;
          Date.now = now;
          await ticks(session, 2);
          return (await session.stop()).receipt;
        }}"""
    )
    # A stream that is replaced takes leave for itself, after the new one has the session.
    assert page.count("leave") == (page.streams == 2)
    assert (len(receipt["segments"]), receipt["gaps"]) == (1, [])
