"""Tests the client in Chromium against the real server, down to the receipt."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from tests.browser.fixtures import chromium, context
from tests.fixtures.server import TestServer

__all__ = ["chromium", "context"]

Message = dict[str, Any]

OPTIONS = "{ kind: 'chat', sessionId: 'chat-17' }"
CONSTRUCT = """async (token) => {
  const client = await import('/client/taximeter.js');
  const meter = new client.Taximeter({ token });
  const macrotask = () => new Promise((resolve) => setTimeout(resolve));
  const ticks = (session, many) => new Promise((resolve) => session.addEventListener(
    'tick', () => { many -= 1; if (!many) resolve(); }));
  Object.assign(window, client, { meter, macrotask, ticks });
}"""


class RealPage:
    """A page of the real server with the client, and all that it has sent over sockets."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.sent: list[Message] = []
        page.on("websocket", lambda socket: socket.on("framesent", self._hear))

    def _hear(self, frame: str | bytes) -> None:
        self.sent.append(json.loads(frame))

    async def open(self, server: TestServer) -> None:
        await server.grant(10_000_000)
        # Any page of the server's origin will do; this one runs no script of its own.
        await self.page.goto(f"{server.url}/client/taximeter.js")
        await self.page.evaluate(CONSTRUCT, server.token())

    async def run(self, script: str) -> Any:
        return await self.page.evaluate(script)

    def count(self, kind: str) -> int:
        return sum(message["type"] == kind for message in self.sent)


@pytest.fixture
async def page(server: TestServer, context: BrowserContext) -> AsyncIterator[RealPage]:
    page = RealPage(await context.new_page())
    await page.open(server)
    yield page
    await page.page.close()


async def test_start_leave_start_costs_two_segments(page: RealPage) -> None:
    """What a component that is mounted twice would do to a receipt, if each mount were a start."""
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


async def test_ten_components_are_one_start_and_one_segment(page: RealPage) -> None:
    """They come and go; nine that go send nothing, and the tenth leaves."""
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
    assert receipt["segments"][0]["to_at"] - receipt["segments"][0]["from_at"] >= 1_000
