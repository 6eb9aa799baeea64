"""Tests the old hooks' names with pages of the old shape."""

from typing import Any

import pytest

from tests.browser.fixtures import ClientPage, chromium, mock_server
from tests.browser.mock_server import BrowserSocket, Message, snapshot, stopped, tick, warning
from tests.browser.react_fixtures import begin, heard, react

__all__ = ["chromium", "mock_server", "react"]

MINUTE_MS = 60_000


def usage(used: int, limit: int | None, **changes: Any) -> Message:
    """A ``usage`` of the member, in minutes."""
    return {
        "type": "usage",
        "month": "2026-11",
        "member_used_ms": used * MINUTE_MS,
        "member_limit_ms": None if limit is None else limit * MINUTE_MS,
        "org_used_ms": None,
        "org_limit_ms": None,
        **changes,
    }


async def text_is(react: ClientPage, selector: str, expected: str) -> None:
    await react.page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent === text",
        arg=[selector, expected],
    )


async def shows(react: ClientPage, expected: str) -> None:
    """Waits until the page's text contains this."""
    await react.page.wait_for_function("(expected) => text().includes(expected)", arg=expected)


# The chat page: SimpleTimeDisplay


async def test_the_chat_page_shows_its_time(react: ClientPage) -> None:
    chat = """app(h(legacy.SimpleTimeDisplay, { advisorId: 'advisor-1', chatId: 'session-1' }))"""
    await react.run(f"() => render({chat})")
    line = await react.server.line()
    await line.welcome()
    start = await line.receive("start")
    assert (start["kind"], start["counterpart_id"]) == ("chat", "advisor-1")
    await line.answer(start, **snapshot())
    await line.send(**tick(65_000))
    await text_is(react, "span.font-mono.text-sm", "01:05")


async def test_the_chat_page_shows_details(react: ClientPage) -> None:
    line = await begin(
        react,
        "app(h(legacy.SimpleTimeDisplay,"
        " { advisorId: 'advisor-1', chatId: 'session-1', showDetails: true }))",
    )
    await text_is(react, "h3", "Time Tracking")
    await text_is(react, "span.text-lg", "00:00")
    await shows(react, "Free time:01:00Credits:2.50")
    assert "Using paid credits" not in await react.run("text")
    await line.send(**tick(90_000))
    await text_is(react, "span.text-lg", "01:30")
    await react.page.wait_for_function("() => text().includes('Using paid credits')")
    await shows(react, "Free time:00:00Credits:2.00")


# The recording page: useMinuteTracking, UsageDisplay


RECORDER = """
() => {
  window.heard = [];
  window.Recorder = ({ isRecording }) => {
    window.minutes = legacy.useMinuteTracking({ sessionId: 'session-1', isRecording,
      onApproachingLimit: ({ seq }) => heard.push(`near ${seq}`),
      onLimitReached: ({ seq }) => heard.push(`reached ${seq}`) });
    return h(legacy.UsageDisplay, { sessionId: 'session-1' });
  };
  window.record = (isRecording) => render(app(h(Recorder, { isRecording })));
}
"""


async def record(react: ClientPage) -> BrowserSocket:
    """The recording page, which has checked the limit and begins to record."""
    await react.run(RECORDER)
    await react.run("() => record(false)")
    await react.run("() => { window.check = minutes.checkUsageLimit(); }")
    line = await react.server.line()
    await line.welcome()
    await line.send(**usage(5, 20))
    assert await react.run("() => check.then(({ canRecord }) => canRecord)")
    await react.run("() => record(true)")
    await line.join(kind="recording", credits_per_minute="0", limit="member_minutes")
    await react.page.wait_for_function("() => minutes.isTracking")
    return line


async def test_the_recording_page_counts_and_pauses(react: ClientPage) -> None:
    line = await record(react)
    await line.send(**tick(61_000))
    await react.page.wait_for_function("() => minutes.sessionDuration === 61")
    assert await react.run("() => minutes.currentSessionMinutes") == 2
    await react.run("() => record(false)")
    pause = await line.receive("pause")
    await line.answer(pause, **snapshot(kind="recording", state="paused", elapsed_ms=61_000))
    await react.page.wait_for_function("() => !minutes.isTracking")
    await react.run("() => record(true)")
    await line.receive("resume")


async def test_the_recording_page_shows_the_month(react: ClientPage) -> None:
    line = await record(react)
    await text_is(react, "[data-testid=usage-text]", "5 of 20 minutes used this month")
    state = "() => document.querySelector('[data-testid=usage-display]').dataset.state"
    assert await react.run(state) == "normal"
    await line.send(**usage(12, 20))
    await text_is(react, "[data-testid=usage-text]", "12 of 20 minutes used this month")
    assert await react.run(state) == "approaching"
    assert await react.run("() => document.querySelector('progress').value") == 12
    await line.send(**usage(20, 20))
    await react.page.wait_for_function("() => minutes.isOverLimit && !minutes.canRecord")
    assert await react.run(state) == "over"
    await line.send(**usage(21, None))
    await text_is(react, "[data-testid=usage-text]", "21 minutes used this month")
    assert await react.run("() => document.querySelector('progress') === null")


async def test_the_most_restrictive_limit_counts(react: ClientPage) -> None:
    line = await record(react)
    org = {"org_used_ms": 598 * MINUTE_MS, "org_limit_ms": 600 * MINUTE_MS}
    await line.send(**usage(5, 20, **org))
    await react.page.wait_for_function("() => minutes.minutesRemaining === 2")
    figures = await react.run("() => [minutes.minutesUsed, minutes.minutesLimit]")
    assert figures == [598, 600]
    assert await react.run("() => minutes.isApproachingLimit && minutes.canRecord")


async def test_the_recording_page_hears_of_its_limit_once(react: ClientPage) -> None:
    line = await record(react)
    await line.send(**{**warning(1), "limit": "member_minutes"})
    reached = {"stopped_at": 1, "elapsed_ms": 60_000, "grace_ms": 15_000}
    await line.send(**{**warning(2), **reached, "type": "limit_reached", "limit": "member_minutes"})
    await react.page.wait_for_function("() => heard.length === 2")
    assert await react.run("() => heard") == ["near 1", "reached 2"]
    await react.run("() => { window.answer = settled(minutes.stop()); }")
    request = await line.receive("stop")
    await line.send(**{**stopped(3, elapsed_ms=60_000), "id": request["id"]})
    assert (await react.run("() => answer"))["value"]["type"] == "stopped"
    await react.page.wait_for_function("() => minutes.sessionDuration === 60")


async def test_a_check_fails_where_there_is_no_connection(react: ClientPage) -> None:
    await react.run(RECORDER)
    await react.run("() => record(false)")
    await react.run("() => { window.check = settled(minutes.checkUsageLimit()); }")
    line = await react.server.line()
    await line.receive("auth")
    await line.close(4500)
    assert (await react.run("() => check"))["error"]["code"] == "unauthenticated"


async def test_a_refused_recording_says_why_and_is_tried_again(react: ClientPage) -> None:
    """When the user records once more, or by ``retry()``."""
    await react.run(RECORDER)
    await react.run("() => record(true)")
    line = await react.server.line()
    await line.welcome()
    refusal = {"code": "limit_reached", "message": "No.", "limit": "member_minutes"}
    for again in ("() => { record(false); record(true); }", "() => minutes.retry()"):
        start = await line.receive("start")
        await line.answer(start, type="error", retryable=False, **refusal)
        await react.page.wait_for_function("() => minutes.error?.code === 'limit_reached'")
        assert await react.run("() => [minutes.isTracking, minutes.error.limit]") == [
            False,
            "member_minutes",
        ]
        await react.run(again)
    await line.join(kind="recording", credits_per_minute="0", limit="member_minutes")
    await react.page.wait_for_function("() => minutes.isTracking && minutes.error === null")


@pytest.mark.parametrize("token", ["null", "() => 'token-2'"])
async def test_a_check_in_flight_ends_with_its_user(react: ClientPage, token: str) -> None:
    await react.run(RECORDER)
    await react.run("() => record(false)")
    await react.run("() => { window.check = settled(minutes.checkUsageLimit()); }")
    line = await react.server.line()
    await line.welcome()
    await react.run(f"() => meter.switchUser({token})")
    assert (await react.run("() => check"))["error"]["code"] == "closed"


# The credits of every page: useUsage, UsageTracker


async def test_credits_are_pushed_after_an_operation(react: ClientPage) -> None:
    await react.run(
        """() => {
          window.Voices = () => {
            window.usage = legacy.useUsage();
            return h(legacy.UsageTracker);
          };
        }"""
    )
    line = await begin(react, "app(h(Voices), h(Chat))")
    await text_is(react, "[data-testid=usage-tracker]", "2.50 credits")
    credit = {"account_id": "user-1", "delta": "-1", "reason": "spend", "entry_id": "e1"}
    await line.send(type="credit", credits="1.5", operation="voice_creation", **credit)
    await text_is(react, "[data-testid=usage-tracker]", "1.50 credits")
    assert await react.run("() => usage.credits") == 1.5
    await react.run("() => usage.triggerUsageUpdate()")
    await heard(react, line)


@pytest.mark.parametrize("used", [0, 1, 59_999, 60_000, 60_001])
async def test_a_begun_minute_is_a_used_one(react: ClientPage, used: int) -> None:
    line = await record(react)
    await line.send(**usage(0, 20, member_used_ms=used))
    expected = -(-used // MINUTE_MS)
    await react.page.wait_for_function(f"() => minutes.minutesUsed === {expected}")


# Requests


async def test_no_page_asks_for_anything_within_two_minutes(react: ClientPage) -> None:
    """The old pages asked every 15 and 30 seconds."""
    asked: list[str] = []
    react.page.on("request", lambda request: asked.append(request.url))
    line = await record(react)
    await react.run(
        """() => render(app(h(Recorder, { isRecording: true }), h(legacy.UsageTracker),
          h(legacy.SimpleTimeDisplay,
            { advisorId: 'a', chatId: 'session-1', showDetails: true })))"""
    )
    for second in range(120):
        await react.run("() => clock.advance(1000)")
        await line.send(**tick(second * 1000))
    await react.page.wait_for_function("() => minutes.sessionDuration >= 119")
    assert asked == []
