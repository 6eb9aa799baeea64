"""Tests the tabs when their leader or their connection goes."""

import pytest

from tests.browser.fixtures import ClientPage, chromium, context, mock_server
from tests.browser.mock_server import SERVER_TIME_AT, snapshot, tick, warning, welcome
from tests.browser.tab_fixtures import Tabs, quote, tabs, token

__all__ = ["chromium", "context", "mock_server", "tabs"]

LOG_OUT = "() => meter.switchUser(null)"
FREEZE = "() => document.dispatchEvent(new Event('freeze'))"
RESUME = "() => document.dispatchEvent(new Event('resume'))"
RENEWAL_MS = 3_600_000 - 120_000
EXPIRES_AT = """(at) => new Promise((done) => {
  const look = () => (meter.welcome?.expires_at === at ? done() : setTimeout(look));
  look();
})"""
TIMERS = """() => new Promise((done) => {
  const look = () => (clock.timers.size > 1 ? done() : setTimeout(look));
  look();
})"""
TURN = "() => new Promise((done) => setTimeout(done))"


# When the leader goes


async def test_the_next_tab_leads_at_once_when_the_leader_is_closed(tabs: Tabs) -> None:
    """Without any time of the tabs' clocks."""
    first, line = await tabs.lead()
    second, third = await tabs.follow(line), await tabs.follow(line)
    await line.send(**warning(3))
    for tab in (second, third):
        await tab.take("limit_warning")
    await first.page.close()
    assert await line.receive_close() in (1000, 1001)
    line = await tabs.server.line()
    await line.welcome()
    for _ in (second, third):
        start = await line.receive("start")
        assert start["last_seq"] == 3
        await line.answer(start, **snapshot(seq=3))
    for tab in (second, third):
        await tab.take("session")
    assert not tabs.server.has_new_line()


async def test_the_next_tab_leads_when_the_leader_is_closed_before_the_welcome(tabs: Tabs) -> None:
    first = await tabs.open()
    await first.start()
    line = await tabs.server.line()
    second = await tabs.open()
    await second.start()
    await line.receive("auth")
    await second.run(TIMERS)
    await first.page.close()
    line = await second.next_line()
    await line.welcome()
    await line.join()
    await second.take("session")


async def test_the_next_tab_leads_when_the_leader_crashes(tabs: Tabs) -> None:
    """It says nothing any more: its lock is free."""
    first, line = await tabs.lead()
    second = await tabs.follow(line)
    await tabs.crash(first)
    assert await line.receive_close() in (1001, 1005, 1006, None)
    line = await tabs.server.line()
    await line.welcome()
    await line.join()
    await second.take("session")


async def test_a_frozen_leader_hands_over_and_follows_when_it_is_back(tabs: Tabs) -> None:
    """Until then it keeps its own sessions alive, and no others."""
    first, line = await tabs.lead()
    second = await tabs.follow(line)
    await second.run("() => { meter.start({ kind: 'chat', sessionId: 'other' }); }")
    await line.join()
    await first.run(FREEZE)
    assert (await line.receive("leave"))["session_id"] == "other"
    new = await tabs.server.line()
    await new.welcome()
    for _ in range(2):
        await new.join()
    await second.take("session")
    await line.send(**tick(1_000))
    await first.take("tick")
    await first.run(RESUME)
    assert (await new.join())["last_seq"] == 0
    await first.take("session")
    assert await line.receive_close() == 1000
    await new.send(**tick(2_000))
    for tab in (first, second):
        assert (await tab.take("tick"))["elapsed_ms"] == 2_000
    assert not tabs.server.has_new_line()


async def test_a_frozen_tab_without_others_keeps_its_connection(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    await first.run(FREEZE)
    await first.run(RESUME)
    await line.send(**tick(1_000))
    await first.take("tick")
    assert not tabs.server.has_new_line()


DEAF = """async ([url, token, answers]) => {
  const { groupOf } = await import('/client/claims.js');
  const group = groupOf(url, token);
  const channel = new BroadcastChannel(group);
  channel.onmessage = ({ data: { from, kind } }) => {
    if (kind !== 'hello' || !answers) return;
    answers -= 1;
    channel.postMessage({ from: 'deaf', to: [from], kind: 'here', isStream: false });
    window.answered?.();
  };
  await new Promise((held) => {
    const hold = () => { held(); return new Promise(() => {}); };
    navigator.locks.request(group, hold).catch(() => {}); // it is taken from this tab
  });
}"""


@pytest.mark.parametrize("answers", [0, 1])
async def test_a_leader_that_stands_still_is_replaced(tabs: Tabs, answers: int) -> None:
    """It holds the lock, and says nothing at first or later."""
    deaf = await tabs.blank()
    url = f"{tabs.server.url.replace('http', 'ws')}/v1/ws"
    await deaf.run(DEAF, [url, token(), answers])
    tab = await tabs.open()
    await tab.start()
    while not tabs.server.has_new_line():
        await tab.advance(250)
        await tab.run(TURN)
    line = await tabs.server.line()
    await line.welcome()
    await line.join()
    await tab.take("session")


async def test_a_connection_is_closed_with_the_last_tab(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    second = await tabs.follow(line)
    await second.page.close()
    await first.page.close()
    assert await line.receive_close() in (1000, 1001)
    assert not tabs.server.has_new_line()


# Logging out


async def test_a_tab_that_logs_out_leaves_the_others_their_connection(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    second = await tabs.follow(line)
    await second.run(LOG_OUT)
    await line.send(**tick(1_000))
    await first.take("tick")
    assert await second.run("() => [meter.state, events.some(({ type }) => type === 'tick')]") == [
        "idle",
        False,
    ]


async def test_a_leader_that_logs_out_keeps_the_line_until_others_have_moved(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    second = await tabs.follow(line)
    await first.run(LOG_OUT)
    new = await tabs.server.line()
    await new.welcome()
    assert line.is_open
    await new.join()
    await second.take("session")
    assert await line.receive_close() == 1000
    assert await first.run("() => [meter.state, meter.getSnapshot().user_id]") == ["idle", None]


async def test_a_leader_that_logs_out_does_not_wait_for_a_tab_that_sleeps(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    second = await tabs.open(
        f"token: () => window.isAsleep ? new Promise(() => {{}}) : '{token()}'"
    )
    await second.start()
    await line.join_again()
    await second.take("session")
    await second.run("() => { window.isAsleep = true; }")
    await first.run(LOG_OUT)
    await first.advance(5_000)
    assert await line.receive_close() == 1000


async def test_another_user_in_one_tab_has_a_connection_of_their_own(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    second = await tabs.follow(line)
    await second.run("(token) => meter.switchUser(token)", token("user-2"))
    other = await tabs.server.line()
    await other.welcome(user_id="user-2", account_id="user-2")
    await second.take_state("live")
    assert await second.run("() => meter.getSnapshot().user_id") == "user-2"
    await line.send(**tick(1_000))
    await first.take("tick")


# The connection


async def test_a_lost_connection_is_one_connection_again(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    second = await tabs.follow(line)
    line.cut()
    for tab in (first, second):
        await tab.take_loss()
    for tab in (first, second):
        await tab.advance(500)
    line = await tabs.server.line()
    await line.welcome()
    for _ in range(2):
        await line.join()
    for tab in (first, second):
        await tab.take("session")
    assert not tabs.server.has_new_line()


async def test_a_draining_process_is_left_without_a_gap(tabs: Tabs) -> None:
    first, line = await tabs.lead()
    second = await tabs.follow(line)
    await line.send(type="reconnect", after_ms=2_000)
    await first.run(
        "() => new Promise((done) => { const look = () =>"
        " [...clock.timers.values()].some(({ atMs }) => atMs === clock.nowMs + 1_000)"
        " ? done() : setTimeout(look); look(); })"
    )
    await first.advance(1_000)
    new = await tabs.server.line()
    await new.welcome()
    for _ in range(2):
        await new.join()
    for tab in (first, second):
        await tab.take("session")
    assert await line.receive_close() == 1000
    assert not tabs.server.has_new_line()


async def test_only_the_tab_whose_token_is_refused_gives_up(tabs: Tabs) -> None:
    first = await tabs.open()
    await first.start()
    line = await tabs.server.line()
    second = await tabs.open()
    await second.start()
    await line.receive("auth")
    await second.run(TIMERS)  # it waits for the leader
    await line.close(4500, "the token is invalid")
    assert (await first.take("error"))["closeCode"] == 4500
    await first.take_state("offline")
    line = await second.next_line()
    await line.welcome()
    await line.join()
    await second.take("session")


async def renewing(tabs: Tabs, first: str, then: str) -> ClientPage:
    """A tab whose first token is followed by others."""
    tab = await tabs.blank()
    await tab.run("(token) => { window.tokens = [token]; }", first)
    await tab.construct(f"token: () => window.tokens.shift() ?? '{then}', tabs")
    await tab.start()
    return tab


async def test_one_new_token_serves_all_tabs(tabs: Tabs) -> None:
    first = await renewing(tabs, token(), token(in_ms=7_200_000))
    line = await tabs.server.line()
    await line.welcome(ping_ms=0)
    await line.join()
    second = await renewing(tabs, token(), token(in_ms=7_200_000))
    await line.join_again()
    await second.take("session")
    await first.run("(ms) => clock.sleep(ms)", RENEWAL_MS)
    later = SERVER_TIME_AT + 7_200_000
    await line.answer(await line.receive("refresh"), **welcome(expires_at=later, ping_ms=0))
    await first.run(EXPIRES_AT, later)
    # Its own token is renewed, and the server hears nothing of it.
    await second.run("(ms) => clock.sleep(ms)", RENEWAL_MS)
    await second.run(EXPIRES_AT, later)
    await second.run("(token) => { window.tokens = [token]; }", token(in_ms=7_000_000))
    await second.run("(ms) => clock.sleep(ms)", 2 * RENEWAL_MS)
    await second.run("() => { window.paused = session.pause(); }")
    await line.receive("pause")


async def test_a_new_token_of_other_rights_has_another_connection(tabs: Tabs) -> None:
    other = token(in_ms=7_200_000, scope="more")
    first = await renewing(tabs, token(), other)
    line = await tabs.server.line()
    await line.welcome(ping_ms=0)
    await line.join()
    await first.take("session")
    await first.run("(ms) => clock.sleep(ms)", RENEWAL_MS)
    new = await tabs.server.line()
    assert (await new.welcome())["token"] == other
    await new.join()
    assert await line.receive_close() == 1000


@pytest.mark.parametrize("asks", [False, True])
async def test_a_follower_whose_token_expires_hears_nothing_more(tabs: Tabs, asks: bool) -> None:
    """A server would close it with 4002."""
    first = await tabs.open()
    await first.start()
    line = await tabs.server.line()
    await line.welcome(ping_ms=0, expires_at=SERVER_TIME_AT + 3_600_000)
    await line.join()
    await first.take("session")
    second = await tabs.follow(line, quote(token(in_ms=60_000)))
    assert await second.run("() => meter.welcome.expires_at") == SERVER_TIME_AT + 60_000
    await line.send(**tick(1_000))
    for tab in (first, second):
        await tab.take("tick")
    await first.run("(ms) => clock.sleep(ms)", 61_000)
    if asks:
        await second.run("() => { session.pause().catch(() => {}); }")
    else:
        await line.send(**tick(2_000))
        assert (await first.take("tick"))["elapsed_ms"] == 2_000
    assert (await second.take("error"))["closeCode"] == 4002
    await second.take_state("offline")
    await first.run("() => { session.resume().catch(() => {}); }")
    await line.receive("resume")
    assert not tabs.server.has_new_line()
