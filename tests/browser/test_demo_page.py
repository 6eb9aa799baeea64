"""Tests the page at ``/`` like a person, against a scripted server."""

import re
from urllib.parse import parse_qs

import pytest
from playwright.async_api import BrowserContext, expect

from tests.browser.fixtures import PAID, Tab, chromium, context, mock_server, tab
from tests.browser.mock_server import (
    SERVER_TIME_AT,
    receipt,
    snapshot,
    stopped,
    tick,
    warning,
    welcome,
)

__all__ = ["chromium", "context", "mock_server", "tab"]

RECEIPT = """\
11:06:40 - 11:07:40
1:00
11:07:40 - 11:08:00
0:20
not counted
11:08:00 - 11:08:10
0:10
11:08:10 - 11:08:40
0:30
gap, not billed
11:08:40 - 11:09:40
1:00
11:09:40 - 11:10:40
0:59

Time counted
3:30
Free time
- 1:00
Billed
2:30
Minutes on the record
4

Minute 1, 60 s
0.000000
Minute 2, 60 s
1.000000
Minute 3, 60 s
1.000000
Minute 4, 30 s
0.516667

Credits
2.516667"""


# Before the ride


async def test_the_page_shows_the_user_and_the_balance(tab: Tab) -> None:
    await tab.open()
    await tab.line()
    await expect(tab.credits).to_have_text("2.5000")
    await expect(tab.at("[data-user]:visible")).to_have_text("user-1")
    await expect(tab.at("#connection")).to_have_text("Live")
    await expect(tab.at("#phase")).to_have_text("For hire")


@pytest.mark.parametrize("kind", ["chat", "recording"])
@pytest.mark.parametrize("is_fast", [False, True])
async def test_the_choice_decides_the_kind(tab: Tab, kind: str, is_fast: bool) -> None:
    await tab.open()
    line = await tab.line()
    await tab.choose(tab.page.get_by_label(kind.capitalize()))
    await tab.choose(tab.page.get_by_role("switch"), is_fast)
    await tab.page.get_by_role("button", name="Start the meter").click()
    start = await line.receive("start")
    assert start["kind"] == (f"{kind}-demo" if is_fast else kind)
    speed = 10 if is_fast else 1
    changes = {"session_id": start["session_id"], "kind": start["kind"], "speed": speed}
    await line.answer(start, **snapshot(**changes))
    await expect(tab.at("#ride-title")).to_have_text(kind.capitalize())
    await expect(tab.at("#demonstration")).to_be_visible(visible=is_fast)


async def test_the_page_works_with_the_keyboard(tab: Tab) -> None:
    await tab.open()
    line = await tab.line()
    await expect(tab.at("#start")).to_be_visible()
    await tab.page.keyboard.press("Tab")
    await tab.page.keyboard.press("ArrowDown")
    await tab.page.keyboard.press("Tab")
    await tab.page.keyboard.press("Space")
    await tab.page.keyboard.press("Tab")
    await tab.page.keyboard.press("Enter")
    assert (await line.receive("start"))["kind"] == "recording-demo"


async def test_a_refused_start_shows_the_reason(tab: Tab) -> None:
    await tab.open()
    line = await tab.line()
    await tab.page.get_by_role("button", name="Start the meter").click()
    problem = {"code": "limit_reached", "message": "No.", "retryable": False, "limit": "credits"}
    await line.answer(await line.receive("start"), type="error", **problem)
    await expect(tab.at("#start-error")).to_have_text(re.compile("Top up"))
    await expect(tab.at("#start")).to_be_enabled()


async def test_a_server_without_a_demonstration_asks_for_a_token(tab: Tab) -> None:
    tab.has_demonstration = False
    await tab.open()
    await expect(tab.page.get_by_role("heading", name="Whose meter is it?")).to_be_visible()
    await tab.page.get_by_label("Token").fill("pasted-token")
    await tab.page.get_by_role("button", name="Connect").click()
    line = await tab.server.line()
    auth = await line.receive("auth")
    assert auth["token"] == "pasted-token"
    await line.answer(auth, **welcome())
    await expect(tab.at("#start")).to_be_visible()


async def test_a_refused_token_can_be_replaced(tab: Tab) -> None:
    tab.has_demonstration = False
    await tab.open()
    await tab.page.get_by_label("Token").fill("wrong-token")
    await tab.page.get_by_role("button", name="Connect").click()
    line = await tab.server.line()
    await line.receive("auth")
    await line.close(4500)
    await expect(tab.at("#token-error")).to_have_text("That token was refused.")
    await tab.page.get_by_label("Token").fill("right-token")
    await tab.page.get_by_role("button", name="Connect").click()
    assert (await tab.line()).path == "/v1/ws"


# The ride


async def test_free_time_drains_and_credits_stay(tab: Tab) -> None:
    line = await tab.ride()
    await tab.send(line, tick(17_400))
    await expect(tab.at("[part=time]")).to_have_text("0:17")
    await expect(tab.at("[part=tenths]")).to_have_text(".4")
    await expect(tab.at("#phase")).to_have_text("Free time")
    await expect(tab.at("#dial-note")).to_have_text("Free time left 0:43")
    await expect(tab.credits).to_have_text("2.5000")
    await expect(tab.at("#limit-name")).to_have_text("Your credits run out")
    await expect(tab.at("#limit-when")).to_have_text("at 11:09:52, in 3:13")
    part = await tab.at("#arc").evaluate("(arc) => arc.style.getPropertyValue('--part')")
    assert float(part) == pytest.approx(42.6 / 60)


async def test_the_display_runs_between_ticks(tab: Tab) -> None:
    line = await tab.ride(elapsed_ms=60_000, **PAID)
    await tab.send(line, tick(61_000))
    await expect(tab.at("[part=time]")).to_have_text("1:01")
    await tab.page.clock.run_for(600)
    await expect(tab.at("[part=tenths]")).to_have_text(re.compile(r"\.[56]"))
    shown = float(await tab.credits.text_content())
    assert shown == pytest.approx(2.49, abs=0.001)


async def test_paid_time_is_amber_and_named(tab: Tab) -> None:
    line = await tab.ride()
    await tab.send(line, {"type": "free_time", "seq": 1, **PAID})
    await expect(tab.toast).to_have_text(re.compile("free time is over"))
    await tab.send(line, tick(90_000))
    await expect(tab.at("#phase")).to_have_text("Using paid credits")
    await expect(tab.at("#dial-note")).to_have_text("Minute 2")
    await tab.page.clock.run_for(1_100)
    await expect(tab.credits).to_have_text("2.0000")


async def test_a_warning_stays_until_it_is_cleared(tab: Tab) -> None:
    line = await tab.ride(elapsed_ms=150_000, **PAID)
    await tab.send(line, warning(1))
    await expect(tab.toast).to_have_text("Your credits run out in 1:00.")
    await expect(tab.at("body")).to_have_attribute("data-alert", "warning")
    cleared = {"type": "limit_cleared", "seq": 2, "limit": "credits", "remaining_ms": 360_000}
    await tab.send(line, cleared)
    await expect(tab.at("body")).to_have_attribute("data-alert", "")
    await expect(tab.toast).to_have_text("Credits: there is enough again.")
    await expect(tab.at("[part~=toast]")).to_have_count(1)
    await tab.page.clock.run_for(10_000)
    await expect(tab.at("[part~=toast]")).to_have_count(0)


async def test_drawing_cancels_only_its_own_timers(tab: Tab) -> None:
    """Drawing cancels no timer except its own.

    Ids of frames and timers overlap: a wrong cancellation kept a toast, and could stop the client.
    """
    line = await tab.ride()
    await tab.page.evaluate(
        "() => { const clear = window.clearTimeout; let frame = 1e6; window.strange = [];"
        " window.requestAnimationFrame = () => (frame += 1);"
        " window.clearTimeout = (id) => { if (id >= 1e6) window.strange.push(id); clear(id); }; }"
    )
    for second in range(1, 4):
        await tab.send(line, tick(1_000 * second))
        await expect(tab.at("#dial-note")).to_have_text(f"Free time left 0:{60 - second}")
    assert await tab.page.evaluate("() => window.strange") == []


async def test_minutes_appear_row_by_row_the_newest_first(tab: Tab) -> None:
    line = await tab.ride()
    await expect(tab.at("#tape-empty")).to_be_visible()
    for minute, price in ((0, "0"), (1, "1"), (1, "1")):
        await tab.send(line, {"type": "minute", "minute": minute, "seconds": 60, "credits": price})
    await expect(tab.at("#minutes tr")).to_have_text([re.compile("^2601.0"), re.compile("^1600.0")])
    await expect(tab.at("#tape-empty")).to_be_hidden()


async def test_the_buttons_pause_resume_and_stop(tab: Tab) -> None:
    line = await tab.ride()
    await tab.page.get_by_role("button", name="Pause").click()
    request = await line.receive("pause")
    still = snapshot(session_id=tab.session_id, state="paused", elapsed_ms=12_000)
    await line.answer(request, **still)
    await expect(tab.at("#phase")).to_have_text("Paused")
    await tab.page.clock.run_for(5_000)
    await expect(tab.at("[part=time]")).to_have_text("0:12")
    await tab.page.get_by_role("button", name="Go on").click()
    await line.answer(await line.receive("resume"), **{**still, "state": "active"})
    await tab.page.get_by_role("button", name="Stop").click()
    assert (await line.receive("stop"))["session_id"] == tab.session_id


async def test_a_top_up_is_requested_and_shown(tab: Tab) -> None:
    line = await tab.ride(state="paused")
    await tab.page.get_by_role("button", name="+5").click()
    credit = {"account_id": "user-1", "credits": "7.5", "delta": "5", "reason": "grant"}
    await line.send(type="credit", entry_id="entry-1", **credit)
    await expect(tab.credits).to_have_text("7.5000")
    await expect(tab.toast).to_have_text("5 credits were added.")
    request = tab.requests[-1]
    assert (request["path"], request["amount"]) == ("/demo/top-up", "5")
    assert request["headers"]["authorization"] == "Bearer token-1"
    assert len(request["headers"]["idempotency-key"]) == 16


async def test_the_connection_state_is_shown(tab: Tab) -> None:
    line = await tab.ride(elapsed_ms=12_000)
    line.cut()
    await expect(tab.at("#connection")).to_have_text("Reconnecting")
    await expect(tab.at("#phase")).to_have_text("Reconnecting")
    await tab.page.clock.run_for(600)
    await expect(tab.at("[part=time]")).to_have_text("0:12")
    line = await tab.line()
    start = await line.receive("start")
    await line.answer(start, **snapshot(session_id=tab.session_id, elapsed_ms=30_000))
    await expect(tab.at("[part=time]")).to_have_text("0:30")
    await expect(tab.at("#connection")).to_have_text("Live")
    await line.close(4503)
    await expect(tab.at("#connection")).to_have_text("Offline")


# The end of the ride


async def test_the_stop_is_shown_and_a_top_up_continues(tab: Tab) -> None:
    line = await tab.ride(elapsed_ms=209_000, remaining_ms=1_000, **PAID)
    await tab.send(line, warning(1))
    await tab.reach_limit(line)
    await expect(tab.at("[part~=toast]")).to_have_count(0)
    await expect(tab.page.get_by_role("alert")).to_contain_text("Stopped: out of credits")
    await expect(tab.at("#notices [part=text]")).to_contain_text("The meter stopped at 11:06:40")
    await expect(tab.at("#phase")).to_have_text("Stopped")
    await expect(tab.at("[part=time]")).to_have_text("3:30")
    await tab.page.clock.run_for(5_100)
    await expect(tab.at("[part=seconds]")).to_have_text("10")
    await tab.page.get_by_role("button", name="Top up 5 credits and go on").click()
    resume = await line.receive("resume")
    assert tab.requests[-1]["path"] == "/demo/top-up"
    going_on = snapshot(elapsed_ms=210_000, credits="5", remaining_ms=300_000, **PAID)
    await line.answer(resume, **{**going_on, "session_id": tab.session_id})
    await expect(tab.at("#notices [part~=limit]")).to_be_hidden()
    await expect(tab.at("#phase")).to_have_text("Using paid credits")


async def test_a_used_up_month_cannot_be_topped_up(tab: Tab) -> None:
    line = await tab.ride(limit="org_minutes")
    await tab.reach_limit(line, "org_minutes")
    await expect(tab.at("#notices [part=title]")).to_contain_text("month is used up")
    await expect(tab.at("#go-on")).to_be_hidden()
    await tab.page.get_by_role("button", name="End and see the receipt").click()
    assert (await line.receive("stop"))["session_id"] == tab.session_id


async def test_the_receipt_lists_everything(tab: Tab) -> None:
    line = await tab.ride()
    for minute, seconds, price in ((0, 60, "0"), (1, 60, "1"), (2, 60, "1"), (3, 30, "0.516667")):
        row = {"minute": minute, "seconds": seconds, "credits": price}
        await tab.send(line, {"type": "minute", **row})
    start = SERVER_TIME_AT
    segments = [(0, 60_000), (80_000, 90_000), (120_000, 180_000), (180_400, 240_000)]
    stretches = [{"from_at": start + a, "to_at": start + b} for a, b in segments]
    bill = stopped(1, reason="limit", segments=stretches, credits="2.516667")
    await tab.send(line, {**bill, "limit": "credits"})
    paper = tab.at("#receipt")
    await expect(paper).to_contain_text("Chat, out of credits")
    text = "\n\n".join(await paper.locator("dl").all_inner_texts())
    assert text.replace("\N{EN DASH}", "-").replace("\N{MINUS SIGN}", "-") == RECEIPT
    await tab.page.get_by_role("button", name="Start another").click()
    await expect(tab.at("#phase")).to_have_text("For hire")
    await expect(tab.at("#start")).to_be_enabled()


# Reloads, and other tabs


async def test_a_reload_returns_to_the_session(tab: Tab) -> None:
    line = await tab.ride()
    await tab.send(line, {"type": "minute", "minute": 0, "seconds": 60, "credits": "0"})
    await tab.send(line, warning(4))
    await expect(tab.at("body")).to_have_attribute("data-alert", "warning")
    await tab.page.reload()
    line = await tab.line()
    start = await line.receive("start")
    assert (start["session_id"], start["last_seq"]) == (tab.session_id, 4)
    assert tab.requests[-1]["user_id"] == "user-1"
    await line.answer(start, **snapshot(session_id=tab.session_id, elapsed_ms=70_000, seq=4))
    await expect(tab.at("[part=time]")).to_have_text("1:10")
    await expect(tab.at("#minutes tr")).to_have_count(1)
    await expect(tab.at("body")).to_have_attribute("data-alert", "warning")


async def test_a_reload_within_the_grace_still_counts_it_down(tab: Tab) -> None:
    line = await tab.ride()
    await tab.reach_limit(line)
    await expect(tab.at("#notices [part~=limit]")).to_be_visible()
    await tab.page.reload()
    line = await tab.line()
    start = await line.receive("start")
    assert start["last_seq"] == 2  # the stop comes again
    reached = {"type": "limit_reached", "seq": 3, "limit": "credits", "elapsed_ms": 210_000}
    missed = [{**reached, "stopped_at": SERVER_TIME_AT, "grace_ms": 15_000}]
    state = {"state": "stopping", "elapsed_ms": 210_000, "remaining_ms": 0, "seq": 3, **PAID}
    await line.answer(start, **snapshot(session_id=tab.session_id, missed=missed, **state))
    await expect(tab.at("#notices [part=title]")).to_have_text("Stopped: out of credits")
    await expect(tab.at("[part=seconds]")).to_have_text(re.compile("1[45]"))


async def test_a_session_that_ended_meanwhile_shows_its_receipt(tab: Tab) -> None:
    await tab.ride()
    tab.receipt = receipt(reason="disconnected")
    await tab.page.reload()
    line = await tab.line()
    problem = {"code": "session_ended", "message": "It has ended.", "retryable": False}
    await line.answer(await line.receive("start"), type="error", **problem)
    await expect(tab.at("#receipt")).to_contain_text("after the connection was lost")


async def test_a_second_tab_shows_the_same_session(tab: Tab, context: BrowserContext) -> None:
    await tab.ride()
    await expect(tab.at("#second-tab")).to_have_attribute("href", re.compile("session="))
    href = await tab.at("#second-tab").get_attribute("href")
    assert href is not None
    shared = parse_qs(href.partition("#")[2])
    assert shared == {"session": [tab.session_id], "kind": ["chat"], "user": ["user-1"]}
    second = Tab(await context.new_page(), tab.server)
    second.session_id = tab.session_id
    await second.open(href)
    line = await second.line()
    start = await line.join(elapsed_ms=130_000, state="paused", **PAID)
    assert (start["session_id"], start["kind"]) == (tab.session_id, "chat")
    await expect(second.at("[part=time]")).to_have_text("2:10")
    await second.send(line, {"type": "minute", "minute": 2, "seconds": 60, "credits": "1"})
    await expect(second.at("#minutes tr").last).to_have_text(re.compile("^Minutes 1 to 2"))
    assert "session" not in second.page.url
    assert second.faults == []
