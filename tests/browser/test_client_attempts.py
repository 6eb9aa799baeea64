"""Tests the client's attempts to connect: failures, and a page that wakes."""

import pytest

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import SERVER_TIME_AT, BrowserSocket, tick, welcome

__all__ = ["chromium", "client", "mock_server"]

THROWS = (
    "token: 'token-1', platform: { ...platform, WebSocket: class extends WebSocket {"
    " constructor(...address) { window.calls = (window.calls ?? 0) + 1;"
    " if (window.calls === 1) throw new DOMException('No.', 'NAME');"
    " super(...address); } } }"
)
"""The first ``new WebSocket`` throws."""


# `new WebSocket` throws


async def test_a_browser_that_forbids_the_socket_ends_the_attempts(client: ClientPage) -> None:
    await client.construct(THROWS.replace("NAME", "SecurityError"))
    await client.start()
    await client.run("() => { window.ready = settled(session.ready); }")
    error = await client.take("error")
    assert (error["code"], error["retryable"]) == ("forbidden", False)
    assert error["cause"] == "No."
    await client.take_state("offline")
    assert (await client.run("() => ready"))["error"]["code"] == "forbidden"
    assert await client.run("() => clock.timers.size") == 0


@pytest.mark.parametrize("name", ["SyntaxError", "InvalidStateError"])
async def test_a_failed_socket_is_tried_again(client: ClientPage, name: str) -> None:
    await client.construct(THROWS.replace("NAME", name))
    await client.start()
    error = await client.take("error")
    assert (error["code"], error["retryable"]) == ("unavailable", True)
    line = await client.next_line()
    await line.welcome()
    await line.join()
    await client.take("session")


# No connection


async def fail(client: ClientPage, line: BrowserSocket, code: int | None) -> None:
    """Ends an attempt without a welcome."""
    await line.receive("auth")
    if code is None:
        line.cut()
    else:
        await line.close(code)


@pytest.mark.parametrize("code", [None, 1013, 4000])
@pytest.mark.parametrize("was_live", [False, True])
async def test_three_attempts_without_a_welcome_cause_an_error(
    client: ClientPage, code: int | None, was_live: bool
) -> None:
    if was_live:
        line = await client.live()
        line.cut()
        line = await client.next_line()
    else:
        await client.construct()
        await client.start()
        line = await client.server.line()
    for _ in range(2):
        await fail(client, line, code)
        change = await client.take_loss()
        assert change["error"] is None
        await client.advance(10_000)
        line = await client.server.line()
    await fail(client, line, code)
    error = await client.take("error")
    assert (error["code"], error["retryable"]) == ("unreachable", True)
    assert error["closeCode"] == (code or 1006)
    assert error["message"]
    # The error comes once, and the attempts continue.
    await client.advance(10_000)
    line = await client.server.line()
    await fail(client, line, code)
    change = await client.take_loss()
    assert change["error"]["code"] == "unreachable"
    await client.advance(10_000)
    line = await client.server.line()
    await line.welcome()
    live = await client.take_state("live")
    assert live["error"] is None
    await line.join()
    await client.take("session")


async def test_the_servers_error_is_the_reason(client: ClientPage) -> None:
    await client.construct("token: async () => 'token-1'")
    await client.run("() => meter.connect()")
    busy = {"code": "unavailable", "message": "The database is away.", "retryable": True}
    for _ in range(3):
        line = await client.server.line()
        await line.answer(await line.receive("auth"), type="error", **busy)
        await line.close(1013)
        await client.take_loss()
        await client.advance(10_000)
    error = await client.take("error")
    assert (error["code"], error["message"]) == ("unreachable", "The database is away.")


async def test_a_failed_token_function_is_the_reason(client: ClientPage) -> None:
    await client.construct("token: async () => { throw new Error('no network'); }")
    await client.run("() => meter.connect()")
    for _ in range(3):
        assert (await client.take("error"))["code"] == "unauthenticated"
        await client.advance(10_000)
    error = await client.take("error")
    assert (error["code"], error["message"]) == ("unreachable", "The token function failed.")


async def test_a_welcome_resets_the_count_of_attempts(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    for _ in range(2):
        for _ in range(2):
            await fail(client, await client.server.line(), None)
            await client.take_loss()
            await client.advance(10_000)
        line = await client.server.line()
        await line.welcome()
        await client.take_state("live")
        line.cut()
        await client.take_loss()
        await client.advance(10_000)
    line = await client.server.line()
    await line.welcome()
    await client.take_state("live")


async def test_a_message_over_16_kib_is_refused_and_not_sent(client: ClientPage) -> None:
    """The server would close the connection because of it, at every attempt."""
    await client.construct()
    await client.start("metadata: { text: '\u00e9'.repeat(9_000) }")
    line = await client.server.line()
    await line.welcome()
    assert (await client.take("error"))["code"] == "bad_message"
    assert (await client.run("() => settled(session.ready)"))["error"]["code"] == "bad_message"


async def test_connect_starts_the_next_attempt_at_once(client: ClientPage) -> None:
    line = await client.live()
    line.cut()
    await client.take_loss()
    await client.run("() => meter.connect()")
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")
    assert await client.run("() => clock.nowMs") == 1_000, "no time has passed"
    await client.run("() => meter.connect()")
    assert await client.run("() => meter.state") == "live"


# A hidden page, and a page that wakes


async def test_a_hidden_page_reconnects_without_a_timer(client: ClientPage) -> None:
    """A hidden page reconnects at once, without a timer.

    A hidden page's timer may take a minute, and the session does not wait that long.
    """
    line = await client.live()
    await client.advance(10_000)
    await line.receive("ping")
    await client.run("() => clock.hide()")
    line.cut()
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")
    assert await client.run("() => clock.nowMs") == 11_000, "no time has passed"


async def test_a_drain_moves_a_hidden_page_by_its_ticks(client: ClientPage) -> None:
    old = await client.live()
    await client.run("() => clock.hide()")
    await client.chance(0.25)
    await old.send(type="reconnect", after_ms=8_000)
    await old.send(**tick(1_000))
    await client.take("tick")
    await client.run("() => { clock.nowMs += 2_000; }")
    await old.send(**tick(3_000))
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("tick")
    await client.take("session")


async def test_a_hidden_page_does_not_wait_after_a_drain(
    client: ClientPage,
) -> None:
    line = await client.live()
    await client.run("() => clock.hide()")
    await line.send(type="reconnect", after_ms=8_000)
    await line.close(4000)
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")


@pytest.mark.parametrize(
    "event",
    [
        "() => dispatchEvent(new Event('online'))",
        "() => dispatchEvent(new PageTransitionEvent('pageshow'))",
        "() => document.dispatchEvent(new Event('visibilitychange'))",
        "() => document.dispatchEvent(new Event('resume'))",
    ],
)
async def test_a_waking_page_pings_a_silent_connection(client: ClientPage, event: str) -> None:
    line = await client.live()
    await client.advance(5_000)
    await client.run(event)
    await line.receive("ping")
    await client.advance(10_000)
    await client.take_loss()


async def test_a_waking_page_trusts_a_live_connection(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(5_000)
    await line.send(**tick(5_000))
    await client.take("tick")
    await client.run("() => dispatchEvent(new Event('online'))")
    await client.advance(9_000)
    await line.send(**tick(14_000))
    await client.take("tick")
    assert await client.run("() => meter.state") == "live"


async def test_a_hidden_page_reconnects_when_the_network_returns(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    await client.run("() => clock.hide()")
    for _ in range(2):
        await fail(client, await client.server.line(), None)
        await client.take_loss()
    await client.run("() => dispatchEvent(new Event('online'))")
    line = await client.server.line()
    await line.welcome(expires_at=SERVER_TIME_AT + 3_600_000)


async def test_a_welcome_after_sleep_is_accepted(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    line = await client.server.line()
    auth = await line.receive("auth")
    await client.run("() => { clock.nowMs += 60_000; }")
    await line.answer(auth, **welcome())
    await line.join()
    await client.take("session")


# Listeners that close


@pytest.mark.parametrize("moment", ["welcome", "connection", "error"])
async def test_a_listener_may_close_the_meter(client: ClientPage, moment: str) -> None:
    await client.construct("token: async () => { throw new Error('no network'); }")
    if moment == "welcome":
        await client.construct()
    await client.run(
        "(moment) => { let n = 0; meter.addEventListener(moment, () => {"
        " if (moment !== 'connection' || ++n === 2) meter.close(); }); meter.connect(); }",
        moment,
    )
    if moment == "welcome":
        line = await client.server.line()
        await line.welcome()
        await line.receive_close()
    await client.run("async () => { for (let n = 0; n < 9; n += 1) await null; }")
    assert await client.run("() => meter.state") == "closed"
    assert await client.run("() => clock.timers.size") == 0
