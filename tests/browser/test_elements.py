"""Tests the elements of clock, credits and usage, and their sessions."""

import re
from datetime import UTC, datetime

import pytest
from playwright.async_api import expect

from tests.browser.element_fixtures import (
    CLOCK,
    EVERYTHING,
    NONE,
    NOTICES,
    ElementsPage,
    elements,
    usage,
)
from tests.browser.fixtures import chromium, mock_server
from tests.browser.mock_server import snapshot, stopped, tick, warning

__all__ = ["chromium", "elements", "mock_server"]

# The clock


async def test_the_clock_runs_between_ticks(elements: ElementsPage) -> None:
    line = await elements.begin()
    await elements.advance(7_400)
    await expect(elements.part("time")).to_have_text("0:07")
    await line.send(**tick(65_000))
    await expect(elements.part("time")).to_have_text("1:05")
    await expect(elements.at("taximeter-clock")).to_have_attribute("data-status", "running")
    await expect(elements.page.get_by_role("timer", name="Time")).to_be_visible()


async def test_a_clock_has_other_figures_and_tenths(elements: ElementsPage) -> None:
    await elements.begin(
        f'{CLOCK}<taximeter-clock session="session-1" figure="free" tenths></taximeter-clock>'
    )
    await elements.advance(7_400)
    free = elements.page.get_by_role("timer", name="Free time left")
    await expect(free).to_have_text("0:52.6")
    await elements.run(
        "() => document.querySelectorAll('taximeter-clock')[1].setAttribute('figure', 'remaining')"
    )
    remaining = elements.page.get_by_role("timer", name="Time left", exact=True)
    await expect(remaining).to_have_text("3:22.6")


async def test_an_element_may_wait_for_its_session(elements: ElementsPage) -> None:
    await elements.put('<taximeter-clock session="session-1"></taximeter-clock>')
    await expect(elements.part("time")).to_have_text("0:00")
    assert await elements.run("() => meter.state") == "idle"
    await elements.run("() => { meter.start({ kind: 'chat', sessionId: 'session-1' }); }")
    line = await elements.server.line()
    await line.welcome()
    await line.join(elapsed_ms=65_000)
    await expect(elements.part("time")).to_have_text("1:05")


async def test_a_cut_line_is_shown(elements: ElementsPage) -> None:
    line = await elements.begin(CLOCK, elapsed_ms=12_000)
    await expect(elements.part("time")).to_have_text("0:12")
    await expect(elements.part("as-of")).to_be_hidden()
    line.cut()
    await expect(elements.part("as-of")).to_have_text(re.compile(r"^as of \d\d:\d\d:\d\d$"))
    await elements.advance(10_000)
    line = await elements.server.line()
    await line.welcome()
    await line.join(elapsed_ms=30_000)
    await expect(elements.part("time")).to_have_text("0:30")
    await expect(elements.part("as-of")).to_be_hidden()


async def test_figures_are_as_of_the_loss_and_not_of_their_last_change(
    elements: ElementsPage,
) -> None:
    line = await elements.begin(f"{CLOCK}<taximeter-credits></taximeter-credits>")
    await expect(elements.part("figure")).to_have_text("2.50")
    await elements.page.clock.pause_at(datetime(2040, 1, 1, 12, 0, 0, tzinfo=UTC))
    line.cut()
    await elements.page.wait_for_function("() => meter.state === 'reconnecting'")
    await elements.page.clock.run_for(100)
    told = elements.at("taximeter-credits [part=as-of]")
    await expect(told).to_have_text("as of 12:00:00")


async def test_an_ended_session_shows_its_receipt(elements: ElementsPage) -> None:
    line = await elements.begin()
    await line.send(**stopped(1, elapsed_ms=210_000))
    await expect(elements.part("time")).to_have_text("3:30")
    await expect(elements.at("taximeter-clock")).to_have_attribute("data-status", "ended")
    line.cut()
    await elements.page.wait_for_function("() => meter.state === 'reconnecting'")
    await expect(elements.part("as-of")).to_be_hidden()


# Sessions and their holders


async def test_two_elements_are_one_start_and_the_last_one_leaves(elements: ElementsPage) -> None:
    line = await elements.begin(f"{CLOCK}{CLOCK}")
    await elements.run("() => main.firstElementChild.remove()")
    await elements.advance(0)
    await elements.mark(line)
    await elements.run("() => main.replaceChildren()")
    await elements.advance(0)
    assert (await line.receive("leave"))["session_id"] == "session-1"


async def test_a_moved_element_leaves_nothing(elements: ElementsPage) -> None:
    line = await elements.begin(f"{CLOCK}{NOTICES}<section></section>")
    await line.send(**warning(1))
    await expect(elements.part("toast")).to_have_count(1)
    await elements.run(
        """() => {
          const section = main.querySelector('section');
          for (let i = 0; i < 50; i++) {
            for (const element of main.querySelectorAll('taximeter-clock, taximeter-notices')) {
              (i % 2 ? main : section).prepend(element);
            }
          }
        }"""
    )
    await elements.advance(0)
    await elements.mark(line)
    await expect(elements.part("toast")).to_have_count(1)
    assert await elements.run("() => outstanding.subscriptions") == 2
    assert await elements.run("() => outstanding.frames.size") <= 2
    assert await elements.run("() => outstanding.timers.size") == 1
    await elements.run("() => main.replaceChildren()")
    await elements.advance(0)
    await line.receive("leave")
    sizes = "() => [outstanding.subscriptions, outstanding.frames.size, outstanding.timers.size]"
    assert await elements.run(sizes) == [0, 0, 0]


async def test_a_moved_toast_still_goes(elements: ElementsPage) -> None:
    line = await elements.begin(f"{CLOCK}{NOTICES}")
    await line.send(**warning(1))
    await expect(elements.part("toast")).to_have_count(1)
    await elements.run("() => main.prepend(main.querySelector('taximeter-notices'))")
    await elements.page.clock.fast_forward(9_000)
    await expect(elements.part("toast")).to_have_count(0)


async def test_removed_elements_are_not_kept(elements: ElementsPage) -> None:
    line = await elements.begin()
    await elements.run(
        """async (html) => {
          window.refs = [];
          for (let i = 0; i < 200; i++) {
            const holder = document.createElement('section');
            holder.innerHTML = html.replaceAll('session-1', `mount-${i}`);
            main.append(holder);
            refs.push(new WeakRef(meter.find(`mount-${i}`)), new WeakRef(holder.children[1]));
            await Promise.resolve();
            holder.remove();
            clock.advance(0);
          }
          clock.advance(10_000);
          await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        }""",
        EVERYTHING,
    )
    session = await elements.page.context.new_cdp_session(elements.page)
    await session.send("HeapProfiler.collectGarbage")
    assert await elements.run("() => refs.filter((ref) => ref.deref()).length") == 0
    assert await elements.run("() => outstanding.subscriptions") == 1
    assert line.is_open


async def test_attributes_that_change_together_start_one_session(elements: ElementsPage) -> None:
    """A framework sets one attribute after the other."""
    line = await elements.begin()
    await elements.run(
        """() => {
          const clock = main.firstElementChild;
          clock.setAttribute('session', 'session-2');
          clock.setAttribute('kind', 'recording');
          clock.setAttribute('counterpart', 'advisor-1');
        }"""
    )
    start = await line.receive("start")
    given = (start["session_id"], start["kind"], start["counterpart_id"])
    assert given == ("session-2", "recording", "advisor-1")
    await elements.advance(0)
    assert (await line.receive("leave"))["session_id"] == "session-1"


async def test_an_element_may_have_a_meter_of_its_own(elements: ElementsPage) -> None:
    await elements.run(
        """() => {
          elements.use(null);
          const clock = document.createElement('taximeter-clock');
          clock.setAttribute('session', 'session-1');
          clock.setAttribute('kind', 'chat');
          main.append(clock);
        }"""
    )
    await expect(elements.part("time")).to_have_text("0:00")
    assert await elements.run("() => meter.state") == "idle"
    await elements.run("() => { main.firstElementChild.meter = meter; }")
    line = await elements.server.line()
    await line.welcome()
    await line.join(elapsed_ms=5_000)
    await expect(elements.part("time")).to_have_text("0:05")


async def test_nothing_is_shown_of_the_user_before(elements: ElementsPage) -> None:
    line = await elements.begin(EVERYTHING)
    await line.send(**usage())
    await line.send(**warning(1))
    await expect(elements.part("toast")).to_have_count(1)
    await elements.run("() => meter.switchUser(null)")
    await expect(elements.part("figure")).to_have_text(NONE)
    await expect(elements.part("value").first).to_have_text(NONE)
    await expect(elements.part("time").first).to_have_text("0:00")
    await expect(elements.part("toast")).to_have_count(0)


# Credits and usage


async def test_credits_are_rounded_down(elements: ElementsPage) -> None:
    line = await elements.begin(
        f'{CLOCK}<taximeter-credits></taximeter-credits><taximeter-credits digits="4">',
        state="paused",
        credits="0.999999",
    )
    await expect(elements.part("amount")).to_have_text(["0.99", "0.9999"])
    await expect(elements.part("rest").last).to_have_text("99")
    credit = {"account_id": "user-1", "credits": "1", "delta": "1", "reason": "grant"}
    await line.send(type="credit", entry_id="entry-1", **credit)
    await expect(elements.part("amount")).to_have_text(["1.00", "1.0000"])
    await elements.run("() => main.querySelector('taximeter-credits').setAttribute('digits', '0')")
    await expect(elements.at("taximeter-credits").first).to_have_text("1 credit")


@pytest.mark.parametrize(
    ("digits", "shown"), [("none", "3"), ("-1", "3.1"), ("99", "3.141592"), ("", "3")]
)
async def test_a_strange_number_of_digits_breaks_nothing(
    elements: ElementsPage, digits: str, shown: str
) -> None:
    html = f'<taximeter-credits digits="{digits}"></taximeter-credits>{CLOCK}'
    await elements.begin(html, elapsed_ms=5_000, credits="3.141592")
    await expect(elements.part("amount")).to_have_text(shown)
    await expect(elements.part("time")).to_have_text("0:05")


async def test_credits_after_the_end_are_those_of_the_account(elements: ElementsPage) -> None:
    line = await elements.begin(
        f'{CLOCK}<taximeter-credits session="session-1"></taximeter-credits>'
    )
    await line.send(**stopped(1))
    await expect(elements.at("taximeter-clock")).to_have_attribute("data-status", "ended")
    credit = {"account_id": "user-1", "credits": "9", "delta": "5", "reason": "grant"}
    await line.send(type="credit", entry_id="entry-1", **credit)
    await expect(elements.part("figure")).to_have_text("9.00")


async def test_usage_is_live_and_warns_near_its_limit(elements: ElementsPage) -> None:
    line = await elements.begin(f"{CLOCK}<taximeter-usage></taximeter-usage>")
    await expect(elements.part("value").first).to_have_text(NONE)
    await line.send(**usage())
    await expect(elements.part("value").first).to_have_text("2 hrs of 10 hrs")
    meter = elements.page.get_by_role("meter", name="Your month")
    await expect(meter).to_have_attribute("aria-valuetext", "2 hrs of 10 hrs")
    await expect(elements.part("row").first).to_have_attribute("part", "row ok")
    await line.send(**usage(member_used_ms=28_800_000))
    await expect(elements.part("row").first).to_have_attribute("part", "row near")
    await line.send(**usage(member_used_ms=36_060_000))
    await expect(elements.part("row").first).to_have_attribute("part", "row over")
    await expect(elements.part("value").first).to_have_text("10 hrs 1 min of 10 hrs")
    assert await elements.part("bar").first.evaluate("(bar) => bar.style.inlineSize") == "100%"


async def test_usage_without_a_limit_is_text_without_a_bar(elements: ElementsPage) -> None:
    line = await elements.begin(f"{CLOCK}<taximeter-usage></taximeter-usage>")
    await line.send(**usage(member_limit_ms=None, org_used_ms=1, org_limit_ms=3_600_000))
    await expect(elements.part("value")).to_have_text(["2 hrs used", "1 min of 1 hr"])
    await expect(elements.page.get_by_role("meter")).to_have_count(1)
    await line.send(**usage(member_used_ms=0, member_limit_ms=0))
    await expect(elements.part("value").first).to_have_text("0 mins of 0 mins")
    await expect(elements.part("row").first).to_have_attribute("part", "row over")
    await expect(elements.part("row").last).to_be_hidden()


async def test_an_element_for_a_failure_does_not_start_the_session_again(
    elements: ElementsPage,
) -> None:
    """A new element tries again after all others are gone."""
    await elements.put(CLOCK)
    line = await elements.server.line()
    await line.welcome()
    start = await line.receive("start")
    refusal = {"code": "limit_reached", "message": "No.", "retryable": False, "limit": "credits"}
    await line.answer(start, type="error", **refusal)
    await expect(elements.at("taximeter-clock")).to_have_attribute("data-status", "failed")
    await elements.run(f"() => main.insertAdjacentHTML('beforeend', `{CLOCK}`)")
    await elements.advance(0)
    assert await elements.run("() => meter.find('session-1').getSnapshot().status") == "failed"
    await elements.run("() => main.replaceChildren()")
    await elements.advance(0)
    await elements.put(CLOCK)
    again = await line.receive("start")
    await line.answer(again, **snapshot())
    await expect(elements.at("taximeter-clock")).to_have_attribute("data-status", "running")
