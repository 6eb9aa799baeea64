"""Tests sessions that go on or end while their page looks away."""

import pytest

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import SERVER_TIME_AT, snapshot, stopped

__all__ = ["chromium", "client", "mock_server"]


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_session_is_watched_on_when_its_last_holder_is_gone(
    client: ClientPage, is_first: bool
) -> None:
    """The watcher may come first, or the holder."""
    await client.construct()
    watch = "window.watched = meter.watch('session-1');"
    hold = "window.held = meter.retain({ kind: 'chat', sessionId: 'session-1' });"
    await client.run(f"() => {{ {watch if is_first else hold} }}")
    line = await client.server.line()
    await line.welcome()
    first = await line.receive("watch" if is_first else "start")
    await line.answer(first, **snapshot())
    await client.run(f"() => {{ {hold if is_first else watch} }}")
    if is_first:
        await line.join()
    await client.run("async () => { await held.ready; held.release(); clock.advance(0); }")
    await line.receive("leave")
    again = await line.receive("watch")
    await line.answer(again, **snapshot(elapsed_ms=9_000))
    await client.run(
        "() => new Promise((done) => { const look = () =>"
        " watched.getSnapshot().elapsed_ms === 9000 ? done() : setTimeout(look); look(); })"
    )
    await client.run("() => { watched.leave(); }")
    await line.receive("leave")
    assert await client.run("() => meter.find('session-1') === undefined")


async def test_a_start_that_comes_after_a_stop_is_stopped(client: ClientPage) -> None:
    """At the stop the busy server knew no session yet."""
    await client.construct()
    await client.start()
    line = await client.server.line()
    await line.welcome()
    busy = {"code": "unavailable", "message": "busy", "retryable": True}
    await line.answer(await line.receive("start"), type="error", **busy)
    await client.run("() => { window.answer = settled(session.stop()); }")
    unknown = {"code": "unknown_session", "message": "no", "retryable": False}
    await line.answer(await line.receive("stop"), type="error", **unknown)
    assert (await client.run("() => answer"))["error"]["code"] == "unknown_session"
    await client.advance(1_000)
    await line.join()
    await line.receive("stop")


async def test_a_limit_that_was_reached_offline_is_in_the_last_view(client: ClientPage) -> None:
    line = await client.live()
    line.cut()
    line = await client.next_line()
    await line.welcome()
    reached = {"limit": "credits", "stopped_at": SERVER_TIME_AT, "grace_ms": 15_000}
    missed = [
        {"type": "limit_reached", "seq": 1, "elapsed_ms": 210_000, **reached},
        {**stopped(2), "reason": "limit", "limit": "credits"},
    ]
    await line.join(state="ended", seq=2, missed=missed, elapsed_ms=210_000)
    await client.take("limit_reached")
    view = await client.run("() => session.getSnapshot()")
    assert view["status"] == "ended"
    assert [notice["type"] for notice in view["notices"]][:1] == ["limit_reached"]
