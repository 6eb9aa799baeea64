"""Paths of the app, and requests from pages of other origins."""

from typing import Any

import httpx
import pytest

from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask, assert_problem

PAGE = "https://shop.example"


async def test_a_path_that_nobody_serves_is_a_problem(server: TestServer) -> None:
    for path in ("/nothing", "/v1/nothing", "/v1/accounts/a/b/c"):
        assert_problem(await ask(server, "GET", path), 404, "not_found")


async def test_a_wrong_method_is_a_problem_document(server: TestServer) -> None:
    response = await ask(server, "DELETE", "/v1/orgs/acme")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD, PUT"
    assert response.json()["detail"] == "the methods of this path are GET, HEAD, PUT"
    response = await ask(server, "GET", "/v1/accounts/ann/spend")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


async def test_a_head_is_a_get_without_its_body(server: TestServer) -> None:
    for path in ("/healthz", "/v1/accounts/ann"):
        got, asked = await ask(server, "GET", path), await ask(server, "HEAD", path)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["content-type"] == got.headers["content-type"]


async def test_pages_of_other_origins_get_nothing_by_default(server: TestServer) -> None:
    response = await ask(server, "GET", "/v1/accounts/ann", headers={"Origin": PAGE})
    assert "access-control-allow-origin" not in response.headers


async def preflight(server: TestServer, origin: str, method: str = "POST") -> httpx.Response:
    return await ask(
        server,
        "OPTIONS",
        "/v1/accounts/ann/grants",
        None,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
        },
    )


async def test_pages_of_our_origins_may_ask(start_server: StartServer) -> None:
    server = await start_server(origins=(PAGE,))
    allowed = await preflight(server, PAGE)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in allowed.headers
    for bearer, status in ((server.token(), 200), (None, 401)):
        response = await ask(server, "GET", "/v1/accounts/ann", bearer, headers={"Origin": PAGE})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "Idempotent-Replayed" in response.headers["access-control-expose-headers"]


async def test_pages_of_strangers_may_not(start_server: StartServer) -> None:
    server = await start_server(origins=(PAGE,))
    assert (await preflight(server, "https://evil.example")).status_code == 400
    assert (await preflight(server, PAGE, "DELETE")).status_code == 400
    response = await ask(
        server, "GET", "/v1/accounts/ann", headers={"Origin": "https://evil.example"}
    )
    assert "access-control-allow-origin" not in response.headers


async def test_our_own_fault_can_be_read_by_a_page(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    server = await start_server(origins=(PAGE,))
    monkeypatch.setattr(server.process.live, "account", broken)
    response = await ask(server, "GET", "/v1/accounts/ann", headers={"Origin": PAGE})
    assert_problem(response, 500, "internal_error")
    assert response.headers["access-control-allow-origin"] == PAGE


PATHS = (
    "/healthz/", "/readyz/", "/metrics/", "/openapi.json/", "/v1/accounts/ann/", "/v1/orgs/acme/",
    "/v1/accounts/ann/ledger/", "/api/usage/check-limit/", "/pages/index.html/", "/pages/",
    "/pages", "/client/taximeter.js/", "/client/", "/demo/token/", "/%2F%2Fevil.example/",
    "/v1/ws/",
)  # fmt: skip


async def test_a_trailing_slash_is_not_found_and_leads_nowhere(server: TestServer) -> None:
    for path in PATHS:
        for method in ("GET", "POST"):
            headers = {"Host": "evil.example"}
            response = await ask(server, method, path, headers=headers)
            assert_problem(response, 404, "not_found")
            assert "location" not in response.headers, path
    response = await ask(server, "GET", "/v1/accounts/ann/")
    assert response.json()["detail"] == "there is no such path: leave out the slash at its end"
