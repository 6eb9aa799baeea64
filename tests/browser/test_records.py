"""Tests estimates and past sessions in the client and in React."""

import asyncio
import json
from typing import Any

import pytest
from playwright.async_api import Route

from tests.browser.fixtures import ClientPage, chromium, client, mock_server
from tests.browser.mock_server import PATIENCE_S, BrowserSocket, Message, receipt
from tests.browser.react_fixtures import react

__all__ = ["chromium", "client", "mock_server", "react"]

ESTIMATE: Message = {"account_id": "user-1", "kind": "chat", "remaining_ms": 210_000}


class HttpAnswers:
    """The server's answers, by path, or by token and path."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.bodies: dict[str, Any] = {}
        self.status = 200
        self.held: asyncio.Queue[Route] | None = None
        """Requests that wait for ``fulfill``; None: each is answered at once."""

    async def install(self, react: ClientPage) -> None:
        await react.page.route("**/v1/accounts/**", self._answer)
        await react.page.route("**/v1/sessions*", self._answer)

    async def _answer(self, route: Route) -> None:
        path = route.request.url.split("/v1/")[1]
        self.asked.append(path)
        self.tokens.add(route.request.headers["authorization"])
        if self.held is None:
            await self.fulfill(route)
        else:
            self.held.put_nowait(route)

    async def fulfill(self, route: Route) -> None:
        path = route.request.url.split("/v1/")[1]
        token = route.request.headers["authorization"].removeprefix("Bearer ")
        body = self.bodies.get(f"{token} {path}", self.bodies.get(path))
        await route.fulfill(
            status=self.status,
            content_type="application/json",
            body=json.dumps(body or {"code": "not_found", "detail": "no"}),
        )

    async def waiting(self) -> Route:
        assert self.held is not None
        async with asyncio.timeout(PATIENCE_S):
            return await self.held.get()


async def welcome(react: ClientPage, **changes: Any) -> BrowserSocket:
    line = await react.server.line()
    await line.welcome(**changes)
    return line


async def test_an_estimate_connects_and_asks_as_the_user(react: ClientPage) -> None:
    answers = HttpAnswers()
    await answers.install(react)
    answers.bodies["accounts/user-1/estimate?kind=chat"] = ESTIMATE
    await react.run(
        """() => {
          window.Before = () => {
            const { estimate, refresh } = records.useEstimate({ kind: 'chat' });
            Object.assign(window, { refresh });
            return h('p', null, String(estimate?.remaining_ms));
          };
          render(app(h(Before)));
        }"""
    )
    assert await react.run("text") == "undefined"
    await welcome(react)
    await react.page.wait_for_function("() => text() === '210000'")
    assert answers.tokens == {"Bearer token-1"}
    answers.bodies["accounts/user-1/estimate?kind=chat"] = {**ESTIMATE, "remaining_ms": 1}
    await react.run("() => refresh()")
    await react.page.wait_for_function("() => text() === '1'")


async def test_a_refused_estimate_shows_its_code(react: ClientPage) -> None:
    answers = HttpAnswers()
    await answers.install(react)
    answers.status = 422
    answers.bodies["accounts/user-1/estimate?kind=none"] = {"code": "unknown_kind", "detail": "no"}
    await react.run(
        """() => {
          window.Before = () => h('p', null,
            records.useEstimate({ kind: 'none' }).error?.code ?? 'asks');
          render(app(h(Before)));
        }"""
    )
    await welcome(react)
    await react.page.wait_for_function("() => text() === 'unknown_kind'")


async def test_past_sessions_come_page_by_page(react: ClientPage) -> None:
    answers = HttpAnswers()
    await answers.install(react)
    rows = [{"session_id": f"s{number}", "receipt": receipt()} for number in range(3)]
    answers.bodies["sessions?kind=chat&limit=2"] = {"items": rows[:2], "next_cursor": "c 1"}
    answers.bodies["sessions?kind=chat&cursor=c+1&limit=2"] = {
        "items": rows[2:],
        "next_cursor": None,
    }
    await react.run(
        """() => {
          window.Past = () => {
            window.past = records.useSessions({ kind: 'chat', limit: 2 });
            return h('p', null, past.sessions?.map((row) => row.session_id).join());
          };
          render(app(h(Past)));
        }"""
    )
    await welcome(react)
    await react.page.wait_for_function("() => text() === 's0,s1' && past.hasMore")
    await react.run("() => past.more()")
    await react.page.wait_for_function("() => text() === 's0,s1,s2' && !past.hasMore")
    await react.run("() => past.more()")
    assert len([path for path in answers.asked if "cursor" in path]) == 1


# Another user


ASKED = {
    "estimate": "records.estimate(meter, { kind: 'chat' })",
    "list": "records.listSessions(meter)",
    "next page": "records.listSessions(meter, { cursor: 'c1' })",
    "usage": "records.firstOf(meter, (view) => view.usage)",
}
CHANGES = {"log-out": "null", "switch": "'token-2'"}
CLOSED = {"code": "closed", "retryable": False}


async def ask(client: ClientPage, asked: str) -> HttpAnswers:
    """Begins to ask as ``user-1``; ``window.answer`` is what comes of it."""
    answers = HttpAnswers()
    await answers.install(client)
    answers.held = asyncio.Queue()
    await client.construct()
    await client.run(
        "async () => { window.records = await import('/client/records.js');"
        f" window.answer = settled({ASKED[asked]}); }}"
    )
    return answers


async def refused(client: ClientPage) -> Message:
    error: Message = (await client.run("() => answer"))["error"]
    return {name: error[name] for name in CLOSED}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("asked", ASKED)
async def test_what_waits_for_the_connection_does_not_ask_as_another_user(
    client: ClientPage, asked: str, change: str
) -> None:
    answers = await ask(client, asked)
    await (await client.server.line()).receive("auth")
    await client.run(f"() => meter.switchUser({CHANGES[change]})")
    assert await refused(client) == CLOSED
    if change == "switch":
        await welcome(client, user_id="user-2", account_id="user-2")
        await client.take_state("live")
    else:
        assert await client.run("() => meter.state") == "idle"
    assert answers.asked == []


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("asked", [name for name in ASKED if name != "usage"])
async def test_an_answer_in_flight_does_not_reach_another_user(
    client: ClientPage, asked: str, change: str
) -> None:
    answers = await ask(client, asked)
    await welcome(client)
    await answers.waiting()
    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    client.page.on("requestfailed", lambda request: failed.set_result(request.url))
    await client.run(f"() => meter.switchUser({CHANGES[change]})")
    assert await refused(client) == CLOSED
    async with asyncio.timeout(PATIENCE_S):
        assert "/v1/" in await failed


async def test_a_user_that_changes_at_the_welcome_asks_nothing(client: ClientPage) -> None:
    """The account is known then, and the request not made yet."""
    answers = await ask(client, "estimate")
    await client.run("() => meter.addEventListener('welcome', () => meter.switchUser(null))")
    await welcome(client)
    assert await refused(client) == CLOSED
    assert answers.asked == []


TWO_USERS = """
() => {
  window.name = 'token-1';
  window.Rows = () => {
    window.past = records.useSessions({ kind: 'chat', limit: 2 });
    window.terms = records.useEstimate({ kind: 'chat' });
    const rows = past.sessions?.map((row) => row.session_id).join() ?? '-';
    const told = [past.error?.code, terms.error?.code].filter(Boolean).join();
    (window.shown ??= []).push(rows);
    return h('p', null, [rows, terms.estimate?.remaining_ms ?? '-', told || '-'].join(' '));
  };
  window.own = (token) => h(React.StrictMode, null, h(TaximeterProvider,
    { url: '/v1/ws', token: token && (() => token) },
    h(() => { window.meter = useMeter(); return null; }), h(Rows)));
  window.rejected = [];
  addEventListener('unhandledrejection', ({ reason }) => rejected.push(reason.code));
}
"""
BY = {
    "the provider's token": ("own('token-1')", "render(own(null))", "render(own('token-2'))"),
    "its meter": ("app(h(Rows))", "meter.switchUser(null)", "meter.switchUser(() => 'token-2')"),
}
ESTIMATED = "accounts/user-1/estimate?kind=chat"
LISTED = "sessions?kind=chat&limit=2"
NEXT = "sessions?kind=chat&cursor=c1&limit=2"


async def show_rows(react: ClientPage, first: str) -> HttpAnswers:
    """Shows the first user's estimate and three rows."""
    answers = HttpAnswers()
    await answers.install(react)
    rows = [{"session_id": f"old{number}", "receipt": receipt()} for number in range(3)]
    answers.bodies[ESTIMATED] = ESTIMATE
    answers.bodies[LISTED] = {"items": rows[:2], "next_cursor": "c1"}
    answers.bodies[NEXT] = {"items": rows[2:], "next_cursor": "c1"}
    await react.run(TWO_USERS)
    await react.run(f"() => render({first})")
    await welcome(react)
    await react.page.wait_for_function("() => text() === 'old0,old1 210000 -'")
    await react.run("() => { window.stale = past; return past.more(); }")
    await react.page.wait_for_function("() => text() === 'old0,old1,old2 210000 -'")
    return answers


@pytest.mark.parametrize("by", BY)
async def test_rows_of_a_user_are_not_shown_to_the_next(react: ClientPage, by: str) -> None:
    first, log_out, log_in = BY[by]
    answers = await show_rows(react, first)
    asked = len(answers.asked)
    await react.run(f"() => {{ {log_out}; shown.length = 0; }}")
    await react.page.wait_for_function("() => text() === '- - -'")
    await react.run("() => Promise.all([stale.more(), past.more(), past.refresh()])")
    await react.run("settle")
    assert len(answers.asked) == asked, "nothing is asked while there is no user"
    assert await react.run("() => meter.state") == "idle"
    answers.bodies.clear()
    answers.bodies["accounts/user-2/estimate?kind=chat"] = {**ESTIMATE, "remaining_ms": 2}
    answers.bodies[f"token-2 {LISTED}"] = {"items": [{"session_id": "new"}], "next_cursor": None}
    await react.run(f"() => {{ {log_in} }}")
    await welcome(react, user_id="user-2", account_id="user-2")
    await react.page.wait_for_function("() => text() === 'new 2 -'")
    assert "old" not in "".join(await react.run("() => shown"))


async def test_a_next_page_in_flight_ends_with_its_user(react: ClientPage) -> None:
    answers = await show_rows(react, "own('token-1')")
    answers.held = asyncio.Queue()
    await react.run("() => { past.more(); terms.refresh(); past.refresh(); }")
    for _ in range(3):
        await answers.waiting()
    await react.run("() => render(own(null))")
    await react.page.wait_for_function("() => text() === '- - -'")
    answers.held = None
    answers.bodies.clear()
    answers.bodies[LISTED] = {"items": [{"session_id": "new"}], "next_cursor": "c2"}
    answers.bodies[ESTIMATED] = {**ESTIMATE, "remaining_ms": 2}
    await react.run("() => render(own('token-2'))")
    await welcome(react)
    await react.page.wait_for_function("() => text() === 'new 2 -'")
    assert await react.run("() => rejected") == []


async def test_another_question_shows_no_answer_of_the_one_before(react: ClientPage) -> None:
    answers = HttpAnswers()
    await answers.install(react)
    answers.bodies["accounts/user-1/estimate?kind=chat"] = ESTIMATE
    await react.run(
        """() => {
          window.Before = ({ kind }) => h('p', null,
            String(records.useEstimate({ kind }).estimate?.remaining_ms));
          render(app(h(Before, { kind: 'chat' })));
        }"""
    )
    await welcome(react)
    await react.page.wait_for_function("() => text() === '210000'")
    answers.held = asyncio.Queue()
    await react.run("() => render(app(h(Before, { kind: 'call' })))")
    assert await react.run("text") == "undefined"


async def test_without_a_user_nothing_is_asked(react: ClientPage) -> None:
    """The provider has a meter before it has a token."""
    answers = HttpAnswers()
    await answers.install(react)
    answers.bodies[LISTED] = {"items": [{"session_id": "mine"}], "next_cursor": None}
    answers.bodies[ESTIMATED] = ESTIMATE
    await react.run(TWO_USERS)
    await react.run("() => render(own(null))")
    await react.run("settle")
    assert (await react.run("text"), answers.asked) == ("- - -", [])
    assert await react.run("() => meter.state") == "idle"
    assert not react.server.has_new_line()
    await react.run("() => render(own('token-1'))")
    await welcome(react)
    await react.page.wait_for_function("() => text() === 'mine 210000 -'")
