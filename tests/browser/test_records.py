"""Tests estimates and past sessions in the client and in React."""

import json
from typing import Any

from playwright.async_api import Route

from tests.browser.fixtures import ClientPage, chromium, mock_server
from tests.browser.mock_server import Message, receipt
from tests.browser.react_fixtures import react

__all__ = ["chromium", "mock_server", "react"]

ESTIMATE: Message = {"account_id": "user-1", "kind": "chat", "remaining_ms": 210_000}


class HttpAnswers:
    """HttpAnswers of the server's HTTP, by path; keeps the requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.bodies: dict[str, Any] = {}
        self.status = 200

    async def install(self, react: ClientPage) -> None:
        await react.page.route("**/v1/accounts/**", self._answer)
        await react.page.route("**/v1/sessions*", self._answer)

    async def _answer(self, route: Route) -> None:
        path = route.request.url.split("/v1/")[1]
        self.asked.append(path)
        self.tokens.add(route.request.headers["authorization"])
        await route.fulfill(
            status=self.status,
            content_type="application/json",
            body=json.dumps(self.bodies.get(path, {"code": "not_found", "detail": "no"})),
        )


async def welcome(react: ClientPage) -> None:
    line = await react.server.line()
    await line.welcome()


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
