"""Tests what the page shows before a start, and beside a session."""

import re
from typing import Any

import pytest
from playwright.async_api import expect

from tests.browser.element_fixtures import usage
from tests.browser.fixtures import Tab, chromium, context, mock_server, tab
from tests.browser.mock_server import (
    SERVER_TIME_AT,
    Message,
    receipt,
    stopped,
    tick,
    warning,
    welcome,
)
from tests.browser.node import PACKAGE, needs_tools

__all__ = ["chromium", "context", "mock_server", "tab"]

ESTIMATE: Message = {
    "can_start": True,
    "free_remaining_ms": 60_000,
    "remaining_ms": 210_000,
    "limit": "credits",
    "limits": [{"limit": "credits", "remaining_ms": 210_000}],
}
USAGE = usage(org_used_ms=35_000_000, org_limit_ms=36_000_000)


def listed(session_id: str, **changes: Message | str | None) -> Message:
    bill = receipt(session_id=session_id)
    return {"session_id": session_id, "kind": "chat", "limit": None, "receipt": bill, **changes}


async def test_the_page_says_how_long_one_may_talk(tab: Tab) -> None:
    tab.estimate = ESTIMATE
    await tab.open()
    line = await tab.line()
    await expect(tab.at("#estimate-title")).to_have_text("How long may I talk?")
    await expect(tab.at("#estimate-text")).to_have_text(
        "3:30 on the meter, the first 1:00 of it free. Your credits run out then."
    )
    tab.estimate = {**ESTIMATE, "free_remaining_ms": 0, "limit": "member_minutes"}
    await tab.choose(tab.page.get_by_label("Recording"))
    await expect(tab.at("#estimate-title")).to_have_text("How long may I record?")
    await expect(tab.at("#estimate-text")).to_have_text(
        "3:30 on the meter. Your minutes of this month end then."
    )
    assert tab.asked == ["kind=chat", "kind=recording"]
    tab.estimate = {**ESTIMATE, "remaining_ms": None, "limit": None}
    credit = {"account_id": "user-1", "credits": "7.5", "delta": "5", "reason": "grant"}
    await line.send(type="credit", entry_id="entry-1", **credit)
    await expect(tab.at("#estimate-text")).to_have_text(
        "As long as you like: no limit is in sight."
    )


async def test_the_page_says_why_a_session_may_not_start(tab: Tab) -> None:
    tab.estimate = {**ESTIMATE, "can_start": False, "remaining_ms": 0}
    await tab.open()
    await tab.line()
    await expect(tab.at("#estimate-text")).to_have_text("Not now: out of credits.")


async def test_a_server_without_an_estimate_shows_none(tab: Tab) -> None:
    await tab.open()
    await tab.line()
    await expect(tab.at("#start")).to_be_visible()
    await expect(tab.at("#estimate")).to_be_hidden()
    await expect(tab.at("#past")).to_be_hidden()


async def test_past_sessions_show_their_receipts(tab: Tab) -> None:
    living = listed("chat-3", receipt=None)
    tab.past = [living, listed("chat-2", limit="credits"), listed("chat-1")]
    tab.recorded = [{"minute": 0, "seconds": 60, "credits": "0"}]
    await tab.open()
    await tab.line()
    rows = tab.at("#past-list button")
    more = tab.page.get_by_role("button", name="Show more")
    await expect(rows).to_have_count(0)  # the session of the first page lives
    await more.click()
    await expect(rows).to_have_text([re.compile("Chat.*11:06 . 3:30.*2.5 credits")])
    await more.click()
    await expect(rows).to_have_count(2)
    await expect(more).to_be_hidden()
    await rows.first.press("Enter")
    await expect(tab.at("#receipt")).to_contain_text("Chat, out of credits")
    await expect(tab.at("#receipt")).to_contain_text("Minute 1, 60 s")
    await tab.page.get_by_role("button", name="Start another").click()
    await expect(tab.at("#start")).to_be_visible()


async def test_the_month_is_beside_the_ride(tab: Tab) -> None:
    line = await tab.ride()
    await expect(tab.at("taximeter-usage:visible")).to_have_count(0)
    await line.send(**USAGE)
    await expect(tab.at("taximeter-usage:visible")).to_contain_text("2 hrs of 10 hrs")


async def test_a_ride_asks_for_a_new_token_only(tab: Tab) -> None:
    """For two minutes: what is shown comes over the socket."""
    line = await tab.ride()
    expiring = welcome(expires_at=SERVER_TIME_AT + 150_000)
    await line.send(**expiring)
    await line.send(**USAGE)
    await expect(tab.at("taximeter-usage:visible")).to_contain_text("2 hrs of 10 hrs")
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    for second in range(1, 121):
        await tab.send(line, tick(second * 1_000))
        await tab.page.clock.run_for(1_000)
        if second == 75:
            await line.answer(await line.receive("refresh"), **expiring)
    await expect(tab.at("[part=time]")).to_have_text("2:00")
    assert asked == [f"{tab.server.url}/demo/token"]
    assert not tab.server.has_new_line()


async def test_forced_colours_hide_no_state(tab: Tab) -> None:
    """They remove backgrounds, and show outlines that were transparent."""
    await tab.page.emulate_media(forced_colors="active")
    await tab.open()
    await tab.line()
    await expect(tab.at("#start")).to_be_visible()
    style = "(element, name) => getComputedStyle(element)[name]"
    bodies, track = tab.at(".choice-body"), tab.at(".switch-track")
    chosen, other = [await bodies.nth(i).evaluate(style, "outlineWidth") for i in (0, 1)]
    assert chosen != other
    assert await track.evaluate(style, "outlineStyle") == "solid"
    off = await track.evaluate(style, "backgroundColor")
    await tab.choose(tab.page.get_by_role("switch"))
    await expect(track).not_to_have_css("background-color", off)


@pytest.mark.parametrize("look", ["light", "dark", "forced"])
async def test_axe_finds_no_violation_of_the_page(tab: Tab, look: Any) -> None:
    """From the start to the receipt, and without a connection."""
    needs_tools()
    await tab.page.emulate_media(
        color_scheme="dark" if look == "dark" else "light",
        forced_colors="active" if look == "forced" else "none",
        reduced_motion="reduce",
    )
    axe = (PACKAGE / "node_modules/axe-core/axe.min.js").read_text()
    check = """async () => (await axe.run(document, { resultTypes: ['violations'] })).violations
      .map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html)}`)"""
    tab.estimate, tab.past = ESTIMATE, [listed("chat-1")]
    await tab.open()
    await tab.page.clock.resume()
    line = await tab.line()
    await expect(tab.at("#past")).to_be_visible()
    await tab.page.evaluate(axe)
    assert await tab.page.evaluate(check) == []
    await tab.page.get_by_role("button", name="Start the meter").click()
    tab.session_id = (await line.join())["session_id"]
    await line.send(**USAGE)
    await tab.send(line, warning(1))
    await expect(tab.toast).to_be_visible()
    await expect(tab.at("[part~=toast]")).to_have_css("animation-name", "none")
    assert await tab.page.evaluate(check) == []
    await tab.reach_limit(line)
    await expect(tab.at("#notices [part~=limit]")).to_be_visible()
    assert await tab.page.evaluate(check) == []
    await tab.send(line, stopped(4, reason="limit", session_id=tab.session_id))
    await expect(tab.at("#receipt")).to_be_visible()
    assert await tab.page.evaluate(check) == []
    await line.close(4503)
    await expect(tab.at("#trouble")).to_be_visible()
    assert await tab.page.evaluate(check) == []
