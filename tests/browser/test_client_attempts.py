"""The client's attempts to get in: those that fail, and a page that wakes."""

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
async def test_a_socket_that_could_not_be_made_is_tried_again(
    client: ClientPage, name: str
) -> None:
    await client.construct(THROWS.replace("NAME", name))
    await client.start()
    error = await client.take("error")
    assert (error["code"], error["retryable"]) == ("unavailable", True)
    line = await client.next_line()
    await line.welcome()
    await line.join()
    await client.take("session")


# No way in


async def fail(client: ClientPage, line: BrowserSocket, code: int | None) -> None:
    """End an attempt without a welcome."""
    await line.receive("auth")
    if code is None:
        line.cut()
    else:
        await line.close(code)


@pytest.mark.parametrize("code", [None, 1013, 4000])
@pytest.mark.parametrize("was_live", [False, True])
async def test_after_three_attempts_without_a_welcome_the_page_is_told(
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
    # It is told once, and the attempts go on.
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


async def test_what_the_server_says_is_the_reason(client: ClientPage) -> None:
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


async def test_a_token_that_cannot_be_had_is_the_reason(client: ClientPage) -> None:
    await client.construct("token: async () => { throw new Error('no network'); }")
    await client.run("() => meter.connect()")
    for _ in range(3):
        assert (await client.take("error"))["code"] == "unauthenticated"
        await client.advance(10_000)
    error = await client.take("error")
    assert (error["code"], error["message"]) == ("unreachable", "The token function failed.")


async def test_a_welcome_ends_the_count(client: ClientPage) -> None:
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
    """The server would close the connection for it, and each one after it."""
    await client.construct()
    await client.start("metadata: { text: '\u00e9'.repeat(9_000) }")
    line = await client.server.line()
    await line.welcome()
    assert (await client.take("error"))["code"] == "bad_message"
    assert (await client.run("() => settled(session.ready)"))["error"]["code"] == "bad_message"


async def test_the_reader_need_not_wait_for_the_next_attempt(client: ClientPage) -> None:
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


# A page that is hidden, and one that wakes


async def test_a_hidden_page_comes_back_without_a_timer(client: ClientPage) -> None:
    """Its timer might take a minute, and the session does not wait so long."""
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


async def test_a_hidden_page_does_not_wait_for_a_drain_that_has_happened(
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
        "() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))",
        "() => document.dispatchEvent(new Event('visibilitychange'))",
        "() => document.dispatchEvent(new Event('resume'))",
    ],
)
async def test_a_page_that_wakes_asks_a_silent_line_for_an_answer(
    client: ClientPage, event: str
) -> None:
    line = await client.live()
    await client.advance(5_000)
    await client.run(event)
    await line.receive("ping")
    await client.advance(10_000)
    await client.take_loss()


async def test_a_page_that_wakes_trusts_a_line_that_speaks(client: ClientPage) -> None:
    line = await client.live()
    await client.advance(5_000)
    await line.send(**tick(5_000))
    await client.take("tick")
    await client.run("() => dispatchEvent(new Event('online'))")
    await client.advance(9_000)
    await line.send(**tick(14_000))
    await client.take("tick")
    assert await client.run("() => meter.state") == "live"


async def test_the_network_of_a_hidden_page_returns(client: ClientPage) -> None:
    await client.construct()
    await client.start()
    await client.run("() => clock.hide()")
    for _ in range(2):
        await fail(client, await client.server.line(), None)
        await client.take_loss()
    await client.run("() => dispatchEvent(new Event('online'))")
    line = await client.server.line()
    await line.welcome(expires_at=SERVER_TIME_AT + 3_600_000)


async def test_a_welcome_to_a_page_that_slept_is_not_too_late(client: ClientPage) -> None:
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
async def test_a_listener_may_close(client: ClientPage, moment: str) -> None:
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
