"""Takes the documentation's pictures of the real page on a server.

The browser is Chromium. ``scripts/screenshots`` runs this. The pictures show the fast
demonstration, so they take no more than half a minute: a ride with recorded minutes and a warning,
then its receipt.
"""

import asyncio
import contextlib
import os
import re
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

from playwright.async_api import Page, async_playwright, expect

from tests.browser.fixtures import ARGUMENTS, CHROMIUM

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
START_TIMEOUT_S = 60
RIDE_TIMEOUT_MS = 60_000


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@contextlib.asynccontextmanager
async def _running_server() -> AsyncIterator[str]:
    """Starts the server of ``scripts/run``; gives its URL.

    The server has its own port and data.
    """
    with tempfile.TemporaryDirectory(prefix="taximeter-") as data_dir:
        port = _free_port()
        changes = {"ENV": "development", "DATA_DIR": data_dir, "PORT": str(port)}
        # Other settings of the shell are meant for another server.
        kept = {name: value for name, value in os.environ.items() if "TAXIMETER_" not in name}
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", "all"),
            cwd=ROOT,
            env={**kept, **{f"TAXIMETER_{name}": value for name, value in changes.items()}},
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await asyncio.to_thread(_is_ready, f"http://127.0.0.1:{port}"):
                    assert server.returncode is None, "the server has not started"
                    await asyncio.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            if server.returncode is None:
                server.terminate()
            await server.wait()


async def _picture(page: Page, name: str) -> None:
    path = IMAGES / f"{name}.png"
    await page.screenshot(path=path)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")


async def _ride(page: Page, url: str) -> None:
    """A ride until the credits run short, and its end.

    The warning's toast is closed, because its text stays visible beside the dial.
    """
    await page.goto(url)
    await page.locator("label", has=page.locator("#fast")).click()
    await page.locator("#start").click()
    await expect(page.locator("#minutes tr")).to_have_count(3, timeout=RIDE_TIMEOUT_MS)
    await expect(page.locator("[part=toasts]")).to_contain_text("run out")
    for button in await page.locator("[part=dismiss]").all():
        await button.click()
    await expect(page.locator("[part=time]")).to_have_text(re.compile(r"^3:1\d$"))
    await _picture(page, "ride")
    await page.locator("#stop").click()
    await expect(page.locator("#receipt")).to_contain_text("Credits")
    await _picture(page, "receipt")


async def main() -> None:
    """Takes every picture."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    async with _running_server() as url, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        # Motion would give a picture of a half-drawn element.
        page = await browser.new_page(
            viewport={"width": 1280, "height": 780}, reduced_motion="reduce", locale="en-GB"
        )
        await _ride(page, url)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
