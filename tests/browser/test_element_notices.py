"""Tests the element of notices: toasts, and the stop at a limit."""

import re

from playwright.async_api import expect

from tests.browser.element_fixtures import (
    CLOCK,
    EVERYTHING,
    NOTICES,
    ElementsPage,
    elements,
    stop_at,
    usage,
)
from tests.browser.fixtures import PAID, chromium, mock_server
from tests.browser.mock_server import snapshot, tick, warning

__all__ = ["chromium", "elements", "mock_server"]


async def test_a_toast_is_shown_once_after_a_reconnect(elements: ElementsPage) -> None:
    line = await elements.begin(f"{CLOCK}{NOTICES}")
    await line.send(**warning(1))
    await expect(elements.part("toast-text")).to_have_text("Your credits run out in 1:00.")
    await elements.page.get_by_role("button", name="Dismiss").click()
    free = {"type": "free_time", "seq": 2, "session_id": "session-1", **PAID}
    line = await elements.come_back(line, seq=2, missed=[warning(1), free])
    await expect(elements.part("toast-text")).to_have_text(
        "Your free time is over. Credits are used from now on."
    )
    await elements.page.get_by_role("button", name="Dismiss").click()
    line = await elements.come_back(line, seq=2, missed=[warning(1), free])
    await line.send(**tick(70_000))
    await expect(elements.part("time")).to_have_text("1:10")
    await expect(elements.part("toast")).to_have_count(0)


async def test_what_was_told_before_is_no_news(elements: ElementsPage) -> None:
    line = await elements.begin()
    await line.send(**warning(1))
    await line.send(**tick(5_000))
    await expect(elements.part("time")).to_have_text("0:05")
    await elements.run("(html) => main.insertAdjacentHTML('beforeend', html)", NOTICES)
    cleared = {**warning(2), "type": "limit_cleared", "limit": "member_minutes"}
    await line.send(**cleared)
    await expect(elements.part("toast-text")).to_have_text(["Your month: there is enough again."])


async def test_a_newer_toast_replaces_that_of_the_same_limit(elements: ElementsPage) -> None:
    line = await elements.begin(f"{CLOCK}{NOTICES}")
    await line.send(**warning(1))
    await line.send(**{**warning(2), "remaining_ms": 10_000})
    await expect(elements.part("toast-text")).to_have_text(["Your credits run out in 0:10."])
    await line.send(**{**warning(3), "type": "limit_cleared"})
    await expect(elements.part("toast-text")).to_have_text(["Credits: there is enough again."])


async def test_a_toast_goes_unless_it_has_the_focus(elements: ElementsPage) -> None:
    line = await elements.begin(f"{CLOCK}{NOTICES}")
    await line.send(**warning(1))
    await line.send(**{**warning(2), "limit": "member_minutes"})
    await expect(elements.part("toast")).to_have_count(2)
    await elements.page.keyboard.press("Tab")
    await elements.page.clock.fast_forward(9_000)
    await expect(elements.part("toast-text")).to_have_text(["Your credits run out in 1:00."])
    await line.send(**{**warning(3), "limit": "member_minutes"})
    await expect(elements.part("toast")).to_have_count(2)
    await elements.page.keyboard.press("Enter")
    await expect(elements.part("toast")).to_have_count(1)
    await expect(elements.page.get_by_role("button", name="Dismiss")).to_be_focused()
    await elements.page.keyboard.press("Enter")
    await expect(elements.part("toast")).to_have_count(0)


async def test_the_stop_counts_its_grace_down(elements: ElementsPage) -> None:
    line = await elements.begin(
        f'{CLOCK}<taximeter-notices session="session-1" upgrade-href="/plans">'
        '<button slot="actions">Save</button></taximeter-notices>'
    )
    await line.send(**warning(1))
    await expect(elements.part("toast")).to_have_count(1)
    await stop_at(line)
    alert = elements.page.get_by_role("alert")
    await expect(alert).to_contain_text("Stopped: out of credits")
    await expect(alert).to_contain_text("Top up to go on where you were.")
    await expect(elements.part("toast")).to_have_count(0)
    await expect(elements.part("grace")).to_have_text("15 seconds left")
    await elements.advance(14_000)
    await expect(elements.part("grace")).to_have_text("1 second left")
    await elements.advance(1_000)
    await expect(elements.part("grace")).to_be_hidden()
    upgrade = elements.page.get_by_role("link", name="Upgrade")
    await expect(upgrade).to_have_attribute("href", "/plans")
    await elements.page.keyboard.press("Tab")
    await expect(upgrade).to_be_focused()
    await elements.page.keyboard.press("Tab")
    await expect(elements.page.get_by_role("button", name="Save")).to_be_focused()
    await line.send(**snapshot(elapsed_ms=210_000, credits="5", seq=3, **PAID))
    await expect(elements.part("limit")).to_be_hidden()


async def test_a_stop_of_unknown_age_has_no_grace(elements: ElementsPage) -> None:
    stopped = {"state": "stopping", "limit": "org_minutes", "seq": 3, "ends_at": None}
    await elements.begin(f"{CLOCK}{NOTICES}", **stopped)
    alert = elements.page.get_by_role("alert")
    await expect(alert).to_have_text(
        re.compile("month is used upNothing more is charged. Save your work now.$")
    )
    await expect(elements.part("grace")).to_be_hidden()


async def test_ticks_announce_nothing(elements: ElementsPage) -> None:
    line = await elements.begin(EVERYTHING)
    await line.send(**usage())
    await line.send(**warning(1))
    await expect(elements.part("toast")).to_have_count(1)
    await elements.run(
        """() => {
          window.announced = [];
          const watch = { subtree: true, childList: true, characterData: true, attributes: true };
          const look = (changes) => announced.push(...changes.map(({ target, type }) =>
            `${type} ${target.outerHTML ?? target.data}`));
          const loud = '[role=status], [role=alert], [aria-live]:not([aria-live=off])';
          for (const { shadowRoot } of main.querySelectorAll('*')) {
            for (const region of shadowRoot?.querySelectorAll(loud) ?? []) {
              new MutationObserver(look).observe(region, watch);
            }
          }
        }"""
    )
    for second in range(1, 60):
        await line.send(**tick(second * 1000))
    await expect(elements.part("time").first).to_have_text("0:59")
    await stop_at(line)
    await expect(elements.part("grace")).to_have_text("15 seconds left")
    await elements.run("() => { announced.length = 0; }")
    await elements.advance(5_000)
    await expect(elements.part("grace")).to_have_text("10 seconds left")
    assert await elements.run("() => announced") == []
