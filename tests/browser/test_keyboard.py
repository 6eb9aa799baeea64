"""Tests the page and the elements with the keyboard alone."""

from typing import Any

from playwright.async_api import Page, expect

from tests.browser.element_fixtures import (
    CLOCK,
    EVERYTHING,
    ElementsPage,
    elements,
    stop_at,
    usage,
)
from tests.browser.fixtures import Tab, chromium, context, mock_server, tab
from tests.browser.mock_server import snapshot, stopped, warning
from tests.browser.test_demo_before import ESTIMATE, listed

__all__ = ["chromium", "context", "elements", "mock_server", "tab"]

STEPS_MAX = 60
CONTROLS = """() => {
  const kinds = 'a[href], button, input, select, textarea, [tabindex]:not([tabindex="-1"])';
  const inside = (root) => [...root.querySelectorAll('*')].flatMap((element) => [
    ...(element.matches(kinds) ? [element] : []),
    ...(element.shadowRoot ? inside(element.shadowRoot) : []),
  ]);
  window.nameOf = (element) => (element.labels?.[0]?.textContent.trim()
    || element.ariaLabel || element.textContent.trim() || element.id).replace(/\\s+/g, ' ');
  // The keyboard reaches a group of radio buttons at once, and arrows choose among them.
  return inside(document)
    .filter((element) => !element.disabled && element.checkVisibility({ visibilityProperty: true }))
    .filter(({ type, checked }) => type !== 'radio' || checked)
    .map(nameOf);
}"""
FOCUSED = """() => {
  let element = document.activeElement;
  while (element?.shadowRoot?.activeElement) element = element.shadowRoot.activeElement;
  if (!element || element === document.body) return null;
  const isMarked = [element, element.nextElementSibling, element.parentElement].some((one) => {
    if (!one) return false;
    const { outlineStyle, outlineWidth } = getComputedStyle(one);
    return outlineStyle !== 'none' && parseFloat(outlineWidth) >= 1;
  });
  return [nameOf(element), isMarked];
}"""


async def reach_all(page: Page) -> list[str]:
    """Goes through the page by the tabulator.

    It must reach every control, and show where it is. Returns the controls in its order.
    """
    expected: list[str] = await page.evaluate(CONTROLS)
    await page.evaluate("() => document.activeElement.blur()")
    reached: list[str] = []
    for _ in range(STEPS_MAX):
        await page.keyboard.press("Tab")
        found: Any = await page.evaluate(FOCUSED)
        if found is None:
            if len(reached) >= len(expected):
                break
            continue  # past the last control, where the browser's own begin
        name, is_marked = found
        assert is_marked, f"nothing shows that {name!r} has the focus"
        reached.append(name)
        if len(reached) >= len(expected) and sorted(reached) == sorted(expected):
            break
    assert sorted(reached) == sorted(expected), (reached, expected)
    return reached


async def work(page: Page, name: str, key: str = "Enter") -> None:
    """Goes to a control by its name, and presses it."""
    await page.evaluate(CONTROLS)
    for _ in range(STEPS_MAX):
        found: Any = await page.evaluate(FOCUSED)
        if found is not None and found[0].startswith(name):
            await page.keyboard.press(key)
            return
        await page.keyboard.press("Tab")
    raise AssertionError(f"the keyboard does not reach {name!r}")


async def test_a_ride_needs_the_keyboard_only(tab: Tab) -> None:
    page = tab.page
    tab.estimate, tab.past = ESTIMATE, [listed("chat-2"), listed("chat-1")]
    await tab.open()
    line = await tab.line()
    await expect(tab.at("#past-list button")).to_have_count(1)
    assert len(await reach_all(page)) == 8
    await work(page, "Show more")
    await expect(tab.at("#past-list button")).to_have_count(2)
    await work(page, "+5")
    await expect(tab.at("#start")).to_be_enabled()
    await work(page, "Chat Free time", "ArrowDown")
    await expect(page.get_by_label("Recording")).to_be_checked()
    await work(page, "Fast demonstration", "Space")
    await work(page, "Start the meter")
    start = await line.receive("start")
    assert (start["kind"], tab.requests[-1]["path"]) == ("recording-demo", "/demo/top-up")
    tab.session_id = start["session_id"]
    await line.answer(start, **snapshot(session_id=tab.session_id))
    await tab.send(line, warning(1))
    await expect(tab.toast).to_be_visible()

    assert len(await reach_all(page)) == 8
    await work(page, "Dismiss")
    await expect(tab.at("[part=toast]")).to_have_count(0)
    await work(page, "Pause", "Space")
    await line.answer(await line.receive("pause"), **snapshot(session_id=tab.session_id))
    await tab.reach_limit(line)
    await expect(tab.at("#notices [part~=limit]")).to_be_visible()
    await expect(page.get_by_role("region", name="Notices")).to_be_focused()
    assert await reach_all(page) == [
        *("Top up 5 credits and go on", "End and see the receipt"),
        *("+1", "+5", "+20", "MinuteSeconds Credits", "Show this session in a second tab"),
    ]
    await work(page, "End and see the receipt")
    stop = await line.receive("stop")
    await line.answer(stop, **{**stopped(4), "session_id": tab.session_id})
    await expect(tab.at("#receipt")).to_be_visible()

    await page.evaluate("() => { window.print = () => { window.isPrinted = true; }; }")
    assert await reach_all(page) == ["Start another", "Print"]
    await work(page, "Print", "Space")
    assert await page.evaluate("() => window.isPrinted")
    await work(page, "Start another")
    await expect(tab.at("#start")).to_be_visible()


async def test_a_token_and_a_new_attempt_need_the_keyboard_only(tab: Tab) -> None:
    tab.has_demonstration = False
    await tab.open()
    await expect(tab.at("#token")).to_be_visible()
    assert await reach_all(tab.page) == ["Token", "Connect"]
    await work(tab.page, "Token", "t")
    await work(tab.page, "Connect")
    line = await tab.server.line()
    assert (await line.receive("auth"))["token"] == "t"
    await line.close(4503)
    await expect(tab.at("#trouble")).to_be_visible()
    await work(tab.page, "Try again")
    await (await tab.server.line()).receive("auth")


async def test_the_keyboard_reaches_every_control_of_the_elements(elements: ElementsPage) -> None:
    line = await elements.begin(EVERYTHING)
    await line.send(**usage())
    await line.send(**warning(1))
    await line.send(**{**warning(2), "limit": "member_minutes"})
    await expect(elements.part("toast")).to_have_count(2)
    assert await reach_all(elements.page) == ["Dismiss", "Dismiss"]
    for left in (1, 0):
        await work(elements.page, "Dismiss", "Space")
        await expect(elements.part("toast")).to_have_count(left)
    await stop_at(line)
    await expect(elements.part("grace")).to_be_visible()
    assert await reach_all(elements.page) == ["Upgrade", "End now"]


async def test_figures_take_no_focus(elements: ElementsPage) -> None:
    line = await elements.begin(f"{CLOCK}<taximeter-credits></taximeter-credits>")
    await line.send(**usage())
    assert await reach_all(elements.page) == []
