"""Tests the React bindings in Chromium, with each supported React."""

import pytest

from tests.browser.bundles import bundle
from tests.browser.fixtures import ClientPage, chromium, mock_server
from tests.browser.mock_server import snapshot, stopped, tick, warning
from tests.browser.node import run_script
from tests.browser.react_fixtures import begin, heard, react

__all__ = ["chromium", "mock_server", "react"]


async def test_strict_mode_is_one_start(react: ClientPage) -> None:
    line = await begin(react)
    await react.run("settle")
    await react.mark(line)
    assert await react.run("text") == "running"


async def test_ten_components_are_one_start_and_the_last_leaves(react: ClientPage) -> None:
    many = "(count) => render(app(...Array.from({ length: count }, (_, key) => h(Chat, { key }))))"
    await react.run(many, 10)
    line = await react.server.line()
    await line.welcome()
    await line.join()
    await react.run(many, 1)
    await react.run("settle")
    await react.mark(line)
    await react.run("() => render(app())")
    await react.run("settle")
    await line.receive("leave")


async def test_another_route_with_the_same_session_sends_nothing(react: ClientPage) -> None:
    line = await begin(react)
    await react.run("() => render(app(h('section', null, h(Chat, { key: 'other' }))))")
    await react.run("settle")
    await react.mark(line)


async def test_new_objects_in_each_render_start_nothing(react: ClientPage) -> None:
    line = await begin(react)
    for number in range(3):
        await react.run(
            "(number) => render(app("
            " h(Chat, { metadata: { number }, select: (view) => view.status })))",
            number,
        )
    await react.run("settle")
    await react.mark(line)


async def test_suspense_that_suspends_again_leaves_nothing(react: ClientPage) -> None:
    await react.run(
        """() => {
          window.gates = {};
          window.Gate = ({ name }) => {
            const gate = (gates[name] ??= (() => {
              let open;
              const promise = new Promise((done) => { open = done; });
              return { promise, open: () => { gates[name].isOpen = true; open(); } };
            })());
            if (!gate.isOpen) throw gate.promise;
            return null;
          };
          window.gated = (name) => app(
            h(React.Suspense, { fallback: 'wait' }, h(Chat), h(Gate, { name })));
          render(gated('a'));
        }"""
    )
    await react.run("() => gates.a.open()")
    line = await react.server.line()
    await line.welcome()
    await line.join()
    await react.run("() => render(gated('b'))")
    assert "wait" in await react.run("text")
    await react.run("settle")
    await react.run("() => gates.b.open()")
    await react.run("settle")
    await react.mark(line)


async def test_a_disabled_hook_starts_nothing_and_leaves_when_disabled(react: ClientPage) -> None:
    await react.run("() => render(app(h(Chat, { enabled: false })))")
    await react.run("settle")
    assert await react.run("() => meter.state") == "idle"
    assert await react.run("text") == "off"
    line = await begin(react)
    await react.run("() => render(app(h(Chat, { enabled: false })))")
    await react.run("settle")
    await line.receive("leave")
    assert await react.run("text") == "off"


async def test_a_new_id_leaves_the_old_session(react: ClientPage) -> None:
    line = await begin(react)
    await react.run("() => render(app(h(Chat, { id: 'session-2' })))")
    start = await line.receive("start")
    assert start["session_id"] == "session-2"
    await react.run("settle")
    assert (await line.receive("leave"))["session_id"] == "session-1"


async def test_actions_come_with_the_view(react: ClientPage) -> None:
    line = await begin(
        react, "app(h(Chat, { select: (view) => { window.view = view; return view.status; } }))"
    )
    await react.run("() => { window.answer = settled(view.stop()); }")
    request = await line.receive("stop")
    await line.send(**{**stopped(1), "id": request["id"]})
    assert (await react.run("() => answer"))["value"]["type"] == "stopped"
    await react.run("settle")
    assert await react.run("text") == "ended"
    await react.run("() => { view = null; render(app()); }")
    await react.run("settle")
    assert not (await react.run("() => meter.find('session-1') !== undefined"))


# Commits


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        ("h(Chat, { select: (view) => view.status })", 0),
        ("h(Chat, { select: ({ status, paid }) => ({ status, paid }), show: JSON.stringify })", 1),
        ("h(Clock, { session: 'session-1' })", 0),
        ("h(Coins)", 1),
    ],
)
async def test_ticks_commit_only_what_is_shown(
    react: ClientPage, child: str, expected: int
) -> None:
    """For 60 s of ten ticks a second, down to one credit."""
    await react.run("() => { window.Coins = () => h('b', null, useCredits(Math.floor)); }")
    line = await begin(react, f"app(h(Chat, {{ key: 'holder' }}), profiled({child}))")
    await heard(react, line)
    await react.run("() => { commits = 0; }")
    await react.run("() => { for (let i = 0; i < 5; i++) clock.advance(100); }")
    for elapsed_ms in range(30_000, 150_000, 200):
        await line.send(**tick(elapsed_ms))
    await heard(react, line)
    assert await react.run("() => commits") == expected


async def test_the_clock_writes_its_text_itself(react: ClientPage) -> None:
    line = await begin(react, "app(h(Chat), h(Clock, { session: 'session-1', id: 'clock' }))")
    await react.run("() => clock.advance(7_400)")
    await react.page.wait_for_function(
        "() => document.querySelector('#clock').textContent === '0:07'"
    )
    await line.send(**tick(65_000))
    await react.page.wait_for_function(
        "() => document.querySelector('#clock').textContent === '1:05'"
    )
    assert await react.run("() => document.querySelector('#clock').role") == "timer"


async def test_a_clock_may_be_mounted_before_its_session_starts(react: ClientPage) -> None:
    await react.run("() => render(app(h(Clock, { session: 'session-1', id: 'clock' })))")
    line = await begin(react, "app(h(Clock, { session: 'session-1', id: 'clock' }), h(Chat))")
    await line.send(**tick(65_000))
    await react.page.wait_for_function(
        "() => document.querySelector('#clock').textContent === '1:05'"
    )


async def test_a_thousand_mounts_keep_nothing(react: ClientPage) -> None:
    line = await begin(react)
    await react.run(
        """async () => {
          window.refs = [];
          for (let i = 0; i < 1000; i++) {
            const id = `mount-${i}`;
            render(app(h(Chat, { key: id, id })));
            refs.push(new WeakRef(meter.find(id)));
            if (i % 50 === 49) await settle();
          }
          render(app());
          await settle();
        }"""
    )
    assert await react.run("() => meter.find('mount-999') === undefined")
    await react.run("() => clock.advance(10_000)")  # the starts get no answer
    assert await react.run("() => [...clock.timers].length") <= 3
    session = await react.page.context.new_cdp_session(react.page)
    await session.send("HeapProfiler.collectGarbage")
    kept = await react.run("() => refs.filter((ref) => ref.deref()).length")
    assert kept <= 1  # React keeps the last tree that it removed
    assert line.is_open


# Notices, credits, usage and connection


async def test_a_notice_is_heard_once(react: ClientPage) -> None:
    await react.run(
        "() => { window.notices = []; window.Toasts = () => { useNotices('session-1',"
        " (notice) => notices.push(notice.seq)); return null; }; }"
    )
    line = await begin(react, "app(h(Toasts), h(Chat))")
    await line.send(**warning(1))
    await line.send(**{**warning(2), "type": "limit_cleared"})
    await heard(react, line)
    await react.run("() => render(app(h(Chat), h(Toasts)))")
    line.cut()
    await react.page.wait_for_function("() => meter.state === 'reconnecting'")
    await react.advance(10_000)
    again = await react.server.line()
    await again.welcome()
    start = await again.receive("start")
    assert start["last_seq"] == 2
    missed = [warning(2), warning(3)]
    await again.answer(start, **snapshot(seq=3, missed=missed))
    await heard(react, again)
    assert await react.run("() => notices") == [1, 2, 3]


async def test_credits_usage_and_connection_are_shown(react: ClientPage) -> None:
    await react.run(
        """() => {
          window.Status = () => h('p', null, [useConnection().connection, useCredits(),
            useUsage((usage) => usage?.member_used_ms ?? '-')].join(' '));
          render(app(h(Status), h(Chat)));
        }"""
    )
    line = await react.server.line()
    await line.welcome()
    await line.join()
    usage = {"member_used_ms": 60_000, "member_limit_ms": None}
    await line.send(type="usage", month="2026-11", org_used_ms=None, org_limit_ms=None, **usage)
    await react.page.wait_for_function("() => text() === 'live 2.5 60000running'")


# A provider's own meter


async def test_a_provider_makes_one_meter_and_closes_it(react: ClientPage) -> None:
    await react.run(
        """() => {
          window.own = (token) => h(React.StrictMode, null, h(TaximeterProvider,
            { url: '/v1/ws', token: token && (() => token) },
            h(() => { window.meter = useMeter(); return h(Chat); })));
          window.shown = own('token-1'); render(shown);
        }"""
    )
    line = await react.server.line()
    assert (await line.welcome())["token"] == "token-1"
    await line.join()
    await react.run("() => { window.first = meter; render(null); }")
    await line.receive_close()
    assert await react.run("() => first.state") == "closed"
    assert not react.server.has_new_line()


async def test_a_provider_logs_out_and_in(react: ClientPage) -> None:
    await react.run(
        """() => {
          window.Inner = () => { window.meter = useMeter(); return h(Chat); };
          window.own = (token) => h(React.StrictMode, null, h(TaximeterProvider,
            { url: '/v1/ws', token: token && (() => token) }, h(Inner)));
          render(own('token-1'));
        }"""
    )
    line = await react.server.line()
    await line.welcome()
    await line.join()
    await react.run("() => render(own(null))")
    await line.receive_close()
    assert await react.run("() => meter.state") == "idle"
    assert await react.run("text") == "off"
    await react.run("() => render(own('token-2'))")
    line = await react.server.line()
    assert (await line.welcome())["token"] == "token-2"
    await line.join()
    await react.page.wait_for_function("() => text() === 'running'")


@pytest.mark.parametrize("is_strict", [True, False])
async def test_a_provider_with_another_address_closes_the_old_meter(
    react: ClientPage, is_strict: bool
) -> None:
    await react.run(
        """(strict) => {
          window.meters = new Set();
          window.Inner = () => { window.meter = useMeter(); meters.add(meter); return h(Chat); };
          window.own = (props) => { const tree = h(TaximeterProvider,
            { token: () => 'token-1', ...props }, h(Inner));
            return strict ? h(React.StrictMode, null, tree) : tree; };
          render(own({ url: '/v1/ws' }));
        }""",
        is_strict,
    )
    line = await react.server.line()
    await line.welcome()
    await line.join()
    await react.run("() => render(own({ url: '/v1/ws?again' }))")
    await line.receive("leave")
    await line.receive_close()
    line = await react.server.line()
    await line.welcome()
    await line.join()
    await react.page.wait_for_function("() => text() === 'running'")
    open_ones = (
        "() => [...meters].filter(({ state }) => !['idle', 'closed'].includes(state)).length"
    )
    assert await react.run(open_ones) == 1
    await react.run("() => { window.given = new Taximeter({ platform, token: 'token-3' }); }")
    await react.run("() => render(own({ meter: given }))")
    await line.receive("leave")
    await line.receive_close()
    line = await react.server.line()
    assert (await line.welcome())["token"] == "token-3"
    await line.join()
    await react.run("() => render(own({ url: '/v1/ws' }))")
    own_line = await react.server.line()
    assert (await own_line.welcome())["token"] == "token-1"
    await react.run("() => { given.close(); render(null); }")
    await own_line.receive("start")
    await own_line.receive_close()


# A session that cannot start


async def test_a_refused_start_shows_its_error_and_can_be_repeated(react: ClientPage) -> None:
    await react.run(
        """() => {
          window.Status = () => h(Chat, { select: ({ status, error, retry }) => {
            window.retry = retry;
            return `${status} ${error?.code} `;
          } });
          window.two = () => app(h(Status), h(Status));
          render(two());
        }"""
    )
    line = await react.server.line()
    await line.welcome()
    refusal = {"code": "limit_reached", "message": "No.", "retryable": False, "limit": "credits"}
    await line.answer(await line.receive("start"), type="error", **refusal)
    failed = "failed limit_reached "
    await react.page.wait_for_function("(twice) => text() === twice", arg=2 * failed)
    # A further one that shows the failure starts nothing: that might never end.
    await react.run("() => render(app(h(Status), h(Status), h(Status)))")
    await react.run("settle")
    assert await react.run("text") == 3 * failed
    await react.run("() => ReactDOM.flushSync(() => retry())")
    start = await line.receive("start")
    assert await react.run("text") == 3 * "starting undefined "
    await line.answer(start, type="error", **refusal)
    await react.page.wait_for_function("(thrice) => text() === thrice", arg=3 * failed)
    await react.run("() => { render(null); }")
    await react.run("settle")
    assert await react.run("() => meter.find('session-1') === undefined")
    await react.run("() => render(two())")
    await line.join()
    await react.page.wait_for_function("(twice) => text() === twice", arg=2 * "running undefined ")


async def test_the_clock_of_the_next_user_begins_anew(react: ClientPage) -> None:
    await react.run(
        """() => {
          render(app(h(Clock, { session: 'session-1' }), h(Chat, { show: () => '' })));
        }"""
    )
    line = await react.server.line()
    await line.welcome()
    await line.join(elapsed_ms=65_000)
    await react.page.wait_for_function("() => text() === '1:05'")
    await react.run("() => ReactDOM.flushSync(() => meter.switchUser('token-2'))")
    await react.page.wait_for_function("() => text() === '0:00'")


# Server render


async def test_a_server_render_is_taken_over_without_a_mismatch(react: ClientPage) -> None:

    version = await react.run("() => parseInt(React.version)")
    html = run_script(bundle("react_server.js", version))
    assert "running" in html
    assert "1:05" in html
    assert "4.5" in html
    await react.run(
        """(html) => {
          const place = document.body.appendChild(document.createElement('div'));
          place.innerHTML = html;
          ReactDOM.flushSync(() => hydrateRoot(place, page(meter),
            { onRecoverableError: (error) => errors.push(String(error)) }));
        }""",
        html,
    )
    line = await react.server.line()
    await line.welcome()
    await line.join(elapsed_ms=66_000)
    await react.page.wait_for_function("() => document.body.textContent.includes('1:06')")
