"""What surrounds every request over HTTP."""

from prometheus_client.parser import text_string_to_metric_families

from tests.fixtures.server import TestServer
from tests.server.api import ask, assert_problem


async def requests_counted(server: TestServer) -> dict[tuple[str, str, str], float]:
    """Requests by method, route and status, as Prometheus reads them."""
    body = (await ask(server, "GET", "/metrics", None)).text
    return {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == "taximeter_http_request_seconds_count"
    }


async def test_nothing_is_sniffed_and_no_account_is_kept(server: TestServer) -> None:
    for path in ("/healthz", "/openapi.json", "/v1/accounts/ann", "/v1/accounts/a b", "/nothing"):
        response = await ask(server, "GET", path)
        assert response.headers["x-content-type-options"] == "nosniff", path
        kept = response.headers.get("cache-control")
        is_private = path.startswith("/v1/") or response.status_code >= 400
        assert kept == ("no-store" if is_private else None), path


async def test_requests_are_measured_by_the_pattern_of_their_path(server: TestServer) -> None:
    for account in ("ann", "ben"):
        await ask(server, "GET", f"/v1/accounts/{account}")
    await ask(server, "GET", "/v1/accounts/ann", None)
    await ask(server, "GET", "/nothing/at/all")
    await ask(server, "PROPFIND", "/v1/accounts/ann")
    await ask(server, "PUT", "/v1/orgs/acme", json={})
    counted = await requests_counted(server)
    assert counted["GET", "/v1/accounts/{id}", "200"] == 2
    assert counted["GET", "/v1/accounts/{id}", "401"] == 1
    assert counted["GET", "none", "404"] == 1
    assert counted["other", "/v1/accounts/{id}", "405"] == 1
    assert counted["PUT", "/v1/orgs/{id}", "200"] == 1


async def test_every_page_says_that_nothing_else_may_run(server: TestServer) -> None:
    for path in ("/", "/pages/index.html", "/pages/style.css", "/pages/icon.svg", "/pages/demo.js",
                 "/client/taximeter.js", "/client/taximeter.d.ts", "/metrics"):  # fmt: skip
        for method in ("GET", "HEAD"):
            response = await ask(server, method, path, None)
            assert response.status_code == 200
            assert response.headers["content-security-policy"].startswith("default-src 'self'")
            assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    missing = await ask(server, "GET", "/client/none.js", None)
    assert_problem(missing, 404, "not_found")
