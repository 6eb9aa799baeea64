"""Several tabs of one browser, whose clients share a connection."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from playwright.async_api import BrowserContext, Error, Page

from tests.browser.fixtures import HARNESS, ClientPage
from tests.browser.mock_server import SERVER_TIME_AT, BrowserSocket, MockServer


def token(user_id: str = "user-1", *, in_ms: int = 3_600_000, **claims: Any) -> str:
    """A token that no server has signed."""
    body = {"sub": user_id, "exp": (SERVER_TIME_AT + in_ms) // 1000, **claims}
    return f"e30.{base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip('=')}.x"


def quote(text: str) -> str:
    """The options of a client with this token."""
    return f"token: {json.dumps(text)}"


class Tabs:
    """Opens tabs; each has a clock of its own."""

    def __init__(self, context: BrowserContext, server: MockServer) -> None:
        self.context = context
        self.server = server
        self.faults: list[str] = []

    def _hear(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    async def blank(self) -> ClientPage:
        """A tab that has the client's code."""
        page = await self.context.new_page()
        self._hear(page)
        await page.goto(f"{self.server.url}/blank")
        await page.evaluate(HARNESS)
        await page.evaluate(
            "async () => Object.assign(window, await import('/client/tabs.js'))",
        )
        return ClientPage(page, self.server)

    async def open(self, options: str | None = None) -> ClientPage:
        """A tab with a client; ``options`` are JavaScript."""
        tab = await self.blank()
        await tab.construct(f"{options or quote(token())}, tabs")
        return tab

    async def lead(self, options: str | None = None) -> tuple[ClientPage, BrowserSocket]:
        """The first tab, with a session, and its connection."""
        tab = await self.open(options)
        await tab.start()
        line = await self.server.line()
        await line.welcome()
        await line.join()
        await tab.take("session")
        return tab, line

    async def crash(self, tab: ClientPage) -> None:
        """Ends a tab's process; it has no time to say anything."""
        cdp = await self.context.new_cdp_session(tab.page)
        async with tab.page.expect_event("crash"):
            crashing = asyncio.ensure_future(cdp.send("Page.crash"))  # nothing answers it
        crashing.cancel()
        with contextlib.suppress(Error, asyncio.CancelledError):
            await crashing

    async def follow(self, line: BrowserSocket, options: str | None = None) -> ClientPage:
        """A further tab with the same session."""
        tab = await self.open(options)
        await tab.start()
        await line.join_again()
        await tab.take("session")
        return tab


@pytest_asyncio.fixture(loop_scope="session")
async def tabs(context: BrowserContext, mock_server: MockServer) -> AsyncIterator[Tabs]:
    tabs = Tabs(context, mock_server)
    yield tabs
    assert tabs.faults == [], "a client threw an error that no caller could catch"
