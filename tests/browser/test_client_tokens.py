"""Tests the client's tokens: renewed in time, requested again, and refused."""

import pytest

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import SERVER_TIME_AT, tick, welcome

__all__ = ["chromium", "client", "mock_server"]

COUNTED = "token: (() => { let n = 0; return async () => `token-${++n}`; })()"
"""Another token for each call."""
STUCK_FIRST = (
    "token: (() => { let n = 0; return () => { n += 1; const token = `token-${n}`;"
    " return n === STUCK ? new Promise((give) => { window.give = () => give(token); })"
    " : Promise.resolve(token); }; })(), requestTimeoutMs: 3000"
)
"""One call among many does not settle until the test decides."""


# Renewal


async def test_the_token_is_refreshed_before_it_expires(client: ClientPage) -> None:
    await client.construct(COUNTED)
    await client.start()
    line = await client.server.line()
    life = {"ping_ms": 3_600_000, "expires_at": SERVER_TIME_AT + 100_000}
    assert (await line.welcome(**life))["token"] == "token-1"
    await line.join(state="paused")
    await client.take("session")
    await client.advance(49_999)
    assert await client.run("() => clock.timers.size") == 2, "the refresh has not waited"
    await client.advance(1)
    refresh = await line.receive("refresh")
    assert refresh["token"] == "token-2"
    later = {"server_time_at": SERVER_TIME_AT + 50_000, "expires_at": SERVER_TIME_AT + 550_000}
    await line.answer(refresh, **welcome(ping_ms=3_600_000, **later))
    await client.take("welcome")
    await client.advance(400_000)
    assert (await line.receive("refresh"))["token"] == "token-3"


async def test_a_failed_refresh_is_tried_again(client: ClientPage) -> None:
    await client.construct(
        "token: (() => { let n = 0; return async () => {"
        " if (++n === 2) throw new Error('no network'); return `token-${n}`; }; })()"
    )
    await client.run("() => meter.connect()")
    line = await client.server.line()
    await line.welcome(ping_ms=3_600_000, expires_at=SERVER_TIME_AT + 100_000)
    await client.take_state("live")
    await client.advance(50_000)
    error = await client.take("error")
    assert (error["code"], error["retryable"]) == ("unauthenticated", True)
    await client.advance(25_000)
    assert (await line.receive("refresh"))["token"] == "token-3"


async def test_a_failed_token_is_requested_again(client: ClientPage) -> None:
    await client.construct(
        "token: (() => { let n = 0; return async () => {"
        " if (++n === 1) throw new Error('no network'); return `token-${n}`; }; })()"
    )
    await client.start()
    assert (await client.take("error"))["retryable"] is True
    line = await client.next_line()
    assert (await line.welcome())["token"] == "token-2"


async def test_a_forbidden_token_ends_the_attempts(client: ClientPage) -> None:
    await client.construct(
        "token: async () => { throw new TaximeterError('forbidden', 'Signed out.'); }"
    )
    await client.start()
    assert (await client.take("error"))["code"] == "forbidden"
    await client.take_state("offline")
    assert await client.run("() => clock.timers.size") == 0
    assert not client.server.has_new_line()


async def test_a_late_token_opens_no_connection(client: ClientPage) -> None:
    await client.construct(
        "token: () => new Promise((give) => { window.give = give; }),"
        " platform: { ...platform, WebSocket: class extends WebSocket {"
        " constructor(...address) { super(...address); window.opened = true; } } }"
    )
    await client.start()
    await client.run("() => { meter.close(); give('token-1'); }")
    assert await client.run("async () => { await null; return window.opened; }") is None


# Refusal


REFUSAL = {"code": "unauthenticated", "message": "The token has expired.", "retryable": False}


@pytest.mark.parametrize(
    ("code", "is_said"),
    [(4002, False), (4002, True), (4500, False), (4500, True), (1006, True), (1013, True)],
)
async def test_a_refused_fixed_token_ends_the_attempts(
    client: ClientPage, code: int, is_said: bool
) -> None:
    """A refused fixed token ends the attempts, whatever the close code.

    A proxy may change the close code; then the ``error`` before it has the reason.
    """
    await client.construct("token: 'expired-token'")
    await client.start()
    await client.run("() => { window.ready = settled(session.ready); }")
    line = await client.server.line()
    auth = await line.receive("auth")
    if is_said:
        await line.answer(auth, type="error", **REFUSAL)
    if code == 1006:
        line.cut()
    else:
        await line.close(code)
    error = await client.take("error")
    assert (error["code"], error["closeCode"]) == ("unauthenticated", code)
    assert error["retryable"] is False
    state = await client.take_state("offline")
    assert state["error"]["code"] == "unauthenticated"
    assert (await client.run("() => ready"))["error"]["code"] == "unauthenticated"
    assert await client.run("() => clock.timers.size") == 0, "something is still planned"


async def test_an_expired_fixed_token_ends_the_connection(
    client: ClientPage,
) -> None:
    line = await client.live("token: 'token-1'")
    await line.close(4002)
    assert (await client.take("error"))["code"] == "unauthenticated"
    await client.take_state("offline")


async def test_an_expired_token_is_replaced_by_the_function(client: ClientPage) -> None:
    await client.construct(COUNTED)
    await client.start()
    line = await client.server.line()
    await line.answer(await line.receive("auth"), type="error", **REFUSAL)
    await line.close(4002)
    line = await client.next_line()
    assert (await line.welcome())["token"] == "token-2"


async def test_connect_joins_a_session_that_was_given_up(
    client: ClientPage,
) -> None:
    await client.construct(COUNTED)
    await client.start()
    line = await client.server.line()
    await line.receive("auth")
    await line.close(4500)
    await client.take("error")
    await client.take_state("offline")
    await client.run("() => meter.connect()")
    line = await client.server.line()
    await line.welcome()
    await line.join()
    await client.take("session")


# No answer


async def test_a_token_without_an_answer_is_requested_again(client: ClientPage) -> None:
    await client.construct(STUCK_FIRST.replace("STUCK", "1"))
    await client.start()
    await client.advance(3_000)
    error = await client.take("error")
    assert (error["code"], error["retryable"]) == ("timeout", True)
    await client.take_loss()
    await client.run("() => give()")  # too late: it must open no connection
    await client.advance(500)
    line = await client.server.line()
    assert (await line.welcome())["token"] == "token-2"
    await line.join()
    await client.take("session")
    assert not client.server.has_new_line()


async def test_a_refresh_without_an_answer_is_requested_again(client: ClientPage) -> None:
    await client.construct(STUCK_FIRST.replace("STUCK", "2"))
    await client.run("() => meter.connect()")
    line = await client.server.line()
    await line.welcome(ping_ms=3_600_000, expires_at=SERVER_TIME_AT + 100_000)
    await client.take_state("live")
    await client.advance(53_000)
    assert (await client.take("error"))["code"] == "timeout"
    await client.run("() => give()")
    await client.advance(23_500)
    assert (await line.receive("refresh"))["token"] == "token-3"


async def test_a_new_token_for_a_lost_connection_is_dropped(client: ClientPage) -> None:
    """The client drops a new token when the refresh outlasts its connection.

    The next connection has its own token.
    """
    await client.construct(STUCK_FIRST.replace("STUCK", "2"))
    await client.run("() => meter.connect()")
    line = await client.server.line()
    await line.welcome(ping_ms=3_600_000, expires_at=SERVER_TIME_AT + 100_000)
    await client.take_state("live")
    await client.advance(50_000)
    line.cut()
    await client.take_loss()
    await client.run("() => give()")
    line = await client.next_line_now()
    assert (await line.welcome(ping_ms=3_600_000))["token"] == "token-3"
    await client.take_state("live")
    await client.advance(20_000)
    await line.send(type="error", code="bad_message", message="Marker.", retryable=False)
    assert (await client.take("error"))["message"] == "Marker."


# Hidden tabs, in which timers run once a minute


@pytest.mark.parametrize("life_ms", [60_000, 100_000, 150_000, 290_000])
async def test_ticks_renew_the_token_while_timers_sleep(client: ClientPage, life_ms: int) -> None:
    await client.construct(COUNTED)
    await client.start()
    line = await client.server.line()
    await client.run("() => clock.hide()")
    await line.welcome(expires_at=SERVER_TIME_AT + life_ms)
    await line.join()
    await client.take("session")
    # The page sleeps; only messages wake it.
    passed_ms = 0
    while passed_ms < life_ms - 5_000:
        await client.run("(ms) => { clock.nowMs += ms; }", 1_000)
        passed_ms += 1_000
        await line.send(**tick(passed_ms))
        await client.take("tick")
    assert (await line.receive("refresh"))["token"] == "token-2"


@pytest.mark.parametrize("life_ms", [150_000, 200_000, 290_000, 600_000])
async def test_a_quiet_connection_renews_the_token_while_timers_sleep(
    client: ClientPage, life_ms: int
) -> None:
    await client.construct(COUNTED)
    await client.run("() => meter.connect()")
    line = await client.server.line()
    await client.run("() => { clock.hide(); clock.nowMs = 60_500; }")
    await line.welcome(ping_ms=3_600_000, expires_at=SERVER_TIME_AT + life_ms)
    await client.take_state("live")
    await client.advance(life_ms - 1)
    assert (await line.receive("refresh"))["token"] == "token-2"


async def test_a_page_shown_again_renews_its_token_at_once(client: ClientPage) -> None:
    await client.construct(COUNTED)
    await client.run("() => meter.connect()")
    line = await client.server.line()
    await line.welcome(ping_ms=3_600_000, expires_at=SERVER_TIME_AT + 100_000)
    await client.take_state("live")
    await client.run("() => { clock.hide(); clock.nowMs += 55_000; clock.hide(false); }")
    await line.receive("ping")
    assert (await line.receive("refresh"))["token"] == "token-2"
