"""The client offers frameworks holders, views and the change of user."""

import json
from typing import Any

import pytest

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import (
    SERVER_TIME_AT,
    BrowserSocket,
    snapshot,
    stopped,
    tick,
    warning,
)

__all__ = ["chromium", "client", "mock_server"]

OPTIONS = "{ kind: 'chat', sessionId: 'session-1' }"


async def hold(client: ClientPage) -> BrowserSocket:
    """Retains ``window.session``; returns its connection."""
    await client.construct()
    await client.run(
        f"() => {{ window.session = meter.retain({OPTIONS}); listenToSession(session, 'session');"
        " window.views = 0; session.subscribe(() => { views += 1; }); }"
    )
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")
    return line


async def view(client: ClientPage, target: str = "session") -> Any:
    text = await client.run(f"() => JSON.stringify({target}.getSnapshot())")
    return json.loads(text)


# Holders


async def test_ten_holders_are_one_start_and_the_tenth_release_leaves(client: ClientPage) -> None:
    line = await hold(client)
    same = await client.run(
        f"() => Array.from({{ length: 9 }}, () => meter.retain({OPTIONS}))"
        ".every((one) => one === session)"
    )
    assert same
    await client.run("() => { for (let i = 0; i < 9; i++) session.release(); clock.advance(0); }")
    await client.mark(line)
    await client.run("() => { session.release(); session.release(); clock.advance(0); }")
    assert (await line.receive("leave"))["session_id"] == "session-1"
    assert await view(client) == {"status": "off"}
    assert await client.run("() => meter.find('session-1') === undefined")


async def test_a_release_and_a_retain_at_once_send_nothing(client: ClientPage) -> None:
    line = await hold(client)
    await client.run(
        f"() => {{ session.release(); meter.retain({OPTIONS}); session.release();"
        " session.retain(); clock.advance(0); }"
    )
    await client.mark(line)
    assert (await view(client))["status"] == "running"


async def test_a_release_that_is_due_does_not_end_a_later_hold(client: ClientPage) -> None:
    line = await hold(client)
    await client.run("() => { session.release(); clock.advance(0); }")
    await line.receive("leave")
    again = await client.run(
        f"() => {{ window.again = meter.retain({OPTIONS}); session.release(); clock.advance(0);"
        " return again !== session; }"
    )
    assert again
    await line.join()
    await client.run("() => { settled(again.pause()); }")
    await line.receive("pause")


async def test_an_owned_session_is_not_left_by_its_last_holder(client: ClientPage) -> None:
    await client.construct()
    await client.run(
        f"() => {{ window.session = meter.start({OPTIONS}); meter.retain({OPTIONS}); }}"
    )
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.run("() => { session.release(); clock.advance(0); }")
    await client.mark(line)


async def test_a_watched_session_is_started_by_its_first_holder(client: ClientPage) -> None:
    await client.construct()
    await client.run("() => { window.session = meter.watch('session-1'); }")
    line = await client.server.line()
    await line.welcome()
    await line.answer(await line.receive("watch"), **snapshot())
    assert await client.run(f"() => meter.retain({OPTIONS}) === session")
    await line.join()
    await client.run("() => { session.release(); clock.advance(0); }")
    await line.receive("leave")


async def test_a_session_that_stops_is_not_left(client: ClientPage) -> None:
    """Else its reconnect grace could end it as ``disconnected``."""
    line = await hold(client)
    await client.run(
        "() => { window.answer = settled(session.stop()); session.release(); clock.advance(0); }"
    )
    await line.answer(await line.receive("stop"), **stopped(1))
    assert (await client.run("() => answer"))["value"]["receipt"]["minutes"] == 4


@pytest.mark.parametrize("is_released_first", [True, False])
async def test_a_session_whose_stop_is_refused_is_left_by_its_last_holder(
    client: ClientPage, is_released_first: bool
) -> None:
    """Else it would go on, and cost, without anything that shows it."""
    line = await hold(client)
    await client.run("() => { window.answer = settled(session.stop()); }")
    stop = await line.receive("stop")
    if is_released_first:
        await client.run("() => { session.release(); clock.advance(0); }")
    refusal = {"code": "unavailable", "message": "Not now.", "retryable": True}
    await line.answer(stop, type="error", **refusal)
    assert (await client.run("() => answer"))["error"]["code"] == "unavailable"
    if not is_released_first:
        await client.run("() => session.release()")
    await client.advance(0)
    assert (await line.receive("leave"))["session_id"] == "session-1"


async def test_a_stop_is_kept_when_its_holder_goes_without_a_line(client: ClientPage) -> None:
    line = await hold(client)
    line.cut()
    await client.take_loss()
    await client.run(
        "() => { window.answer = settled(session.stop()); session.release(); clock.advance(0); }"
    )
    await client.advance(500)
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await line.answer(await line.receive("stop"), **stopped(1))
    assert (await client.run("() => answer"))["value"]["type"] == "stopped"


async def test_holders_of_an_ended_session_share_its_receipt(client: ClientPage) -> None:
    line = await hold(client)
    await line.send(**stopped(1))
    await client.take("stopped")
    assert await client.run(f"() => meter.retain({OPTIONS}) === session")
    ended = await view(client)
    assert (ended["status"], ended["reason"]) == ("ended", "client")
    assert ended["receipt"]["minutes"] == 4
    await client.run("() => { session.release(); session.release(); clock.advance(0); }")
    assert await client.run("() => meter.find('session-1') === undefined")


async def test_a_failed_start_may_be_tried_again(client: ClientPage) -> None:
    await client.construct()
    await client.run(f"() => {{ window.session = meter.retain({OPTIONS}); }}")
    line = await client.server.line()
    await line.welcome()
    refusal = {"code": "limit_reached", "message": "No.", "retryable": False, "limit": "credits"}
    await line.answer(await line.receive("start"), type="error", **refusal)
    await client.run("() => settled(session.ready)")
    assert (await view(client))["status"] == "failed"
    assert await client.run("() => session.getSnapshot().error.limit") == "credits"
    await client.run("() => { session.stopWanted = true; }")
    # For all its holders: it is the same session, and nothing of before counts.
    assert await client.run(f"() => meter.retain({OPTIONS}) === session")
    assert (await view(client))["status"] == "starting"
    assert await client.run("() => session.stopWanted") is False
    await line.join()
    assert (await client.run("() => settled(session.ready)"))["value"]["state"] == "active"
    assert (await view(client))["status"] == "running"


# Views


async def test_the_view_follows_the_session(client: ClientPage) -> None:
    await client.construct()
    await client.run(f"() => {{ window.session = meter.retain({OPTIONS}); }}")
    assert await view(client) == {"status": "starting", "session_id": "session-1"}
    assert await client.run("() => session.getServerSnapshot()") == {"status": "off"}
    await client.run("() => listenToSession(session, 'session')")
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")
    assert await view(client) == {
        "status": "running",
        "session_id": "session-1",
        "kind": "chat",
        "live": True,
        "elapsed_ms": 0,
        "free_remaining_ms": 60_000,
        "paid": False,
        "credits": 2.5,
        "credits_per_minute": "1",
        "limit": "credits",
        "remaining_ms": 210_000,
        "limits": [{"limit": "credits", "remaining_ms": 210_000}],
        "speed": 1,
        "ends_at": SERVER_TIME_AT + 210_000,
        "notices": [],
    }
    await line.send(**tick(1_000))
    await client.take("tick")
    assert (await view(client))["elapsed_ms"] == 1_000
    await line.send(**snapshot(state="paused", elapsed_ms=1_500))
    await client.take("session")
    assert (await view(client))["status"] == "paused"
    line.cut()
    await client.take_loss()
    down = await view(client)
    assert (down["status"], down["live"], down["elapsed_ms"]) == ("paused", False, 1_500)


async def test_a_view_stays_the_same_object_until_something_changes(client: ClientPage) -> None:
    line = await hold(client)
    await client.run("() => { window.first = session.getSnapshot(); window.told = views; }")
    await client.advance(500)
    await line.send(type="pong")
    await line.send(type="minute", session_id="session-2", minute=0, seconds=60, credits="0")
    await line.send(type="error", code="bad_message", message="Marker.", retryable=False)
    await client.take("error")
    same = "() => [session.getSnapshot() === first, views - told, Object.isFrozen(first)]"
    assert await client.run(same) == [True, 0, True]
    await line.send(**tick(1_000))
    await client.take("tick")
    assert await client.run(same) == [False, 1, True]


async def test_a_subscriber_hears_nothing_after_it_has_ended(client: ClientPage) -> None:
    line = await hold(client)
    await client.run(
        "() => { window.calls = []; const fn = () => calls.push(session.getSnapshot().elapsed_ms);"
        " const end = session.subscribe(fn); session.subscribe(fn); end(); end(); }"
    )
    await line.send(**tick(1_000))
    await client.take("tick")
    assert await client.run("() => calls") == [1_000]


async def test_the_view_keeps_the_newest_notices_and_the_grace(client: ClientPage) -> None:
    line = await hold(client)
    for seq in range(1, 10):
        await line.send(**warning(seq))
        await client.take("limit_warning")
    reached = {"limit": "credits", "stopped_at": SERVER_TIME_AT, "grace_ms": 15_000}
    await line.send(
        type="limit_reached", session_id="session-1", seq=10, elapsed_ms=210_000, **reached
    )
    await client.take("limit_reached")
    shown = await view(client)
    assert [notice["seq"] for notice in shown["notices"]] == [*range(3, 11)]
    assert (shown["status"], shown["elapsed_ms"], shown["grace_ms"]) == (
        "stopping",
        210_000,
        15_000,
    )
    assert shown["grace_ends_at"] == SERVER_TIME_AT + 15_000
    await client.advance(6_000)
    assert (await client.reading())["grace_left_ms"] == 9_000


async def test_a_grace_that_was_missed_has_run_already(client: ClientPage) -> None:
    line = await hold(client)
    line.cut()
    line = await client.next_line()
    await line.welcome()
    reached = {"limit": "credits", "stopped_at": SERVER_TIME_AT, "grace_ms": 15_000}
    missed = {"type": "limit_reached", "seq": 1, "elapsed_ms": 210_000, **reached}
    now = {"state": "stopping", "seq": 1, "server_time_at": SERVER_TIME_AT + 5_000}
    await line.join(missed=[missed], elapsed_ms=210_000, **now)
    await client.take("limit_reached")
    await client.take("session")
    assert (await client.reading())["grace_left_ms"] == 10_000


async def test_a_client_that_joins_during_the_grace_shows_what_is_left(client: ClientPage) -> None:
    ends_at = SERVER_TIME_AT + 9_000
    await client.live("token: 'token-1'", state="stopping", elapsed_ms=210_000, ends_at=ends_at)
    shown = await view(client)
    assert (shown["status"], shown["grace_ms"], shown["grace_ends_at"]) == (
        "stopping",
        9_000,
        ends_at,
    )
    await client.advance(6_000)
    assert (await client.reading())["grace_left_ms"] == 3_000


async def test_the_meters_view_has_user_balance_and_month(client: ClientPage) -> None:
    await client.construct()
    idle = await view(client, "meter")
    assert idle == {
        **{"connection": "idle", "user_id": None, "account_id": None},
        **{"credits": None, "usage": None, "error": None},
    }
    assert await client.run("() => meter.getServerSnapshot()") == idle
    await client.start()
    line = await client.server.line()
    await line.welcome()
    usage = {
        **{"type": "usage", "month": "2026-11", "member_used_ms": 60_000},
        **{"member_limit_ms": None, "org_used_ms": None, "org_limit_ms": None},
    }
    await line.send(**usage)
    await line.join()
    await client.take("session")
    shown = await view(client, "meter")
    assert (shown["connection"], shown["user_id"], shown["credits"]) == ("live", "user-1", 2.5)
    assert shown["usage"] == usage
    await line.send(**tick(90_000))
    await client.take("tick")
    assert (await view(client, "meter"))["credits"] == 2
    line.cut()
    await client.take_loss()
    assert (await view(client, "meter"))["connection"] == "reconnecting"


# Another user


async def test_nothing_of_the_old_user_is_heard_after_a_switch(client: ClientPage) -> None:
    old = await client.live()
    await client.run(
        "() => { window.heard = []; window.answer = settled(session.pause());"
        " meter.switchUser('token-2'); events.length = 0; }"
    )
    assert (await old.receive("pause"))["session_id"] == "session-1"
    assert await old.receive_close() == 1000
    assert (await client.run("() => answer"))["error"]["code"] == "closed"
    assert await view(client) == {"status": "off"}
    line = await client.server.line()
    assert (await line.welcome(user_id="user-2"))["token"] == "token-2"
    await client.take_state("live")
    assert (await view(client, "meter"))["user_id"] == "user-2"
    await line.send(**tick(1_000))  # of the old session, over the new connection
    await line.send(type="error", code="bad_message", message="Marker.", retryable=False)
    assert (await client.take("error"))["message"] == "Marker."


async def test_a_listener_may_switch_in_the_middle_of_a_message(client: ClientPage) -> None:
    line = await client.live()
    line.cut()
    line = await client.next_line()
    await line.welcome()
    await client.run(
        "() => session.addEventListener('limit_warning', () => meter.switchUser('token-2'))"
    )
    await line.join(seq=2, missed=[warning(1), warning(2)])
    assert (await client.take("limit_warning"))["seq"] == 1
    line = await client.server.line()
    assert (await line.welcome())["token"] == "token-2"
    await client.take_state("live")
    assert await client.run("() => events.filter((one) => one.target === 'session')") == []


async def test_a_log_out_leaves_nothing_armed(client: ClientPage) -> None:
    line = await client.live()
    await client.run("() => meter.switchUser(null)")
    assert await line.receive_close() == 1000
    assert (await view(client, "meter"))["connection"] == "idle"
    assert await client.run("() => clock.timers.size") == 0
    await client.run("() => dispatchEvent(new Event('online'))")
    assert await client.run("() => meter.state") == "idle"
    await client.run(f"() => {{ window.session = meter.retain({OPTIONS}); }}")
    assert (await client.take("error"))["code"] == "unauthenticated"
    await client.take_state("offline")
    assert (await view(client))["status"] == "failed"
    await client.run("() => meter.switchUser('token-2')")
    line = await client.server.line()
    assert (await line.welcome())["token"] == "token-2"


@pytest.mark.parametrize("call", [1, 2])
async def test_a_token_function_may_say_that_the_login_is_over(
    client: ClientPage, call: int
) -> None:
    """At the first call, and at the renewal."""
    await client.construct(
        "token: async () => { window.calls = (window.calls ?? 0) + 1;"
        f" if (calls === {call}) throw new Unauthorized(); return 'token-1'; }}"
    )
    await client.run("() => meter.connect()")
    if call == 2:
        line = await client.server.line()
        await line.welcome(ping_ms=3_600_000, expires_at=SERVER_TIME_AT + 100_000)
        await client.take_state("live")
        await client.advance(50_000)
    assert (await client.take("error"))["code"] == "unauthenticated"
    assert (await client.take_state("offline"))["error"]["code"] == "unauthenticated"
    assert await client.run("() => clock.timers.size") == 0
