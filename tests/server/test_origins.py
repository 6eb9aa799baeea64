"""Origins that may connect, as browsers send and operators configure them."""

import json
from typing import Any

import httpx
import pytest
import structlog
from websockets.exceptions import InvalidStatus

from server import limits as server_limits
from server.runtime.metrics import Metrics
from server.runtime.origins import Origins, parse_entry, reached
from server.runtime.settings import ConfigurationError, load_settings
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask


def origins(*entries: str) -> Origins:
    return Origins(entries, Metrics(with_process=False))


ENTRIES = {
    "https://Example.COM": ["https://example.com"],
    "HTTPS://example.com": ["https://example.com"],
    "https://example.com:443": ["https://example.com"],
    "http://example.com:80": ["http://example.com"],
    "https://example.com/": ["https://example.com"],
    "https://example.com:8443": ["https://example.com:8443"],
    "http://localhost:3000": ["http://localhost:3000"],
    "https://*.Example.com": ["https://a.example.com", "https://a.b-c.example.com"],
    "https://*.example.com:8443": ["https://a.example.com:8443"],
    "https://bücher.example": ["https://xn--bcher-kva.example"],
    "https://*.bücher.example": ["https://x.xn--bcher-kva.example"],
    "https://xn--bcher-kva.example": ["https://xn--bcher-kva.example"],
    "http://[0:0:0:0:0:0:0:1]:3000": ["http://[::1]:3000"],
    "http://192.168.0.1": ["http://192.168.0.1"],
    "*": ["https://anything.example", "null"],
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_matches_what_browsers_send(entry: str) -> None:
    for origin in ENTRIES[entry]:
        assert origins(entry).lists(origin), origin


STRANGERS = [
    "https://example.com.evil.example", "https://evilexample.com", "http://example.com",
    "https://example.com:444", "https://example.com@evil.example", "null", "", "https://",
    "https://example.com/path", "https://example.com https://evil.example", "example.com",
    "https://exa\tmple.com", "https://example.com.", "https://sub.example.com", "https://[",
    "chrome-extension://example.com", "file://", "https://example.com\\@evil.example",
]  # fmt: skip


@pytest.mark.parametrize("origin", STRANGERS)
def test_an_entry_matches_nothing_else(origin: str) -> None:
    assert not origins("https://example.com", "https://other.example").lists(origin)


@pytest.mark.parametrize(
    "origin",
    ["https://example.com", "https://.example.com", "https://evilexample.com", "null",
     "http://a.example.com", "https://a.example.com:8443", "https://*.example.com",
     "https://a.example.com.evil.example", "https://-.example.com"],
)  # fmt: skip
def test_a_wildcard_stands_for_names_below_a_domain(origin: str) -> None:
    assert not origins("https://*.example.com").lists(origin)


@pytest.mark.parametrize(
    "entry",
    ["null", "example.com", "*.example.com", "https://*", "https://*.", "https://*.com",
     "https://a*.example.com", "https://a.*.example.com", "https://*.*.example.com",
     "https://*.10.0.0.1", "https://example.com/path", "https://example.com?q=1",
     "https://example.com#x", "https://user@example.com", "https://example.com:99999",
     "https://example.com:port", "https://exam ple.com", "https://example..com", "https://",
     "https://faß.example", "http://127.1", "http://0x7f000001", "https://[::1", "ftp://a.b",
     "wss://example.com", "capacitor://localhost", "https://-a.example", "https://ex%61mple.com",
     "https://example.com,https://b.example".replace(",", ";"), "**", "https:example.com"],
)  # fmt: skip
def test_the_refusal_of_a_start_names_the_bad_origin(
    entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAXIMETER_ORIGINS", f"https://good.example,{entry}")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    (problem,) = caught.value.problems
    assert problem.startswith("TAXIMETER_ORIGINS: ")
    assert ascii(entry)[1:-1] in ascii(problem)
    assert "good.example" not in problem


def test_settings_keep_the_browsers_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAXIMETER_ORIGINS", "HTTPS://A.example:443, https://*.B.example,*")
    assert load_settings().origins == ("https://a.example", "https://*.b.example", "*")
    assert parse_entry(parse_entry("https://*.BÜ.example")) == "https://*.xn--b-eha.example"


OWN: list[tuple[str, dict[str, str], str, bool, bool]] = [
    # origin, headers, scheme, proxied, whether the origin is the server's own
    ("http://127.0.0.1:8000", {"host": "127.0.0.1:8000"}, "ws", False, True),
    ("http://app.example:8000", {"host": "APP.Example:8000"}, "ws", False, True),
    ("http://app.example", {"host": "app.example:80"}, "ws", False, True),
    ("http://app.example", {"host": "app.example"}, "ws", False, True),
    ("https://app.example", {"host": "app.example:443"}, "wss", False, True),
    ("https://app.example", {"host": "app.example"}, "wss", False, True),
    ("http://[::1]:8000", {"host": "[0::1]:8000"}, "ws", False, True),
    # Where the origin names this port, only plain HTTP is spoken there.
    ("https://127.0.0.1:8000", {"host": "127.0.0.1:8000"}, "ws", False, False),
    # A proxy without a header may have ended TLS; a proxy with the header has.
    ("https://app.example", {"host": "app.example"}, "ws", False, True),
    ("http://app.example", {"host": "app.example"}, "wss", False, False),
    ("http://app.example", {"host": "app.example", "x-forwarded-proto": "https"}, "wss", True,
     False),
    ("http://app.example", {"host": "app.example", "x-forwarded-proto": "https, http"}, "ws", True,
     False),
    ("https://app.example", {"host": "app.example", "x-forwarded-proto": "http"}, "ws", True,
     False),
    ("http://app.example:443", {"host": "app.example"}, "ws", False, False),
    ("http://app.example", {"host": "app.example:8000"}, "ws", False, False),
    ("http://app.example:8000", {"host": "app.example"}, "ws", False, False),
    ("null", {"host": ""}, "ws", False, False),
    ("null", {}, "ws", False, False),
    ("", {"host": ""}, "ws", False, False),
    ("http://", {"host": ""}, "ws", False, False),
    ("ftp://app.example", {"host": "app.example"}, "ws", False, False),
    ("chrome-extension://app.example", {"host": "app.example"}, "ws", False, False),
    ("http://app.example", {"host": "x@app.example"}, "ws", False, False),
    ("http://evil.example", {"host": "app.example"}, "ws", False, False),
    # The trusted proxy's header about the host that the browser asked for.
    ("https://app.example", {"host": "10.0.0.7:8000", "x-forwarded-host": "App.example",
     "x-forwarded-proto": "https"}, "wss", True, True),
    ("https://app.example:8443", {"host": "upstream", "x-forwarded-host": "app.example:8443"}, "ws",
     True, True),
    ("https://app.example:8443", {"host": "up", "x-forwarded-host": "app.example",
     "x-forwarded-port": "8443"}, "ws", True, True),
    ("https://app.example", {"host": "up", "x-forwarded-host": "app.example, inner"}, "ws", True,
     True),
    ("https://app.example", {"host": "up", "x-forwarded-host": "app.example"}, "ws", False, False),
    ("https://evil.example", {"host": "up", "x-forwarded-host": "app.example"}, "ws", True, False),
]  # fmt: skip


@pytest.mark.parametrize(("origin", "headers", "scheme", "proxied", "own"), OWN)
def test_a_servers_own_pages_are_told_from_others(
    origin: str, headers: dict[str, str], scheme: str, proxied: bool, own: bool
) -> None:
    assert reached(headers, scheme, 8000, proxied=proxied).is_own(origin) is own


# --- Through sockets and HTTP -----------------------------------------------------------


async def connects(server: TestServer, origin: str, **headers: str) -> bool:
    sent: dict[str, Any] = {"Origin": origin, **headers}
    try:
        client = await server.connect(additional_headers=sent)
    except InvalidStatus as error:
        refused = error.response
    else:
        await client.close()
        return True
    assert refused.status_code == 403
    assert refused.body is not None
    assert json.loads(refused.body)["code"] == "forbidden"
    return False


async def test_pages_connect_as_the_configuration_means_it(start_server: StartServer) -> None:
    server = await start_server(
        origins=("https://App.Example:443", "https://*.example.org", "https://bücher.example")
    )
    for origin in ("https://app.example", "https://a.b.example.org", "https://xn--bcher-kva.example",
                   server.url):  # fmt: skip
        assert await connects(server, origin), origin
    for origin in ("https://example.org", "http://app.example", "null",
                   server.url.replace("http:", "https:")):  # fmt: skip
        assert not await connects(server, origin), origin
    for origin, status in (("https://a.example.org", 200), ("https://example.org", 400)):
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.options(
                f"{server.url}/v1/accounts/ann",
                headers={"Origin": origin, "Access-Control-Request-Method": "GET"},
            )
        assert answer.status_code == status
        allowed = answer.headers.get("access-control-allow-origin")
        assert allowed == (origin if status == 200 else None)


async def test_a_trusted_proxy_says_by_which_name_it_was_reached(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "X-Forwarded-Host": "app.example",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "198.51.100.7",
    }
    server = await start_server()
    assert await connects(server, "https://app.example", **told)
    assert not await connects(server, "http://app.example", **told)
    assert not await connects(server, "https://app.example")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.9")
    server = await start_server()
    assert not await connects(server, "https://app.example", **told)


async def test_a_refused_origin_is_counted_and_logged_once(server: TestServer) -> None:
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            assert not await connects(server, "https://evil.example")
        assert not await connects(server, "null")
    lines = [line for line in logged if line["event"] == "origin_refused"]
    assert [line["origin"] for line in lines] == ["https://evil.example", "null"]
    assert "TAXIMETER_ORIGINS" in lines[0]["hint"]
    assert lines[0]["host"] == f"127.0.0.1:{server.port}"
    metrics = (await ask(server, "GET", "/metrics", None)).text
    assert "taximeter_origins_refused_total 4.0" in metrics


def test_a_flood_of_origins_does_not_fill_the_log() -> None:
    limiter = origins()
    with structlog.testing.capture_logs() as logged:
        for number in range(server_limits.ORIGINS_REPORTED_MAX + 10):
            limiter.refused(f"https://evil-{number}.example" + "x" * 10_000, "h")
            limiter.refused(chr(0x202E) + chr(27) + "[31m", "h")
    assert len(logged) == server_limits.ORIGINS_REPORTED_MAX
    for line in logged:
        assert line["origin"].isascii()
        assert len(line["origin"]) <= 2 * server_limits.ORIGIN_CHARACTERS_SHOWN
