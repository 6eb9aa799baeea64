"""Cookies of operators: their attributes, forged requests, and trusted proxies."""

from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest

from server.http.cookies import COOKIE, COOKIE_WITHOUT_TLS, CSRF_HEADER
from storage.postgres.operators import OperatorRecords
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import assert_problem, balance
from tests.server.operators import OperatorPage, add_operator, logged

TLS = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
"""What a trusted proxy that ends TLS sends; the tests' clients come from a trusted address."""
USER_HEADER = "X-Remote-User"


def cookie_of(response: httpx.Response) -> tuple[str, dict[str, Any]]:
    """Name and attributes of the one cookie of an answer."""
    (line,) = response.headers.get_list("set-cookie")
    ((name, morsel),) = SimpleCookie(line).items()
    return name, {key: value for key, value in morsel.items() if value}


async def test_over_tls_the_cookie_is_for_this_host_alone(server: TestServer) -> None:
    await add_operator(server)
    async with OperatorPage(server, **TLS) as browser:
        name, attributes = cookie_of(await browser.login())
    assert name == COOKIE == "__Host-taximeter_ops"
    assert attributes.pop("max-age") == str(12 * 3600)
    assert attributes == {"path": "/", "secure": True, "httponly": True, "samesite": "strict"}


async def test_without_tls_there_is_one_on_the_machine_itself(server: TestServer) -> None:
    await add_operator(server)
    async with OperatorPage(server) as browser:
        name, attributes = cookie_of(await browser.login())
        assert name == COOKIE_WITHOUT_TLS
        assert attributes["httponly"]
        assert attributes["samesite"] == "strict"
        assert "secure" not in attributes
        secret = browser.client.cookies[COOKIE_WITHOUT_TLS]
    # The one is not the other, in whichever direction.
    for headers, sent in ((TLS, COOKIE_WITHOUT_TLS), ({}, COOKIE)):
        async with OperatorPage(server, Cookie=f"{sent}={secret}", **headers) as browser:
            assert_problem(await browser.ask("GET", "/v1/ops/log"), 401, "unauthenticated")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "192.0.2.7"},
        {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "http"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Host": "ops.example.com"},
        {"Forwarded": "for=192.0.2.7"},
        {"Via": "1.1 proxy"},
        {"Host": "ops.example.com"},
        {"Host": "127.0.0.1.example.com"},
    ],
)
async def test_elsewhere_no_cookie_without_tls(server: TestServer, headers: dict[str, str]) -> None:
    await add_operator(server)
    async with OperatorPage(server, **headers) as browser:
        refused = await browser.login()
        assert_problem(refused, 403, "tls_required")
        assert "set-cookie" not in refused.headers
        token = server.token("olga", scope="ops")
        assert_problem(await browser.open(token), 403, "tls_required")
    async with OperatorPage(server) as browser:
        await browser.login()
        secret = browser.client.cookies[COOKIE_WITHOUT_TLS]
    async with OperatorPage(server, Cookie=f"{COOKIE_WITHOUT_TLS}={secret}", **headers) as browser:
        assert_problem(await browser.ask("GET", "/v1/ops/log"), 401, "unauthenticated")


async def test_acting_by_a_cookie_needs_the_sessions_token(server: TestServer) -> None:
    await add_operator(server)
    async with OperatorPage(server) as browser, OperatorPage(server) as other:
        token = (await browser.login()).json()["csrf_token"]
        await other.login()
        forged: list[str | None] = [None, "", "x", token[:-1], token + "x", other.csrf_token]
        for number, shown in enumerate(forged):
            headers = {} if shown is None else {CSRF_HEADER: shown}
            for method, path in (
                ("POST", "/v1/accounts/ann/grants?org=acme"),
                ("PUT", "/v1/orgs/acme"),
                ("POST", "/v1/sessions/s1/stop?org=acme"),
            ):
                response = await browser.client.request(
                    method,
                    path,
                    headers={"Idempotency-Key": f"k{number}", **headers},
                    json={"amount": "1", "reason": "forged"},
                )
                assert_problem(response, 403, "csrf")
        assert await balance(server, "/v1/accounts/ann?org=acme") == "0"
        assert await logged(server) == []
        assert (await browser.credit()).status_code == 201
    # A program with a token sends nothing of itself.
    async with OperatorPage(server) as program:
        bearer = {"Authorization": f"Bearer {server.token('olga', scope='ops')}"}
        response = await program.ask(
            "POST",
            "/v1/accounts/ann/grants?org=acme",
            headers={"Idempotency-Key": "k", **bearer},
            json={"amount": "1", "reason": "bought"},
        )
        assert response.status_code == 201


@pytest.mark.parametrize(
    "page",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_another_sites_page_does_nothing_with_a_cookie(
    start_server: StartServer, page: dict[str, str]
) -> None:
    # An origin that may use the API has no part in the cookie either.
    server = await start_server(origins=("https://evil.example",))
    await add_operator(server)
    async with OperatorPage(server) as browser:
        await browser.login()
        browser.client.headers.update(page)
        assert_problem(await browser.credit(), 403, "csrf")
        assert_problem(await browser.ask("POST", "/v1/ops/logout"), 403, "csrf")
        assert_problem(await browser.login(), 403, "csrf")
        assert_problem(await browser.open(server.token("eve", scope="ops")), 403, "csrf")
        answer = await browser.ask("GET", "/v1/ops/session")
        assert "access-control-allow-credentials" not in answer.headers
    async with OperatorPage(
        server, Origin=server.url, **{"Sec-Fetch-Site": "same-origin"}
    ) as browser:
        assert (await browser.login()).status_code == 200
        assert (await browser.credit()).status_code == 201


# Trusted proxies


@pytest.fixture
async def proxied(start_server: StartServer) -> tuple[TestServer, OperatorRecords]:
    server = await start_server(ops_user_header=USER_HEADER.lower())
    return server, await add_operator(server)


async def test_a_trusted_proxy_names_the_operator(
    proxied: tuple[TestServer, OperatorRecords],
) -> None:
    server, records = proxied
    await records.add("rita", "read", None)
    async with OperatorPage(server, **TLS, **{USER_HEADER: "olga"}) as browser:
        assert (await browser.ask("GET", "/v1/ops/log")).status_code == 200
        who = (await browser.ask("GET", "/v1/ops/session")).json()
        assert (who["actor"], who["role"], who["csrf_token"]) == ("olga", "ops", None)
        # The browser sends what the proxy needs of itself, so acting needs a session.
        assert_problem(await browser.credit(), 403, "csrf")
        assert (await browser.open()).status_code == 200
        assert (await browser.credit()).status_code == 201
        (row,) = await logged(server, outcome="done")
        assert (row.actor, row.via) == ("olga", "proxy")
        cookie = browser.client.headers["Cookie"]
        # Another user of the proxy does not act by this cookie, but may open a session.
        browser.client.headers[USER_HEADER] = "rita"
        assert (await browser.ask("GET", "/v1/ops/session")).json()["actor"] == "rita"
        assert_problem(await browser.credit("k2"), 403, "csrf")
        assert (await browser.open()).json()["role"] == "ops:read"
    # Without the proxy the cookie is worth nothing.
    async with OperatorPage(server, Cookie=cookie, **TLS) as browser:
        assert_problem(await browser.ask("GET", "/v1/ops/log"), 401, "unauthenticated")
    await records.remove("olga")
    async with OperatorPage(server, **TLS, **{USER_HEADER: "olga"}) as browser:
        assert_problem(await browser.ask("GET", "/v1/ops/log"), 403, "forbidden")


async def test_a_peer_that_is_no_trusted_proxy_names_no_one(
    proxied: tuple[TestServer, OperatorRecords],
) -> None:
    server, _ = proxied
    async with OperatorPage(server) as browser:
        await browser.ask("GET", "/healthz")  # the first connection sets the trusted addresses
    server.process.limiter.proxies = ("10.0.0.1",)
    for extra in ({}, {"X-Forwarded-For": "10.0.0.1"}, TLS):
        async with OperatorPage(server, **extra, **{USER_HEADER: "olga"}) as browser:
            assert_problem(await browser.ask("GET", "/v1/ops/log"), 401, "unauthenticated")
            assert (await browser.open()).status_code in (401, 403)


async def test_a_header_is_nothing_where_none_is_configured(server: TestServer) -> None:
    await add_operator(server)
    async with OperatorPage(server, **{USER_HEADER: "olga"}) as browser:
        assert_problem(await browser.ask("GET", "/v1/ops/log"), 401, "unauthenticated")


async def test_two_headers_and_odd_names_are_refused(
    proxied: tuple[TestServer, OperatorRecords],
) -> None:
    server, _ = proxied
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        twice = [(USER_HEADER, "nemo"), (USER_HEADER, "olga")]
        response = await client.get("/v1/ops/log", headers=twice)
        assert_problem(response, 401, "unauthenticated")
        for odd in ("nemo", "olga, rita", "'; --", "OLGA", "a" * 200):
            response = await client.get("/v1/ops/log", headers={USER_HEADER: odd})
            assert_problem(response, 403, "forbidden")
        response = await client.get("/v1/ops/log", headers={USER_HEADER: ""})
        assert_problem(response, 401, "unauthenticated")
