"""Tests many tabs on one connection, in Chromium against the mock server."""

import pytest

from tests.browser.fixtures import chromium, context, mock_server
from tests.browser.mock_server import snapshot, stopped, tick
from tests.browser.tab_fixtures import Tabs, quote, tabs, token

__all__ = ["chromium", "context", "mock_server", "tabs"]


async def test_ten_tabs_are_one_socket_and_one_start(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    others = [await tabs.follow(line) for _ in range(9)]
    await line.send(**tick(1_000))
    for tab in (first, *others):
        assert (await tab.take("tick"))["elapsed_ms"] == 1_000
    assert not tabs.server.has_new_line()


async def test_tabs_that_start_a_session_at_once_start_it_once(tabs: Tabs) -> None:
    first = await tabs.open()
    await first.start()
    line = await tabs.server.line()
    second = await tabs.open()
    await second.start()
    await line.welcome()
    start = await line.receive("start")
    await second.take_state("live")
    await line.answer(start, **snapshot())
    await line.join_again()
    for tab in (first, second):
        await tab.take("session")


async def test_a_start_that_is_refused_lets_the_next_tab_start(tabs: Tabs) -> None:
    first = await tabs.open()
    await first.start()
    line = await tabs.server.line()
    second = await tabs.open()
    await second.start()
    await line.welcome()
    start = await line.receive("start")
    await second.take_state("live")
    refusal = {"type": "error", "code": "forbidden", "message": "no", "retryable": False}
    await line.answer(start, **refusal)
    await line.join()
    await second.take("session")
    assert (await first.take("error"))["code"] == "forbidden"


async def test_the_last_tab_that_leaves_is_the_one_that_leaves(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    second = await tabs.follow(line)
    await first.run("() => session.leave()")
    await line.send(**tick(1_000))
    await second.take("tick")
    assert await first.run("() => events.some(({ type }) => type === 'tick')") is False
    await second.run("() => session.leave()")
    await line.receive("leave")


async def test_a_tab_that_is_closed_leaves_what_only_it_had(tabs: Tabs) -> None:
    _, line = await tabs.lead()
    second = await tabs.follow(line)
    await second.run("() => { meter.start({ kind: 'chat', sessionId: 'other' }); }")
    await line.join()
    await second.page.close()
    assert (await line.receive("leave"))["session_id"] == "other"
    assert line.is_open


async def test_a_change_in_one_tab_is_seen_in_all(tabs: Tabs) -> None:
    """The server answers the tab that asks, and no other."""
    first, line = await tabs.lead()
    second = await tabs.follow(line)
    await second.run("() => { window.paused = session.pause(); }")
    await line.answer(await line.receive("pause"), **snapshot(state="paused", seq=1))
    assert (await second.run("() => paused"))["state"] == "paused"
    assert (await first.take("session"))["state"] == "paused"
    await first.run("() => { window.ended = session.stop(); }")
    await line.answer(await line.receive("stop"), **stopped(2))
    assert (await first.run("() => ended"))["reason"] == "client"
    assert (await second.take("session"))["state"] == "paused"
    assert (await second.take("stopped"))["reason"] == "client"


async def test_a_tab_that_only_watches_may_not_stop(tabs: Tabs) -> None:
    _, line = await tabs.lead()
    second = await tabs.open()
    await second.run("() => { window.session = meter.watch('session-1'); }")
    await line.join_again()
    found = await second.run("async () => { await session.ready; return settled(session.stop()); }")
    assert found["error"]["code"] == "forbidden"


async def test_a_session_that_is_still_watched_is_left_and_watched_anew(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    second = await tabs.open()
    await second.run("() => { window.session = meter.watch('session-1'); }")
    await line.join_again()
    await second.run("async () => { await session.ready; }")
    await first.run("() => session.leave()")
    await line.receive("leave")
    await line.join_again(elapsed_ms=2_000)
    await second.run(
        "() => new Promise((done) => { const look = () =>"
        " session.now().elapsed_ms >= 2_000 ? done() : setTimeout(look); look(); })"
    )


async def test_the_fastest_pace_wins(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    second = await tabs.open()
    await second.start("tickMs: 250")
    assert (await line.join())["tick_ms"] == 250
    await second.take("session")
    third = await tabs.open()
    await third.start("tickMs: 5_000, lastSeq: 0")
    assert (await line.join())["tick_ms"] == 250
    await first.run("() => session.leave()")


async def test_messages_of_the_account_reach_all_tabs_and_later_ones(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    await line.send(type="usage", month="2026-11", member_used_ms=60_000, member_limit_ms=None)
    await line.send(type="credit", account_id="user-1", credits="9.5", delta="7", reason="grant")
    assert (await first.take("credit"))["credits"] == "9.5"
    second = await tabs.open()
    await second.run("() => meter.connect()")
    await second.take_state("live")
    found = await second.run(
        "() => new Promise((done) => { const look = () => {"
        " const { credits, usage } = meter.getSnapshot(); if (usage) done([credits, usage.month]);"
        " }; meter.subscribe(look); look(); })"
    )
    assert found == [9.5, "2026-11"]


# Who shares


async def test_two_users_share_nothing(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    other = await tabs.open(quote(token("user-2")))
    await other.start()
    second_line = await tabs.server.line()
    await second_line.welcome(user_id="user-2", account_id="user-2")
    await second_line.join()
    await other.take("session")
    await line.send(**tick(1_000))
    await first.take("tick")
    await second_line.send(**tick(2_000))
    assert (await other.take("tick"))["elapsed_ms"] == 2_000


OTHERS = {
    "an organisation": quote(token(org="acme")),
    "fewer sessions": quote(token(sessions=["session-1"])),
    "an operator": quote(token(scope="ops")),
    "no claims to read": "token: 'no-claims'",
}


@pytest.mark.parametrize("other", OTHERS)
async def test_a_token_of_other_rights_has_a_socket_of_its_own(tabs: Tabs, other: str) -> None:
    await tabs.lead()
    tab = await tabs.open(OTHERS[other])
    await tab.run("() => meter.connect()")
    await (await tabs.server.line()).welcome()
    await tab.take_state("live")


async def test_the_times_of_a_token_make_no_difference(tabs: Tabs) -> None:
    _, line = await tabs.lead()
    await tabs.follow(line, quote(token(in_ms=600_000, iat=1, nbf=2, jti="x")))
    assert not tabs.server.has_new_line()


async def test_an_expired_token_is_not_let_in(tabs: Tabs) -> None:
    await tabs.lead()
    tab = await tabs.open(quote(token(in_ms=-1_000)))
    await tab.run("() => meter.connect()")
    assert (await tab.take("error"))["closeCode"] == 4002
    assert not tabs.server.has_new_line()


@pytest.mark.parametrize("missing", ["locks", "BroadcastChannel"])
async def test_a_browser_without_locks_or_channels_has_a_socket_each(
    tabs: Tabs, missing: str
) -> None:
    for _ in range(2):
        tab = await tabs.blank()
        target = "Navigator.prototype" if missing == "locks" else "globalThis"
        await tab.run(f"() => Object.defineProperty({target}, '{missing}', {{ value: undefined }})")
        await tab.construct(f"{quote(token())}, tabs")
        await tab.start()
        line = await tabs.server.line()
        await line.welcome()
        await line.join()
        await tab.take("session")


async def test_the_tabs_on_one_socket_are_bounded(tabs: Tabs) -> None:
    _, line = await tabs.lead()
    page = await tabs.blank()
    await page.run(
        """async (token) => {
          const { Taximeter } = await import('/client/taximeter.js');
          window.open = () => new Promise((live) => {
            const meter = new Taximeter({ platform, fallback: null, token, tabs });
            meter.addEventListener('welcome', () => live());
            meter.connect();
          });
          for (let i = 0; i < 31; i += 1) await open();
          open();
        }""",
        token(),
    )
    second = await tabs.server.line()
    await second.receive("auth")
    assert line.is_open
