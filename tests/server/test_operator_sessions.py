"""A token with a role becomes a cookie."""

import pytest

from tests.fixtures.server import API_KEY, TestServer
from tests.server.api import assert_problem
from tests.server.operators import OperatorPage
from tests.server.test_cookies import cookie_of


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"scope": "ops"}, "ops"),
        ({"scope": "org:read ops:read", "org": "acme"}, "ops:read"),
        ({"scope": "org:read", "org": "acme"}, "org:read"),
    ],
)
async def test_a_token_becomes_a_cookie_of_its_role(
    server: TestServer, claims: dict[str, str], role: str
) -> None:
    async with OperatorPage(server) as browser:
        opened = await browser.open(server.token("olga", ttl_seconds=60, **claims))
        assert opened.status_code == 200
        assert opened.json()["role"] == role
        assert 0 < int(cookie_of(opened)[1]["max-age"]) <= 60
        # It has the role alone, and not what the user of the token may.
        for method, path in (
            ("GET", "/v1/accounts/olga/estimate?kind=chat"),
            ("POST", "/v1/sessions/s1/heartbeat"),
            ("GET", "/api/usage/check-limit"),
            ("GET", "/v1/stream"),
        ):
            assert_problem(await browser.ask(method, path, json=None), 403, "forbidden")
        acted = await browser.credit()
        assert acted.status_code == (201 if role == "ops" else 403)
        own = await browser.ask("GET", "/v1/sessions?org=acme")
        assert own.status_code == 200
        others = await browser.ask("GET", "/v1/sessions?org=other")
        assert others.status_code == (403 if role == "org:read" else 200)
        accounts = await browser.ask("GET", "/v1/accounts/ann?org=acme")
        assert accounts.status_code == (403 if role == "org:read" else 200)


async def test_without_a_role_there_is_no_cookie(server: TestServer) -> None:
    for bearer in (server.token(), server.token("ann", scope="org:read"), API_KEY):
        async with OperatorPage(server) as browser:
            assert_problem(await browser.open(bearer), 403, "forbidden")
    async with OperatorPage(server) as browser:
        assert_problem(await browser.open(), 401, "unauthenticated")
