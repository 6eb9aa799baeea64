"""Operators sign in by a password."""

import asyncio

import pytest

from server.access import limits as access_limits
from server.http.cookies import COOKIE_WITHOUT_TLS
from server.ops import limits as ops_limits
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import assert_problem
from tests.server.operators import PASSWORD, OperatorPage, add_operator, be_quick


async def test_an_operator_signs_in_acts_and_signs_out(server: TestServer) -> None:
    await add_operator(server)
    async with OperatorPage(server) as browser:
        signed_in = (await browser.login()).json()
        assert (signed_in["actor"], signed_in["role"], signed_in["org_id"]) == ("olga", "ops", None)
        assert (await browser.credit()).status_code == 201
        assert (await browser.ask("GET", "/v1/ops/log")).status_code == 200
        again = (await browser.ask("GET", "/v1/ops/session")).json()
        assert again == signed_in
        kept = dict(browser.client.cookies)
        assert (await browser.ask("POST", "/v1/ops/logout")).status_code == 204
        assert not browser.client.cookies
        browser.client.cookies.update(kept)  # a copy of the cookie is worth nothing
        assert_problem(await browser.ask("GET", "/v1/ops/log"), 401, "unauthenticated")
        assert_problem(await browser.credit("k2"), 401, "unauthenticated")


async def test_a_reader_signs_in_and_only_reads(server: TestServer) -> None:
    await add_operator(server, role="read")
    async with OperatorPage(server) as browser:
        assert (await browser.login()).json()["role"] == "ops:read"
        assert (await browser.ask("GET", "/v1/accounts/ann?org=acme")).status_code == 200
        assert_problem(await browser.credit(), 403, "forbidden")
        assert_problem(await browser.ask("POST", "/v1/sessions/s/stop?org=acme"), 403, "forbidden")


async def test_a_wrong_name_and_a_wrong_password_are_one_answer(server: TestServer) -> None:
    await add_operator(server)
    records = await add_operator(server, "proxied")
    await records.set_password("proxied", None)
    be_quick(server)
    answers = set()
    async with OperatorPage(server) as browser:
        for name, password in (
            ("olga", "wrong"),
            ("nemo", PASSWORD),
            ("proxied", PASSWORD),
            ("ol ga\0", PASSWORD),
            ("olga", PASSWORD + "\0"),
            ("OLGA", PASSWORD),
        ):
            response = await browser.login(name, password)
            answers.add(assert_problem(response, 401, "unauthenticated")["detail"])
            assert not browser.client.cookies
    assert len(answers) == 1


async def test_ten_wrong_tries_wait_and_many_at_once_are_no_more(server: TestServer) -> None:
    await add_operator(server)
    await add_operator(server, "rita")
    be_quick(server)
    async with OperatorPage(server) as browser:
        tried = await asyncio.gather(*(browser.login("olga", f"wrong {n}") for n in range(14)))
        statuses = sorted(one.status_code for one in tried)
        assert statuses == [401] * 10 + [429] * 4
        waiting = await browser.login()  # the right one waits too, or guessing would go on
        assert_problem(waiting, 429, "rate_limited")
        assert 0 < int(waiting.headers["retry-after"]) <= access_limits.LOGIN_WAIT_MS // 1000
        assert (await browser.login("rita")).status_code == 200
    elsewhere = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
    async with OperatorPage(server, **elsewhere) as far:
        assert (await far.login()).status_code == 200


async def test_removal_and_a_new_password_end_sessions_on_every_process(
    start_server: StartServer,
) -> None:
    here, there = await start_server(), await start_server()
    records = await add_operator(here)
    async with OperatorPage(here) as browser, OperatorPage(there) as other:
        await browser.login()
        other.client.cookies.set(COOKIE_WITHOUT_TLS, browser.client.cookies[COOKIE_WITHOUT_TLS])
        secret = browser.client.cookies[COOKIE_WITHOUT_TLS]
        assert (await other.ask("GET", "/v1/ops/log")).status_code == 200
        assert await there.app.state.sign_in.is_open(secret)
        await records.set_password("olga", "another hash")
        assert_problem(await other.ask("GET", "/v1/ops/log"), 401, "unauthenticated")
        assert not await there.app.state.sign_in.is_open(secret)
    await records.remove("olga")
    await add_operator(here)
    async with OperatorPage(here) as browser:
        await browser.login()
        await records.remove("olga")
        for path in ("/v1/ops/log", "/v1/accounts/ann?org=acme"):
            assert_problem(await browser.ask("GET", path), 401, "unauthenticated")
        assert_problem(await browser.credit(), 401, "unauthenticated")


async def test_a_role_that_is_taken_away_counts_at_once(server: TestServer) -> None:
    records = await add_operator(server)
    async with OperatorPage(server) as browser:
        await browser.login()
        assert (await browser.credit()).status_code == 201
        await records._run(lambda c: c.execute("UPDATE operators SET role = 'read'"))
        assert_problem(await browser.credit("k2"), 403, "forbidden")


async def test_a_session_ends_by_itself(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_operator(server)
    async with OperatorPage(server) as browser:
        await browser.login()
        late_ms = server.process.wall_ms() + ops_limits.OPERATOR_SESSION_MS
        monkeypatch.setattr(server.process, "wall_ms", lambda: late_ms, raising=False)
        assert_problem(await browser.ask("GET", "/v1/ops/session"), 401, "unauthenticated")


async def test_the_secret_is_not_in_the_database(server: TestServer) -> None:
    records = await add_operator(server)
    async with OperatorPage(server) as browser:
        await browser.login()
        secret = browser.client.cookies[COOKIE_WITHOUT_TLS]
    rows = await records._run(lambda c: c.fetch("SELECT s::text AS text FROM operator_sessions s"))
    assert len(rows) == 1
    assert secret not in rows[0]["text"]
    assert secret.encode().hex() not in rows[0]["text"]


@pytest.mark.parametrize("cookie", ["", "x", "a" * 4000, "'; DROP TABLE operators;--"])
async def test_a_cookie_of_no_session_is_refused(server: TestServer, cookie: str) -> None:
    async with OperatorPage(server, Cookie=f"{COOKIE_WITHOUT_TLS}={cookie}") as browser:
        assert_problem(await browser.ask("GET", "/v1/ops/log"), 401, "unauthenticated")
