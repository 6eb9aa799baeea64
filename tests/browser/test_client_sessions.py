"""Tests the client's sessions: requests and answers, errors, and dead connections."""

from typing import Any

import pytest

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import (
    SERVER_TIME_AT,
    Message,
    receipt,
    snapshot,
    stopped,
    warning,
)

__all__ = ["chromium", "client", "mock_server"]


async def ask(client: ClientPage, method: str) -> None:
    """Calls a method of the session; the result will be in ``window.answer``."""
    await client.run(f"() => {{ window.answer = settled(session.{method}()); }}")


async def outcome(client: ClientPage) -> Any:
    return await client.run("() => answer")


# Requests settle by their echo


@pytest.mark.parametrize(("method", "state"), [("pause", "paused"), ("resume", "active")])
async def test_a_request_settles_by_its_echo(client: ClientPage, method: str, state: str) -> None:
    line = await client.live()
    await ask(client, method)
    request = await line.receive(method)
    assert request["session_id"] == "session-1"
    await line.send(**snapshot(state="suspended"))
    await line.answer(request, **snapshot(state=state))
    assert (await outcome(client))["value"]["state"] == state


async def test_stop_settles_with_the_receipt(client: ClientPage) -> None:
    line = await client.live()
    await ask(client, "stop")
    await line.answer(await line.receive("stop"), **stopped(1))
    assert (await outcome(client))["value"]["receipt"] == receipt()
    assert (await client.take("stopped"))["reason"] == "client"
    reading = await client.reading()
    assert (reading["state"], reading["elapsed_ms"]) == ("ended", 210_000)


async def test_stop_settles_when_another_client_stopped(client: ClientPage) -> None:
    line = await client.live()
    await client.run(
        "() => { window.answer = Promise.all([settled(session.pause()), settled(session.stop())]) }"
    )
    await line.receive("pause")
    await line.receive("stop")
    await line.send(**stopped(1))
    paused, ended = await outcome(client)
    assert paused["error"]["code"] == "session_ended"
    assert ended["value"]["receipt"] == receipt()


async def test_an_error_rejects_only_its_request(client: ClientPage) -> None:
    line = await client.live()
    await ask(client, "resume")
    request = await line.receive("resume")
    problem = {"code": "limit_reached", "message": "No credits.", "retryable": False}
    await line.answer(request, type="error", limit="credits", **problem)
    error = (await outcome(client))["error"]
    assert (error["name"], error["code"], error["limit"]) == (
        "TaximeterError",
        "limit_reached",
        "credits",
    )
    await line.send(type="error", code="bad_message", message="What?", retryable=False)
    assert (await client.take("error"))["code"] == "bad_message"


async def test_a_request_without_an_answer_times_out(client: ClientPage) -> None:
    line = await client.live("token: 'token-1', requestTimeoutMs: 3000")
    await ask(client, "pause")
    await line.receive("pause")
    await client.advance(2_999)
    assert await client.run("() => Promise.race([answer, 'open'])") == "open"
    await client.advance(1)
    error = (await outcome(client))["error"]
    assert (error["code"], error["retryable"]) == ("timeout", True)


async def test_a_request_survives_a_lost_connection(client: ClientPage) -> None:
    line = await client.live()
    await ask(client, "pause")
    first = await line.receive("pause")
    line.cut()
    await client.take_loss()
    await client.advance(500)
    line = await client.server.line()
    await line.welcome()
    await line.join()
    again = await line.receive("pause")
    assert again == first
    await line.answer(again, **snapshot(state="paused"))
    assert (await outcome(client))["value"]["state"] == "paused"


async def test_a_stop_is_sent_even_after_its_promise_failed(client: ClientPage) -> None:
    line = await client.live()
    line.cut()
    await client.take_loss()
    await client.chance(0.999)
    await ask(client, "stop")
    await client.advance(400)
    line = await client.server.line()
    line.cut()
    line = await client.next_line()
    line.cut()
    assert (await outcome(client))["error"]["code"] == "timeout"
    line = await client.next_line()
    await line.welcome()
    await line.join()
    assert (await line.receive("stop"))["session_id"] == "session-1"


async def test_a_full_send_buffer_gets_no_more_messages(client: ClientPage) -> None:
    await client.construct(
        "token: 'token-1', platform: { ...platform, WebSocket: class extends WebSocket {"
        " get bufferedAmount() { return window.unsent ?? 0; } } }"
    )
    await client.start()
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")
    await client.run("() => { window.unsent = 65537; }")
    await ask(client, "pause")
    await client.run("() => { window.unsent = 65536; }")
    await ask(client, "resume")
    assert (await line.receive("resume"))["session_id"] == "session-1"


# Starts, and refused starts


@pytest.mark.parametrize("code", ["limit_reached", "rate_limited", "session_ended"])
async def test_a_refused_start_is_reported_and_not_repeated(client: ClientPage, code: str) -> None:
    """The client reports a refused start once, without another attempt.

    For a used-up account, or too many sessions, no time for another attempt is known.
    """
    await client.construct()
    await client.start()
    line = await client.server.line()
    await line.welcome()
    start = await line.receive("start")
    problem = {"code": code, "message": "No.", "retryable": code == "rate_limited"}
    await line.answer(start, type="error", limit="credits", **problem)
    assert (await client.take("error"))["code"] == code
    refused = await client.run("() => settled(session.ready)")
    assert refused["error"]["limit"] == "credits"
    line.cut()
    line = await client.next_line()
    await line.welcome()
    await client.run("() => { meter.watch('session-9'); }")
    assert (await line.receive("watch"))["session_id"] == "session-9", "it was started again"


async def test_a_busy_server_is_asked_again_to_join(
    client: ClientPage,
) -> None:
    line = await client.live()
    line.cut()
    line = await client.next_line()
    await line.welcome()
    start = await line.receive("start")
    busy = {"code": "unavailable", "message": "Not now.", "retryable": True}
    await client.chance(0.999)
    for wait_ms in (500, 1_000, 2_000):
        await line.answer(start, type="error", **busy)
        await line.send(type="error", **busy)
        await client.take("error")  # the second error: the client handles the first itself
        waits = await client.run(
            "() => [...clock.timers.values()].map((t) => t.atMs - clock.nowMs)"
        )
        assert round(min(waits)) == round(0.999 * wait_ms)
        await client.advance(wait_ms)
        start = await line.receive("start")
    assert start["session_id"] == "session-1"


BUSY = {"code": "unavailable", "message": "Not now.", "retryable": True}


async def test_a_start_overtaken_by_a_preparation_is_repeated(
    client: ClientPage,
) -> None:
    await client.construct()
    await client.start()
    line = await client.server.line()
    await line.welcome()
    first = await line.receive("start")
    await line.answer(first, type="error", **BUSY)
    await line.send(type="error", **BUSY, session_id="session-2")
    await client.take("error")  # the other session's error: the client handles the start's itself
    await client.advance(500)
    again = await line.receive("start")
    assert again == {**first, "id": again["id"]}
    await line.answer(again, **snapshot(credits_per_minute="2.5"))
    assert (await client.take("session"))["credits_per_minute"] == "2.5"
    ready = await client.run("() => session.ready")
    assert ready["credits_per_minute"] == "2.5"


async def test_a_start_refused_repeatedly_fails(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    line = await client.server.line()
    await line.welcome()
    for wait_ms in (500, 1_000, 2_000):
        await line.answer(await line.receive("start"), type="error", **BUSY)
        await line.send(type="error", **BUSY)
        await client.take("error")
        await client.advance(wait_ms)
    await line.answer(await line.receive("start"), type="error", **BUSY)
    assert (await client.take("error"))["code"] == "unavailable"
    assert (await client.run("() => settled(session.ready)"))["error"]["retryable"] is True
    assert await client.run("() => clock.timers.size") == 1, "more than the watchdog"


# Requests that come too early


def too_early(retry_after_ms: int) -> Message:
    return {
        "type": "error",
        "code": "rate_limited",
        "message": "too many requests",
        "retryable": True,
        "retry_after_ms": retry_after_ms,
    }


async def test_a_rate_limited_request_is_sent_again_in_time(client: ClientPage) -> None:
    line = await client.live()
    await ask(client, "stop")
    first = await line.receive("stop")
    await line.send(**too_early(3_000), id=first["id"])
    await line.send(**too_early(3_000))
    assert (await client.take("error"))["retryAfterMs"] == 3_000
    await client.advance(2_999)
    await ask(client, "resume")
    assert (await line.receive("resume"))["session_id"] == "session-1"
    await client.advance(1)
    assert await line.receive("stop") == first


async def test_a_rate_limited_request_past_its_timeout_fails(client: ClientPage) -> None:
    line = await client.live()
    await ask(client, "pause")
    request = await line.receive("pause")
    await client.advance(5_000)
    await line.send(**too_early(5_000), id=request["id"])
    error = (await outcome(client))["error"]
    assert (error["code"], error["retryAfterMs"]) == ("rate_limited", 5_000)


async def test_a_rate_limited_start_waits_past_the_timeout(client: ClientPage) -> None:
    """The wait is longer than a request's wait for its answer."""
    await client.construct("token: 'token-1', requestTimeoutMs: 3000")
    await client.start()
    line = await client.server.line()
    await line.welcome()
    first = await line.receive("start")
    await line.send(**too_early(5_000), id=first["id"])
    await line.send(**too_early(0))
    await client.take("error")
    await client.advance(4_999)
    await client.run("() => { meter.watch('session-9'); }")
    assert (await line.receive("watch"))["session_id"] == "session-9"
    await client.advance(1)
    again = await line.receive("start")
    assert again == {**first, "id": again["id"]}


async def test_a_rate_limited_start_is_not_sent_after_leave(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    line = await client.server.line()
    await line.welcome()
    await line.send(**too_early(1_000), id=(await line.receive("start"))["id"])
    await line.send(**too_early(0))
    await client.take("error")
    await client.run("() => { session.leave(); }")
    await line.receive("leave")
    await client.advance(1_000)
    await client.run("() => { meter.watch('session-9'); }")
    assert (await line.receive("watch"))["session_id"] == "session-9"


async def test_an_operator_names_the_tenant_to_watch(client: ClientPage) -> None:
    await client.construct()
    await client.run("() => { meter.watch('session-8', { org: 'acme', lastSeq: 4 }); }")
    await client.run("() => { meter.watch('session-9', { user: 'ann' }); }")
    line = await client.server.line()
    await line.welcome()
    of_org = await line.receive("watch")
    assert (of_org["org"], of_org["last_seq"], "user" in of_org) == ("acme", 4, False)
    of_user = await line.receive("watch")
    assert (of_user["user"], "org" in of_user) == ("ann", False)


async def test_a_start_without_an_answer_is_repeated(client: ClientPage) -> None:
    await client.construct("token: 'token-1', requestTimeoutMs: 3000")
    await client.start()
    line = await client.server.line()
    await line.welcome()
    first = await line.receive("start")
    await client.advance(3_000)
    await client.advance(1_000)
    again = await line.receive("start")
    assert again == {**first, "id": again["id"]}


async def test_leave_ends_the_session_in_the_client(client: ClientPage) -> None:
    line = await client.live()
    await client.run("() => session.leave()")
    assert await line.receive("leave") == {"type": "leave", "session_id": "session-1"}
    await line.send(**warning(1))
    await line.send(type="error", code="bad_message", message="Marker.", retryable=False)
    assert (await client.take("error"))["message"] == "Marker."
    await client.advance(5_000)
    assert (await client.reading())["elapsed_ms"] == 0


async def test_an_error_of_an_abandoned_start_is_dropped(
    client: ClientPage,
) -> None:
    await client.construct()
    await client.start()
    line = await client.server.line()
    await line.welcome()
    first = await line.receive("start")
    await client.run("() => { session.leave(); }")
    await line.receive("leave")
    await client.start()
    second = await line.receive("start")
    problem = {"code": "unavailable", "message": "Not now.", "retryable": True}
    await line.answer(first, type="error", **problem)
    await line.answer(second, **snapshot())
    await client.take("session")
    line.cut()
    line = await client.next_line()
    await line.welcome()
    assert (await line.join())["session_id"] == "session-1", "it was forgotten"


async def test_a_request_is_not_repeated_after_leave(client: ClientPage) -> None:
    line = await client.live()
    await ask(client, "pause")
    await line.receive("pause")
    await client.run("() => session.leave()")
    await line.receive("leave")
    line.cut()
    line = await client.next_line()
    assert (await outcome(client))["error"]["code"] == "disconnected"
    await line.welcome()
    await client.run("() => { meter.watch('session-9'); }")
    assert (await line.receive("watch"))["session_id"] == "session-9"


# A dead connection, and a page that slept


async def test_a_silent_connection_is_pinged_then_given_up(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(10_000)
    await line.receive("ping")
    await client.advance(10_000)
    await client.take_loss()
    await client.advance(500)
    line = await client.server.line()
    assert (await line.welcome())["token"] == "token-1"


async def test_an_answer_keeps_the_connection(client: ClientPage) -> None:
    line = await client.live()
    for _ in range(3):
        await client.advance(10_000)
        await line.receive("ping")
        await line.send(type="pong", server_time_at=SERVER_TIME_AT)
        await line.send(type="error", code="bad_message", message="Marker.", retryable=False)
        await client.take("error")
    assert await client.run("() => meter.state") == "live"


async def test_a_page_keeps_its_connection_after_sleep(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(10_000)
    await line.receive("ping")
    await client.run("() => clock.sleep(300_000)")
    await line.receive("ping")
    assert await client.run("() => meter.state") == "live"


async def test_a_connection_without_a_welcome_is_given_up(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    line = await client.server.line()
    await line.receive("auth")
    await client.advance(10_000)
    await client.take_loss()
    assert await line.receive_close() == 3000
