"""Tests the page's display: small screens, both colour schemes, and reduced motion."""

from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.browser.fixtures import Tab, chromium, mock_server
from tests.browser.mock_server import ROOT, MockServer, snapshot, stopped, tick, warning
from tests.browser.test_demo_before import ESTIMATE, USAGE, listed

__all__ = ["chromium", "mock_server"]

SCREENSHOTS = ROOT / "artifacts"


async def test_reduced_motion_hides_the_tenths(chromium: Browser, mock_server: MockServer) -> None:
    context = await chromium.new_context(reduced_motion="reduce")
    tab = Tab(await context.new_page(), mock_server)
    await tab.ride(elapsed_ms=12_300)
    await expect(tab.at("[part=time]")).to_have_text("0:12")
    await expect(tab.at("[part=tenths]")).to_be_hidden()
    await tab.page.clock.run_for(2_000)
    await expect(tab.at("[part=time]")).to_have_text("0:14")
    await context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("wide", 1180), ("phone", 390), ("small", 320)])
async def test_every_state_fits_its_screen(
    chromium: Browser, mock_server: MockServer, scheme: Any, name: str, width: int
) -> None:
    """Each state fits its screen: nothing is cut off or scrolls sideways.

    The pictures are for people to look at.
    """
    context = await chromium.new_context(
        color_scheme=scheme,
        viewport={"width": width, "height": 844},
        timezone_id="Europe/London",
        locale="en-GB",
    )
    tab = Tab(await context.new_page(), mock_server)

    async def fits(state: str) -> None:
        await tab.page.mouse.move(0, 0)
        path = SCREENSHOTS / f"demo-{state}-{name}-{scheme}.png"
        await tab.page.screenshot(path=path, full_page=True, animations="disabled")
        wide = await tab.page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= width, f"{state} is {wide} pixels wide"

    tab.estimate, tab.past = ESTIMATE, [listed("chat-1"), listed("chat-2")]
    await tab.open()
    line = await tab.line()
    await line.send(**USAGE)
    await expect(tab.at("#start")).to_be_visible()
    await expect(tab.at("#estimate")).to_be_visible()
    await expect(tab.at("#past")).to_be_visible()
    await expect(tab.at("taximeter-usage:visible")).to_be_visible()
    await fits("1-start")
    await tab.page.get_by_role("button", name="Start the meter").click()
    start = await line.receive("start")
    tab.session_id = start["session_id"]
    await line.answer(start, **snapshot(session_id=tab.session_id))
    await tab.send(line, tick(17_400))
    await expect(tab.at("[part=time]")).to_have_text("0:17")
    await fits("2-free")
    for minute in (0, 1):
        row = {"minute": minute, "seconds": 60, "credits": str(minute)}
        await tab.send(line, {"type": "minute", **row})
    await tab.send(line, tick(150_400))
    await tab.send(line, warning(2))
    await expect(tab.toast).to_be_visible()
    await fits("3-warning")
    await tab.page.clock.run_for(10_000)
    await tab.send(line, {"type": "minute", "minute": 2, "seconds": 60, "credits": "1"})
    await tab.reach_limit(line)
    await expect(tab.at("#notices [part~=limit]")).to_be_visible()
    await fits("4-limit-reached")
    await tab.send(line, {"type": "minute", "minute": 3, "seconds": 30, "credits": "0.5"})
    await tab.send(line, stopped(4, reason="limit", session_id=tab.session_id))
    await expect(tab.at("#receipt")).to_be_visible()
    await fits("5-receipt")
    await context.close()
