"""Tests the page with a failing connection, and in a late tab."""

import re

from playwright.async_api import BrowserContext, expect

from tests.browser.fixtures import PAID, Tab, chromium, context, mock_server, tab
from tests.browser.mock_server import Message, snapshot, stopped

__all__ = ["chromium", "context", "mock_server", "tab"]


def row(minute: int, seconds: int = 60, price: str = "1") -> Message:
    return {"minute": minute, "seconds": seconds, "credits": price}


ALL_ROWS = [row(0, price="0"), row(1), row(2), row(3, 30, "0.5")]


async def minutes_on_paper(tab: Tab) -> list[str]:
    """The lines of the receipt that name a minute."""
    await expect(tab.at("#receipt")).to_contain_text("Minutes on the record")
    lines: list[str] = await tab.at("#receipt dt").all_inner_texts()
    return [line for line in lines if re.match(r"Minute \d", line)]


# No connection


async def test_the_page_explains_why_it_cannot_connect(tab: Tab) -> None:
    busy = {"code": "unavailable", "message": "the database is away", "retryable": True}
    problem = {"code": "unavailable", "detail": "the database is away"}
    await tab.page.route("**/v1/stream", lambda route: route.fulfill(status=503, json=problem))
    await tab.open()
    trouble = tab.at("#trouble")
    for _ in range(2):  # the third attempt is a stream
        await expect(trouble).to_be_hidden()
        line = await tab.server.line()
        await line.answer(await line.receive("auth"), type="error", **busy)
        await line.close(1013)
        await expect(tab.at("#connection")).to_have_text("Reconnecting")
        await tab.page.clock.run_for(10_000)
    await expect(trouble).to_have_text(
        re.compile("cannot reach the meter. The database is away. It keeps trying.")
    )
    await tab.page.get_by_role("button", name="Try now").click()
    await tab.line()
    await expect(trouble).to_be_hidden()
    await expect(tab.at("#start")).to_be_visible()


async def test_the_page_reports_a_silent_server(tab: Tab) -> None:
    line = await tab.ride(elapsed_ms=70_000, **PAID)
    await tab.page.unroute("**/demo/*")
    await tab.page.route("**/demo/*", lambda route: route.abort())
    line.cut()
    await expect(tab.at("#connection")).to_have_text("Reconnecting")
    for _ in range(4):
        await tab.page.clock.run_for(10_000)
    await expect(tab.at("#trouble")).to_contain_text("The server does not answer. It keeps trying.")


async def test_a_refused_page_can_connect_again(tab: Tab) -> None:
    line = await tab.ride(elapsed_ms=70_000, **PAID)
    await line.close(4503, "too many sockets of this user")
    await expect(tab.at("#trouble")).to_contain_text("Too many sockets of this user.")
    await expect(tab.at("#connection")).to_have_text("Offline")
    await tab.page.get_by_role("button", name="Try again").click()
    line = await tab.line()
    await line.join(elapsed_ms=71_000, **PAID)
    await expect(tab.at("#trouble")).to_be_hidden()
    await expect(tab.at("[part=time]")).to_have_text("1:11")
    # The session still has one listener of each kind.
    await tab.send(line, {"type": "free_time", "seq": 1, **PAID})
    await expect(tab.page.locator("[part~=toast]", has_text="free time")).to_have_count(1)


async def test_a_refused_token_can_be_replaced_during_a_ride(tab: Tab) -> None:
    line = await tab.ride(elapsed_ms=70_000, **PAID)
    await line.close(4500)
    await expect(tab.page.get_by_role("heading", name="Whose meter is it?")).to_be_visible()
    await tab.page.get_by_label("Token").fill("right-token")
    await tab.page.get_by_role("button", name="Connect").click()
    line = await tab.line()
    await line.join(elapsed_ms=71_000, **PAID)
    await expect(tab.at("[part=time]")).to_have_text("1:11")
    await tab.send(line, {"type": "free_time", "seq": 1, **PAID})
    await expect(tab.page.locator("[part~=toast]", has_text="free time")).to_have_count(1)


# The stop, and the minutes


async def test_the_stop_shows_the_figures_of_its_snapshot(tab: Tab) -> None:
    line = await tab.ride(elapsed_ms=203_400, credits="0.11", remaining_ms=6_600, **PAID)
    await expect(tab.credits).to_have_text("0.1100")
    await tab.reach_limit(line)
    await expect(tab.credits).to_have_text("0.0000")
    await expect(tab.at("[part=time]")).to_have_text("3:30")


async def test_a_late_tab_lists_earlier_minutes(tab: Tab, context: BrowserContext) -> None:
    first_line = await tab.ride()
    for one in ALL_ROWS[:3]:
        await tab.send(first_line, {"type": "minute", **one})
    await expect(tab.at("#second-tab")).to_have_attribute("href", re.compile("session="))
    href = await tab.at("#second-tab").get_attribute("href")
    assert href is not None
    second = Tab(await context.new_page(), tab.server)
    second.session_id, second.recorded = tab.session_id, ALL_ROWS[:2]
    await second.open(href)
    line = await second.line()
    await line.join(elapsed_ms=130_000, **PAID)
    await expect(second.at("#minutes tr")).to_have_text(
        [re.compile("^2601.0"), re.compile("^1600.0")]
    )
    # The list includes minutes announced while the record is read, and after it.
    await second.send(line, {"type": "minute", **ALL_ROWS[2]})
    for shown, its_line in ((tab, first_line), (second, line)):
        await shown.send(its_line, {"type": "minute", **ALL_ROWS[3]})
        await shown.send(its_line, stopped(1, reason="limit", session_id=tab.session_id))
    listed = await minutes_on_paper(tab)
    assert listed == [f"Minute {one['minute'] + 1}, {one['seconds']} s" for one in ALL_ROWS]
    assert await minutes_on_paper(second) == listed
    assert second.faults == []


async def test_a_receipt_after_a_reload_lists_every_minute(tab: Tab) -> None:
    await tab.ride()
    tab.receipt = stopped(1, session_id=tab.session_id)["receipt"]
    tab.recorded = ALL_ROWS
    await tab.page.reload()
    line = await tab.line()
    problem = {"code": "session_ended", "message": "It has ended.", "retryable": False}
    await line.answer(await line.receive("start"), type="error", **problem)
    await expect(tab.at("#receipt")).to_contain_text("Minute 4, 30 s")
    assert len(await minutes_on_paper(tab)) == 4


async def test_an_unreadable_record_leaves_the_known_minutes(tab: Tab) -> None:
    line = await tab.ride()
    await tab.send(line, {"type": "minute", **ALL_ROWS[2]})
    await tab.send(line, snapshot(elapsed_ms=185_000, **PAID))
    await expect(tab.at("#minutes tr").last).to_have_text(re.compile("^Minutes 1 to 2"))
    await tab.send(line, stopped(1, session_id=tab.session_id))
    assert await minutes_on_paper(tab) == ["Minute 3, 60 s"]
