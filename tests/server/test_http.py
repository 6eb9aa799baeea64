"""What every request over HTTP has around it."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from protocol import limits
from protocol.metering.terms import MINUTE_MS
from protocol.wire.errors import ErrorCode, PeerError
from server.access.bad_guesses import Failures, SuspectChecks
from server.access.credentials import Principal
from server.access.rate_limits import UserRequests
from server.http.http import Problem
from server.transport.connection_limiter import Door
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.server.api import advance, ask, assert_problem

PAGE = "https://shop.example"


async def requests_counted(server: TestServer) -> dict[tuple[str, str, str], float]:
    """Requests by method, route and status, as Prometheus reads them."""
    body = (await ask(server, "GET", "/metrics", None)).text
    return {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == "taximeter_http_request_seconds_count"
    }


# --- Errors ------------------------------------------------------------------------


async def test_a_path_that_nobody_serves_is_a_problem(server: TestServer) -> None:
    for path in ("/nothing", "/v1/nothing", "/v1/accounts/a/b/c"):
        assert_problem(await ask(server, "GET", path), 404, "not_found")


async def test_a_method_that_a_path_does_not_have_is_a_problem(server: TestServer) -> None:
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


@pytest.mark.parametrize("offered", ["h2c", "websocket", "something/2"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_body_counts_with_offered_upgrade(
    server: TestServer, offered: str, chunked: bool
) -> None:
    async def parts(body: bytes) -> AsyncIterator[bytes]:
        yield body[:5]
        yield body[5:]

    async def put(body: bytes) -> httpx.Response:
        headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": offered}
        content = parts(body) if chunked else body
        return await ask(server, "PUT", "/v1/orgs/acme", headers=headers, content=content)

    changed = await put(b'{"monthly_hours_limit": 5}')
    assert (changed.status_code, changed.json()["monthly_minutes_limit"]) == (200, 300)
    assert (await ask(server, "GET", "/v1/orgs/acme")).json()["monthly_minutes_limit"] == 300
    assert_problem(await put(b'{"tier":"' + b"x" * limits.BODY_BYTES_MAX), 413, "bad_message")
    assert_problem(await put(b""), 400, "bad_message")


async def test_a_body_without_end_is_read_no_further_than_its_bound(server: TestServer) -> None:
    body = b'{"tier":"' + b"x" * limits.BODY_BYTES_MAX + b'"}'
    problem = assert_problem(
        await ask(server, "PUT", "/v1/orgs/acme", content=body), 413, "bad_message"
    )
    assert problem["title"] == "Content too large"


async def test_our_own_fault_is_said_without_saying_what_it_is(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(server.process.live, "account", broken)
    response = await ask(server, "GET", "/v1/accounts/ann", headers={"Origin": PAGE})
    assert_problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


# --- Headers -----------------------------------------------------------------------


async def test_nothing_is_sniffed_and_no_account_is_kept(server: TestServer) -> None:
    for path in ("/healthz", "/openapi.json", "/v1/accounts/ann", "/v1/accounts/a b", "/nothing"):
        response = await ask(server, "GET", path)
        assert response.headers["x-content-type-options"] == "nosniff", path
        kept = response.headers.get("cache-control")
        is_private = path.startswith("/v1/") or response.status_code >= 400
        assert kept == ("no-store" if is_private else None), path


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


# --- Measurements --------------------------------------------------------------------


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


# --- Paths and pages -----------------------------------------------------------------

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


def test_retry_after_is_an_hour_at_most() -> None:
    for given, said in ((None, "1"), (0, "1"), (-5, "1"), (60, "60"), (3_600, "3600"),
                        (31 * 86_400, "3600")):  # fmt: skip
        response = Problem(429, "rate_limited", "later", retry_after_s=given).response()
        assert response.headers["retry-after"] == said


# --- Floods ------------------------------------------------------------------------


async def test_only_bad_guesses_are_refused_as_too_many(server: TestServer) -> None:
    # The whole test lies in one minute, however slow the machine is.
    advance(server, MINUTE_MS - server.process.clock.now() % MINUTE_MS)
    clock = server.process.clock
    start_at, clock.now = clock.now(), lambda: start_at  # type: ignore[method-assign]
    budget = limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE
    for _ in range(budget + 1):  # a request without credentials is no guess
        response = await ask(server, "GET", "/v1/accounts/ann", None)
        assert_problem(response, 401, "unauthenticated")
    for _ in range(budget):
        response = await ask(server, "GET", "/v1/accounts/ann", "wrong")
        assert_problem(response, 401, "unauthenticated")
    response = await ask(server, "GET", "/v1/accounts/ann", "wrong")
    assert_problem(response, 429, "rate_limited")
    assert re.fullmatch(r"[1-9]|[1-5][0-9]|60", response.headers["retry-after"])
    # Good credentials pass from the same address, and none are asked for as before.
    for bearer in (server.token(), API_KEY):
        assert (await ask(server, "GET", "/v1/accounts/ann", bearer)).status_code == 200
    response = await ask(server, "GET", "/v1/accounts/ann", None)
    assert_problem(response, 401, "unauthenticated")
    assert (await ask(server, "GET", "/healthz", None)).status_code == 200
    # The next minute is another one.
    clock.now = lambda: start_at + MINUTE_MS  # type: ignore[method-assign]
    response = await ask(server, "GET", "/v1/accounts/ann", "wrong")
    assert_problem(response, 401, "unauthenticated")


async def test_forwarded_for_of_an_untrusted_peer_is_logged_once(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"X-Forwarded-For": "198.51.100.7"}
    server = await start_server()
    with structlog.testing.capture_logs() as logged:
        await ask(server, "GET", "/healthz", None, headers=told)
    assert [line for line in logged if line["event"] == "forwarded_for_ignored"] == []
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.6")
    server = await start_server()
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            await ask(server, "GET", "/healthz", None, headers=told)
    (line,) = [line for line in logged if line["event"] == "forwarded_for_ignored"]
    assert line["peer"] == "127.0.0.1"
    assert "FORWARDED_ALLOW_IPS" in line["hint"]


async def test_a_user_who_asks_too_much_is_told_to_wait(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REQUESTS_BURST", 3)
    monkeypatch.setattr(limits, "REQUESTS_PER_SECOND", 0)
    token = server.token()
    for _ in range(3):
        assert (await ask(server, "GET", "/v1/accounts/ann", token)).status_code == 200
    refused = await ask(server, "GET", "/v1/accounts/ann", token)
    assert_problem(refused, 429, "rate_limited")
    assert refused.headers["retry-after"] == "3600", "an hour at most"
    # Another token of the same user is no way out; others are not concerned, and a
    # backend asks as much as it likes.
    again = await ask(server, "GET", "/v1/accounts/ann", server.token(ttl_seconds=60))
    assert again.status_code == 429
    assert (await ask(server, "GET", "/v1/accounts/bob", server.token("bob"))).status_code == 200
    for _ in range(5):
        assert (await ask(server, "GET", "/v1/accounts/ann")).status_code == 200
        assert (
            await ask(server, "GET", "/v1/accounts/ann", server.token("op", scope="ops"))
        ).is_success
    monkeypatch.setattr(limits, "REQUESTS_PER_SECOND", 10_000_000)
    advance(server, 1_000)
    assert (await ask(server, "GET", "/v1/accounts/ann", token)).status_code == 200


def test_users_who_ask_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUEST_USERS_MAX", 2)
    monkeypatch.setattr(limits, "REQUESTS_BURST", 1)
    requests = UserRequests(Stopped(MINUTE_MS))
    ann, bob, eve = (Principal("user", user_id=name, tenant="t") for name in ("ann", "bob", "eve"))
    requests.check(ann)
    requests.check(bob)
    for name in (ann, bob):
        with pytest.raises(PeerError):
            requests.check(name)
    requests.check(eve)  # ann was silent for longest
    assert len(requests._buckets) == 2
    with pytest.raises(PeerError):
        requests.check(bob)


class Stopped:
    """A clock that stands."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def now(self) -> int:
        return self.now_ms


def fail(failures: Failures, address: str, times: int) -> None:
    for _ in range(times):
        assert failures.wait_ms(address) == 0
        failures.count(address)


def test_addresses_are_counted_each_for_itself_and_by_the_minute() -> None:
    clock = Stopped(10 * MINUTE_MS + 45_000)
    failures = Failures(clock)
    fail(failures, "a", limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE)
    assert failures.wait_ms("a") == 15_000
    assert failures.wait_ms("b") == 0
    clock.now_ms += 15_000
    assert failures.wait_ms("a") == 0


def test_a_flood_from_everywhere_does_not_fill_the_memory() -> None:
    failures = Failures(Stopped(MINUTE_MS))
    for number in range(limits.AUTH_FAILURE_ADDRESSES_MAX + 10):
        fail(failures, f"address {number}", 1)
    assert len(failures._counts) <= limits.AUTH_FAILURE_ADDRESSES_MAX + 1


def test_untrusted_peers_are_named_up_to_a_number() -> None:
    door = Door()
    with structlog.testing.capture_logs() as logged:
        for number in range(limits.PROXIES_REPORTED_MAX + 10):
            door.forwarded(f"10.0.0.{number}")
    assert len(logged) == limits.PROXIES_REPORTED_MAX


async def test_signatures_of_an_address_that_guesses_are_checked_at_a_pace() -> None:
    failures = Failures(Stopped(MINUTE_MS))
    failures._checks = checks = SuspectChecks(pace_s=3600.0)
    authenticator = Slow()
    budget = limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE
    await asyncio.gather(*(guess(failures, authenticator, "bad") for _ in range(budget)))
    assert authenticator.checked == budget
    # From here on there is one check at a time, however many tokens arrive.
    waiting = [asyncio.create_task(guess(failures, authenticator, "bad")) for _ in range(1_000)]
    good = asyncio.create_task(guess(failures, authenticator, "good"))
    elsewhere = asyncio.create_task(guess(failures, authenticator, "good", "b"))
    await asyncio.gather(*waiting[: -limits.SUSPECT_CHECKS_WAITING_MAX], return_exceptions=True)
    assert authenticator.checked == budget + 2  # the first of them, and the one from elsewhere
    assert await elsewhere == "principal"
    # The newest has the next turn: its sender still waits.
    assert checks._timer is not None
    checks._timer.cancel()
    checks._next()
    assert await good == "principal"
    assert authenticator.checked == budget + 3
    assert sum(len(tokens) for tokens in checks._waiting.values()) < (
        limits.SUSPECT_CHECKS_WAITING_MAX
    )
    checks._timer.cancel()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_tokens_with_unknown_keys_keep_no_good_token_waiting() -> None:
    """They cost no check, so the checks of an office where somebody sends them are not paced."""
    failures = Failures(Stopped(MINUTE_MS))
    failures._checks = SuspectChecks(pace_s=3600.0)
    authenticator = Slow()
    budget = limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE
    flood = (guess(failures, authenticator, f"unknown {number}") for number in range(3 * budget))
    await asyncio.gather(*flood)
    users = (guess(failures, authenticator, f"good {number}") for number in range(1_000))
    assert set(await asyncio.gather(*users)) == {"principal"}


async def test_a_token_that_was_good_before_waits_behind_no_bad_signature() -> None:
    failures = Failures(Stopped(MINUTE_MS))
    failures._checks = checks = SuspectChecks(pace_s=3600.0)
    authenticator = Slow()
    assert await guess(failures, authenticator, "good") == "principal"
    budget = limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE
    await asyncio.gather(*(guess(failures, authenticator, "bad") for _ in range(budget)))
    waiting = [asyncio.create_task(guess(failures, authenticator, "bad")) for _ in range(10)]
    await asyncio.sleep(0)
    assert await guess(failures, authenticator, "good") == "principal"
    assert checks._timer is not None
    checks._timer.cancel()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def test_good_tokens_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GOOD_TOKENS_REMEMBERED_MAX", 3)
    failures = Failures(Stopped(MINUTE_MS))
    for number in (1, 2, 3, 1, 4):
        failures._remember(str(number))
    assert len(failures._good) == 3
    assert hashlib.sha256(b"1").digest() in failures._good


class Slow:
    """An authenticator whose checks are counted."""

    def __init__(self) -> None:
        self.checked = 0

    async def authenticate(self, bearer: str, before_signature: Any, network: str) -> str:
        assert network
        if bearer.startswith("unknown"):
            raise PeerError(ErrorCode.UNAUTHENTICATED, "no such key")
        await before_signature()
        self.checked += 1
        if bearer.startswith("good"):
            return "principal"
        raise PeerError(ErrorCode.UNAUTHENTICATED, "the token is not valid")


async def guess(failures: Failures, authenticator: Any, bearer: str, address: str = "a") -> Any:
    try:
        return await failures.counted(address, authenticator, bearer)
    except PeerError as error:
        return error.code
