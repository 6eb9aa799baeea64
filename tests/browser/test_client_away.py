"""Tests the client after the page, machine or network was away."""

import pytest
from playwright.async_api import Request, Route

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import snapshot, stopped, tick, warning, welcome

__all__ = ["chromium", "client", "mock_server"]

PERSISTED = "() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))"
VISIBLE = "() => document.dispatchEvent(new Event('visibilitychange'))"
HIDE_PAGE = "() => dispatchEvent(new PageTransitionEvent('pagehide'))"


async def hear_stops(client: ClientPage) -> list[Request]:
    """Answers requests over HTTP, and lists them."""
    requests: list[Request] = []

    async def answer(route: Route) -> None:
        requests.append(route.request)
        await route.fulfill(json={})

    await client.page.route("**/v1/sessions/**", answer)
    return requests


# Wishes while there is no line


async def test_a_stop_without_a_line_is_sent_before_other_sessions_are_joined(
    client: ClientPage,
) -> None:
    line = await client.live()
    await client.run("() => { window.other = meter.start({ kind: 'chat', sessionId: 'other' }); }")
    await line.join()
    line.cut()
    await client.take_loss()
    await client.run("() => { window.answer = settled(other.stop()); }")
    await client.advance(500)
    line = await client.server.line()
    await line.welcome()
    assert (await line.receive("start"))["session_id"] == "other"
    stop = await line.receive("stop")
    assert stop["session_id"] == "other"
    assert (await line.receive("start"))["session_id"] == "session-1"
    await line.answer(stop, **{**stopped(1), "session_id": "other"})
    assert (await client.run("() => answer"))["value"]["type"] == "stopped"


async def test_a_session_that_was_left_without_a_line_is_not_joined_again(
    client: ClientPage,
) -> None:
    line = await client.live()
    line.cut()
    await client.take_loss()
    await client.run("() => session.leave()")
    await client.advance(500)
    line = await client.server.line()
    await line.welcome()
    await client.run("() => { meter.watch('session-9'); }")
    assert (await line.receive("watch"))["session_id"] == "session-9"


async def test_a_leave_reaches_the_line_that_is_being_left(client: ClientPage) -> None:
    """A drained process keeps the session alive until another process has it."""
    old = await client.live()
    await client.chance(0)
    await old.send(type="reconnect", after_ms=0)
    await client.advance(0)
    line = await client.server.line()
    await line.receive("auth")
    await client.run("() => session.leave()")
    assert (await old.receive("leave"))["session_id"] == "session-1"
    await client.run("() => settled(session.ready)")


async def test_nothing_is_left_before_the_welcome(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    line = await client.server.line()
    auth = await line.receive("auth")
    await client.run("() => { session.leave(); meter.watch('session-9'); }")
    await line.answer(auth, **welcome())
    assert (await line.receive("watch"))["session_id"] == "session-9"


# A page that is closed


@pytest.mark.parametrize("is_live", [True, False])
async def test_a_page_that_closes_after_a_stop_ends_the_session(
    client: ClientPage, is_live: bool
) -> None:
    await hear_stops(client)
    await client.construct("token: async () => 'token-7'")
    await client.run(
        "() => { window.session = meter.start({ kind: 'chat', sessionId: 'a|b' });"
        " meter.start({ kind: 'chat', sessionId: 'other' }); listenToSession(session, 'session'); }"
    )
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await line.join()
    await client.take("session")
    if not is_live:
        line.cut()
        await client.take_loss()
    async with client.page.expect_request("**/v1/sessions/**") as sent:
        await client.run(f"() => {{ settled(session.stop()); ({HIDE_PAGE})(); }}")
    request = await sent.value
    assert (request.method, request.url) == (
        "POST",
        f"{client.server.url}/v1/sessions/a%7Cb/stop",
    )
    assert request.headers["authorization"] == "Bearer token-7"


async def test_a_page_that_closes_sends_nothing_for_sessions_that_go_on(
    client: ClientPage,
) -> None:
    requests = await hear_stops(client)
    line = await client.live()
    await client.run("() => { window.answer = settled(session.stop()); }")
    await line.answer(await line.receive("stop"), **stopped(1))
    await client.run("() => answer")
    await client.run("() => { meter.start({ kind: 'chat', sessionId: 'other' }); }")
    await line.join()
    await client.run(HIDE_PAGE)
    await client.run("() => fetch('/v1/sessions/marker')")
    assert [request.url.rpartition("/")[2] for request in requests] == ["marker"]


async def test_a_log_out_without_a_line_ends_what_was_stopped(client: ClientPage) -> None:
    await hear_stops(client)
    line = await client.live()
    line.cut()
    await client.take_loss()
    async with client.page.expect_request("**/v1/sessions/**") as sent:
        await client.run("() => { settled(session.stop()); meter.switchUser('token-2'); }")
    assert (await sent.value).headers["authorization"] == "Bearer token-1"


# A page that comes back


async def test_a_page_back_from_a_long_sleep_has_a_new_line_at_once(client: ClientPage) -> None:
    """A line that is not dead keeps the session until the join."""
    old = await client.live()
    await client.run("() => { clock.nowMs += 20_001; }")
    await client.run(VISIBLE)
    line = await client.server.line()
    await line.welcome()
    assert old.is_open
    start = await line.join(seq=4, missed=[warning(3), warning(4)], elapsed_ms=20_000)
    assert start["last_seq"] == 0
    await old.receive("ping")
    assert await old.receive_close() == 1000
    for seq in (3, 4):
        assert (await client.take("limit_warning"))["seq"] == seq
    assert (await client.take("session"))["elapsed_ms"] == 20_000
    for _ in ("session", "meter"):
        resumed = await client.take("resumed")
        assert resumed == {"away_ms": 20_001, "missed": [warning(3), warning(4)]}
    assert await client.run("() => clock.nowMs") == 21_001, "no time has passed"


async def test_a_page_back_from_the_back_forward_cache_has_a_new_line(client: ClientPage) -> None:
    await client.live()
    await client.run(PERSISTED)
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")


async def test_a_page_in_the_back_forward_cache_has_no_line(client: ClientPage) -> None:
    """With one, its sessions would run on: the browser answers pings."""
    line = await client.live()
    await client.run(
        "() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))"
    )
    assert await line.receive_close() == 1000
    assert await client.run("() => session.getSnapshot().live") is False
    await client.advance(4_000)
    assert not client.server.has_new_line()
    await client.run(PERSISTED)
    line = await client.server.line()
    await line.welcome()
    start = await line.join(seq=3, missed=[warning(3)], elapsed_ms=1_000)
    assert start["last_seq"] == 0
    await client.take("limit_warning")
    await client.take("session")
    for _ in ("session", "meter"):
        assert await client.take("resumed") == {"away_ms": 4_000, "missed": [warning(3)]}


async def test_an_attempt_ends_when_the_page_is_left(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    line = await client.server.line()
    await line.receive("auth")
    await client.run(
        "() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))"
    )
    assert await line.receive_close() == 1000
    await client.run(PERSISTED)
    line = await client.server.line()
    await line.welcome()
    await line.join()


async def test_a_page_back_from_a_short_sleep_asks_for_its_figures(client: ClientPage) -> None:
    """The answer comes within one round trip, whatever the tick."""
    line = await client.live()
    await client.advance(5_000)
    await client.run(VISIBLE)
    await line.receive("ping")
    await line.join(seq=3, missed=[warning(3)], elapsed_ms=5_000)
    await client.take("limit_warning")
    await client.take("session")
    assert await client.take("resumed") == {"away_ms": 5_000, "missed": [warning(3)]}
    assert await client.run("() => meter.state") == "live"
    assert not client.server.has_new_line()


async def test_several_signs_of_one_return_are_one_request(client: ClientPage) -> None:
    """A frozen page hears ``resume``, ``pageshow`` and ``visibilitychange``."""
    line = await client.live()
    await client.advance(5_000)
    for event in ("() => document.dispatchEvent(new Event('resume'))", VISIBLE):
        await client.run(event)
    await line.receive("ping")
    await line.join()
    await client.take("session")
    await client.run("() => { settled(session.pause()); }")
    await line.receive("pause")


@pytest.mark.parametrize("is_return", [False, True])
async def test_a_page_that_was_hidden_only_has_not_resumed(
    client: ClientPage, is_return: bool
) -> None:
    """A line may be quiet between two ticks."""
    line = await client.live()
    await client.run(
        "() => { window.returns = [];"
        " for (const one of [meter, session]) one.addEventListener('resumed',"
        " ({ detail }) => returns.push(detail.away_ms)); }"
    )
    await client.advance(5_000)
    event = "() => document.dispatchEvent(new Event('resume'))"
    await client.run(event if is_return else VISIBLE)
    await line.receive("ping")
    await line.join()
    await client.take("session")
    await line.send(**tick(5_100))
    await client.take("tick")
    assert await client.run("() => returns") == ([5_000, 5_000] if is_return else [])


async def test_a_clock_that_stood_still_does_not_hide_the_sleep(client: ClientPage) -> None:
    """In some browsers ``performance.now()`` stands still while the machine sleeps."""
    await client.live()
    await client.run("() => { const now = Date.now; Date.now = () => now() + 3_600_000; }")
    await client.run(VISIBLE)
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")
    assert (await client.take("resumed"))["away_ms"] >= 3_600_000


async def test_a_request_under_way_is_not_repeated_on_a_good_line(client: ClientPage) -> None:
    line = await client.live()
    await client.run("() => { window.answer = settled(session.pause()); }")
    pause = await line.receive("pause")
    await client.advance(2_000)
    await client.run(VISIBLE)
    await line.receive("ping")
    await line.join()
    await line.answer(pause, **snapshot(state="paused"))
    assert (await client.run("() => answer"))["value"]["state"] == "paused"
    await client.run("() => { settled(session.resume()); }")
    await line.receive("resume")


async def test_a_reconnect_says_how_long_the_server_was_not_heard(client: ClientPage) -> None:
    line = await client.live()
    await line.send(**tick(1_000))
    await client.take("tick")
    await client.advance(3_000)
    line.cut()
    line = await client.next_line()
    await line.welcome()
    await line.join()
    await client.take("session")
    assert await client.take("resumed") == {"away_ms": 13_000, "missed": []}


async def test_the_first_join_is_no_return(client: ClientPage) -> None:
    line = await client.live()
    await line.send(type="error", code="bad_message", message="Marker.", retryable=False)
    await client.take("error")
    assert await client.run("() => events.length") == 0
