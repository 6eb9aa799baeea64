"""Tests changed providers, changed users and failed starts in React."""

from typing import Any

import pytest

from tests.browser.fixtures import ClientPage, chromium, mock_server
from tests.browser.mock_server import BrowserSocket, snapshot, stopped, tick, warning
from tests.browser.react_fixtures import begin, react

__all__ = ["chromium", "mock_server", "react"]

# A provider's meter, when its properties change


OWN = """
() => {
  window.meters = new Set();
  window.Inner = () => { window.meter = useMeter(); meters.add(meter); return h(Chat); };
  window.own = (props) => h(React.StrictMode, null,
    h(TaximeterProvider, { url: '/v1/ws', token: () => 'token-1', ...props }, h(Inner)));
}
"""


async def own(react: ClientPage, props: str = "{}", **changes: Any) -> BrowserSocket:
    """A session on a provider's own meter."""
    if await react.run("() => !window.own"):
        await react.run(OWN)
    await react.run(f"() => render(own({props}))")
    line = await react.server.line()
    await line.welcome(**changes)
    await line.join()
    await react.page.wait_for_function("() => text() === 'running'")
    return line


@pytest.mark.parametrize("changed", ["{ url: '/v1/ws?2' }", "{ url: undefined, meter: given }"])
async def test_a_provider_closes_the_meter_that_it_replaces(
    react: ClientPage, changed: str
) -> None:
    await react.run("() => { window.given = meter; }")
    line = await own(react)
    await react.run(f"() => {{ window.first = meter; render(own({changed})); }}")
    await line.receive("leave")
    assert await line.receive_close() == 1000
    assert await react.run("() => [first.state, first !== meter]") == ["closed", True]
    other = await react.server.line()
    await other.welcome()
    await other.join()
    await react.page.wait_for_function("() => text() === 'running'")
    await react.run("() => render(own({}))")
    assert (await react.run("() => meter.state")) != "closed"
    third = await react.server.line()
    await third.welcome()
    await third.join()
    await react.page.wait_for_function("() => text() === 'running'")
    await react.run("settle")
    await other.receive("leave")
    if "given" in changed:
        assert other.is_open, "a meter of the app stays open"
    else:
        assert await other.receive_close() == 1000


async def test_a_provider_may_get_its_meter_later(react: ClientPage) -> None:
    await react.run("() => { window.given = meter; }")
    await react.run(OWN)
    await react.run("() => render(own({ url: undefined, meter: given }))")
    await (await react.server.line()).welcome()
    await react.run("() => render(own({ url: undefined }))")
    assert await react.run("() => meter !== given")
    await (await react.server.line()).welcome()


async def test_another_user_of_a_provider_is_another_login(react: ClientPage) -> None:
    first = await own(react, "{ user: 1 }")
    await react.run("() => { window.first = meter; }")
    await react.run("() => render(own({ user: 2, token: () => 'token-2' }))")
    assert await first.receive_close() == 1000
    line = await react.server.line()
    assert (await line.welcome(user_id="user-2"))["token"] == "token-2"
    await line.join()
    await react.page.wait_for_function("() => text() === 'running'")
    assert await react.run("() => meter === first")


async def test_a_provider_without_a_user_asks_for_no_token(react: ClientPage) -> None:
    await react.run(OWN)
    await react.run("() => render(own({ token: null }))")
    await react.run("() => meter.connect()")
    await react.page.wait_for_function("() => meter.state === 'offline'")
    await own(react)


async def test_a_provider_may_share_its_connection_among_tabs(react: ClientPage) -> None:
    await react.run("() => { window.tokens = []; }")
    await own(react, "{ tabs: (Socket, token) => (tokens.push(token), Socket) }")
    assert await react.run("() => tokens") == ["token-1"]


async def test_a_hot_reload_of_the_provider_keeps_its_meter(react: ClientPage) -> None:
    line = await own(react)
    await react.run("() => { window.first = meter; render(own({})); }")
    await react.run("settle")
    assert await react.run("() => meter === first")
    await react.mark(line)


# Another user


SHOWN = """
() => {
  window.Shown = () => {
    const notices = useNotices('session-1');
    const [usage, credits] = [useUsage((it) => it?.member_used_ms ?? '-'), useCredits() ?? '-'];
    return h('p', null, h(Clock, { session: 'session-1', initial: { elapsed_ms: 9_000 } }), ' ',
      [usage, credits, notices.length, useConnection().error?.message ?? '-'].join(' '));
  };
}
"""


@pytest.mark.parametrize("is_ended", [False, True])
@pytest.mark.parametrize("is_held", [False, True])
async def test_nothing_is_shown_of_the_user_before(
    react: ClientPage, is_ended: bool, is_held: bool
) -> None:
    """Also where a component has held a session that has ended."""
    await react.run(SHOWN)
    held = "app(h(Shown), h(Chat))"
    line = await begin(react, held)
    usage = {"member_used_ms": 60_000, "member_limit_ms": None}
    await line.send(type="usage", month="2026-11", org_used_ms=None, org_limit_ms=None, **usage)
    await line.send(**warning(1))
    await line.send(**tick(65_000))
    await react.page.wait_for_function("() => text().startsWith('1:05 60000 ')")
    if is_ended:
        await line.send(**stopped(2))
        await react.page.wait_for_function(
            "() => text().startsWith('3:30') && text().endsWith('ended')"
        )
    if not is_held:
        await react.run("() => render(app(h(Shown)))")
        await react.run("settle")
    await react.run("() => meter.switchUser(() => 'token-2')")
    off = "starting" if is_held else ""  # what is mounted is the next user's
    await react.page.wait_for_function(f"() => text() === '0:00 - - 0 -{off}'")
    again = await react.server.line()
    await again.welcome(user_id="user-2", credits="7")
    await react.page.wait_for_function(f"() => text() === '0:00 - 7 0 -{off}'")
    await react.run("() => render(app(h(Shown), h(Chat, { key: 'new' })))")
    start = await again.receive("start")
    assert await react.run("() => text().startsWith('0:00 - 7 0 -')")
    await again.answer(start, **snapshot(elapsed_ms=2_000))
    await react.page.wait_for_function("() => text().startsWith('0:02')")


async def test_a_token_in_flight_at_a_log_out_is_not_used(react: ClientPage) -> None:
    """At the first connection, and at a renewal."""
    await react.run(
        "() => { window.gates = []; window.gate = () => new Promise((open) => gates.push(open)); }"
    )
    await react.run(OWN)
    await react.run("() => render(own({ token: gate }))")
    await react.page.wait_for_function("() => gates.length === 1")
    await react.run("() => { render(own({ token: null })); gates[0]('old'); }")
    await react.run("settle")
    assert await react.run("() => meter.state") == "idle"
    await react.run("() => render(own({ token: gate }))")
    await react.page.wait_for_function("() => gates.length === 2")
    await react.run("() => gates[1]('token-2')")
    line = await react.server.line()
    assert (await line.welcome())["token"] == "token-2"


async def test_a_token_of_another_user_is_a_change_of_user(react: ClientPage) -> None:
    """Without a word: the token function gives what it gives."""
    await react.run(SHOWN)
    line = await begin(react, "app(h(Shown), h(Chat))")
    usage = {"member_used_ms": 60_000, "member_limit_ms": None}
    await line.send(type="usage", month="2026-11", org_used_ms=None, org_limit_ms=None, **usage)
    await line.send(**tick(65_000))
    await react.page.wait_for_function("() => text().startsWith('1:05 60000 ')")
    line.cut()
    await react.page.wait_for_function("() => meter.state === 'reconnecting'")
    await react.advance(10_000)
    other = await react.server.line()
    await other.welcome(user_id="user-2")
    assert await other.receive_close() == 1000
    last = await react.server.line()
    await last.welcome(user_id="user-2", credits="7")
    await react.page.wait_for_function("() => text() === '0:00 - 7 0 -off'")
    await react.run("() => { settled(meter.start({ kind: 'chat', sessionId: 'new' }).ready); }")
    assert (await last.receive("start"))["session_id"] == "new", "the old session is not joined"


# A session that cannot start


REFUSED: dict[str, dict[str, Any]] = {
    "unknown_kind": {"retryable": False},
    "forbidden": {"retryable": False},
    "insufficient_credits": {"retryable": False, "limit": "credits"},
    "limit_reached": {"retryable": False, "limit": "member_minutes"},
}


async def refuse(react: ClientPage, line: BrowserSocket, code: str = "forbidden") -> None:
    start = await line.receive("start")
    await line.answer(start, type="error", code=code, message="No.", **REFUSED[code])


FAILING = """
() => {
  const show = ({ status, error }) => `${status} ${error?.code} ${error?.limit};`;
  window.Fails = ({ select = show, ...rest }) =>
    h(Chat, { select: (view) => { window.view = view; return select(view); }, ...rest });
}
"""


@pytest.mark.parametrize("code", REFUSED)
async def test_a_session_that_cannot_start_says_why_and_may_be_tried_again(
    react: ClientPage, code: str
) -> None:
    await react.run(FAILING)
    await react.run("() => render(app(h(Fails), h(Fails)))")
    line = await react.server.line()
    await line.welcome()
    await refuse(react, line, code)
    limit = REFUSED[code].get("limit", "null")
    await react.page.wait_for_function(f"() => text() === 'failed {code} {limit};'.repeat(2)")
    await react.run("settle")
    await react.run("() => { view.retry(); view.retry(); }")
    assert await react.run("text") == "starting undefined undefined;" * 2
    await line.join()
    await react.page.wait_for_function("() => text() === 'running undefined undefined;'.repeat(2)")
    await react.run("settle")
    await react.run("() => view.retry()")  # does nothing to one that runs
    await react.mark(line)
    await react.run("() => render(app())")
    await react.run("settle")
    assert (await line.receive("leave"))["session_id"] == "session-1"
    assert await react.run("() => meter.find('session-1') === undefined")


async def test_a_component_that_is_mounted_anew_tries_again(react: ClientPage) -> None:
    await react.run(FAILING)
    await react.run("() => render(app(h(Fails, { key: 1 })))")
    line = await react.server.line()
    await line.welcome()
    await refuse(react, line)
    await react.page.wait_for_function("() => text().startsWith('failed')")
    await react.run("() => render(app(h(Fails, { key: 2 })))")
    await refuse(react, line)
    await react.page.wait_for_function("() => text().startsWith('failed')")
    await react.run("() => render(app(h(Fails, { key: 2, enabled: false })))")
    assert (await react.run("text")).startswith("off")
    await react.run("settle")
    await react.run("() => render(app(h(Fails, { key: 2 })))")
    await line.join()
    await react.page.wait_for_function("() => text().startsWith('running')")


async def test_a_failure_is_not_shown_to_the_next_user(react: ClientPage) -> None:
    await react.run(FAILING)
    await react.run("() => render(app(h(Fails)))")
    line = await react.server.line()
    await line.welcome()
    await refuse(react, line)
    await react.page.wait_for_function("() => text().startsWith('failed')")
    await react.run("() => meter.switchUser(() => 'token-2')")
    await react.page.wait_for_function("() => text() === 'starting undefined undefined;'")
    await react.run("() => view.retry()")
    last = await react.server.line()
    await last.welcome(user_id="user-2")
    await last.join()  # the app has asked for the next user, and shows this session to them
    await react.page.wait_for_function("() => text() === 'running undefined undefined;'")


async def test_another_user_of_a_provider_sees_no_time_of_the_old_one(react: ClientPage) -> None:
    """Their session has the same id, and starts at once."""
    await react.run(OWN)
    await react.run(SHOWN)
    await react.run(
        "() => { window.both = (user) => h(React.StrictMode, null, h(TaximeterProvider,"
        " { url: '/v1/ws', user, token: () => `token-${user}` }, h(Chat), ' ', h(Shown)));"
        " render(both(1)); }"
    )
    first = await react.server.line()
    await first.welcome()
    await first.join()
    await first.send(**tick(65_000))
    await react.page.wait_for_function("() => text().startsWith('running 1:05')")
    await react.run("() => render(both(2))")
    await react.page.wait_for_function("() => text() === 'starting 0:00 - - 0 -'")
    last = await react.server.line()
    assert (await last.welcome(user_id="user-2"))["token"] == "token-2"
    await last.join(elapsed_ms=2_000)
    await react.page.wait_for_function("() => text().startsWith('running 0:02')")


async def test_a_session_of_a_lost_login_may_be_tried_again(react: ClientPage) -> None:
    """Where the connection was given up, it connects."""
    await react.run(FAILING)
    await react.run("() => render(app(h(Fails)))")
    await (await react.server.line()).close(4503)
    await react.page.wait_for_function("() => text() === 'failed rate_limited null;'")
    await react.run("() => view.retry()")
    line = await react.server.line()
    await line.welcome()
    await line.join()
    await react.page.wait_for_function("() => text().startsWith('running')")
