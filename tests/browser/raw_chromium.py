"""Chromium without Playwright, which keeps every page visible and awake.

Here pages are hidden, frozen and kept in the back/forward cache as a person's are.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from storage.tasks import end
from tests.browser.fixtures import ARGUMENTS, CHROMIUM
from tests.browser.mock_server import PATIENCE_S

Message = dict[str, Any]


class RawChromium:
    """A browser, and the connection that commands it."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Message]] = {}

    async def listen(self) -> None:
        """Hands answers to the calls that wait for them."""
        with contextlib.suppress(ConnectionClosed):
            async for text in self._connection:
                message = json.loads(text)
                waiting = self._answers.pop(message.get("id"), None)
                if waiting is not None:
                    waiting.set_result(message)

    async def call(self, method: str, session: str | None = None, **params: Any) -> Message:
        """Calls a method of the DevTools protocol; returns its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        target = {} if session is None else {"sessionId": session}
        await self._connection.send(
            json.dumps({"id": number, "method": method, "params": params, **target})
        )
        async with asyncio.timeout(PATIENCE_S):
            message = await answer
        assert "error" not in message, (method, message)
        result: Message = message["result"]
        return result

    async def open(self) -> "RawPage":
        """A page in a window of its own."""
        target = await self.call("Target.createTarget", url="about:blank", newWindow=True)
        target_id = target["targetId"]
        attached = await self.call("Target.attachToTarget", targetId=target_id, flatten=True)
        window = await self.call("Browser.getWindowForTarget", targetId=target_id)
        return RawPage(self, target_id, attached["sessionId"], window["windowId"])


class RawPage:
    """A page, and what a person or the browser does to it."""

    def __init__(self, browser: RawChromium, target: str, session: str, window: int) -> None:
        self.browser = browser
        self._target = target
        self._session = session
        self._window = window

    async def call(self, method: str, **params: Any) -> Message:
        """Calls a method of the DevTools protocol for this page."""
        return await self.browser.call(method, self._session, **params)

    async def run(self, script: str, argument: Any = None) -> Any:
        """Calls a function in the page; returns what it promises."""
        expression = f"({script})({json.dumps(argument)})"
        options = {"awaitPromise": True, "returnByValue": True}
        found = await self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Waits until an expression is true, also over a navigation."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.run(f"() => Boolean({condition})"):  # noqa: ASYNC110 -- a page
                await asyncio.sleep(0)

    async def go(self, url: str) -> None:
        """Navigates, and waits until the page is there."""
        await self.call("Page.navigate", url=url)
        await self.until(
            f"location.href === {json.dumps(url)} && document.readyState === 'complete'"
        )

    async def show(self, state: str) -> None:
        """Makes the window ``minimized`` or ``normal``."""
        bounds = {"windowState": state}
        await self.browser.call("Browser.setWindowBounds", windowId=self._window, bounds=bounds)
        expected = "visible" if state == "normal" else "hidden"
        await self.until(f"document.visibilityState === '{expected}'")

    async def freeze(self) -> None:
        """Freezes the page: it runs no task until ``thaw``."""
        await self.call("Page.setWebLifecycleState", state="frozen")

    async def thaw(self) -> None:
        """Lets the page run, and makes it visible."""
        await self.call("Page.setWebLifecycleState", state="active")
        await self.show("minimized")
        await self.show("normal")

    async def close(self) -> None:
        """Closes the page."""
        await self.browser.call("Target.closeTarget", targetId=self._target)


@asynccontextmanager
async def running_chromium(*arguments: str) -> AsyncIterator[RawChromium]:
    """A browser with a profile of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        child = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *(*ARGUMENTS, *arguments, "--headless", "--remote-debugging-port=0"),
            *(f"--user-data-dir={profile}", "about:blank"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        assert child.stderr is not None
        tasks: list[asyncio.Task[Any]] = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (found := re.search(rb"ws://\S+", line := await child.stderr.readline())):
                    assert line, "Chromium has ended"
            tasks.append(asyncio.create_task(child.stderr.read()))  # a full pipe would stop it
            async with connect(found[0].decode(), max_size=None, proxy=None) as connection:
                browser = RawChromium(connection)
                tasks.append(asyncio.create_task(browser.listen()))
                yield browser
                await browser.call("Browser.close")
        finally:
            await end(tasks)
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
            await child.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def raw_chromium() -> AsyncIterator[RawChromium]:
    """One such browser for all tests of a module."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"there is no Chromium at {CHROMIUM} (set CHROMIUM to its path)")
    async with running_chromium() as browser:
        yield browser
