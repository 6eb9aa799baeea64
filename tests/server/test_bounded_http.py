"""Requests that end in time and within their bytes; see also test_key_set.py."""

import http.server

import pytest

from server.runtime.bounded_http import HttpAnswer, HttpFailedError, NoRedirects, request
from tests.server.test_key_set import IssuerSite, drip, says, site

__all__ = ["site"]


def ask(url: str, **changes: object) -> HttpAnswer:
    return request(
        url,
        headers={"X-Asked": "yes"},
        redirects=NoRedirects(),
        timeout_ms=int(str(changes.get("timeout_ms", 5_000))),
        bytes_max=100,
    )


def test_every_status_is_an_answer(site: IssuerSite) -> None:
    for status in (200, 201, 204, 304, 400, 404, 500, 503):
        body = b"" if status in (204, 304) else b"body"
        site.paths = {"/": says(body, status)}
        assert ask(f"{site.url}/") == (status, body)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_refused(site: IssuerSite, status: int) -> None:
    site.paths = {"/": says(b"", status, Location="/elsewhere"), "/elsewhere": says(b"")}
    with pytest.raises(HttpFailedError, match="it redirects"):
        ask(f"{site.url}/")
    assert len(site.asked) == 1


def test_bytes_and_time_are_bounded(site: IssuerSite) -> None:
    site.paths = {"/": says(b"x" * 100), "/huge": says(b"x" * 10_000_000)}
    assert ask(f"{site.url}/").status == 200
    with pytest.raises(HttpFailedError, match="over 100 bytes"):
        ask(f"{site.url}/huge")

    def dripping(handler: http.server.BaseHTTPRequestHandler) -> None:
        drip(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")

    site.paths["/slow"] = dripping
    with pytest.raises(HttpFailedError, match="it took too long"):
        ask(f"{site.url}/slow", timeout_ms=200)
    with pytest.raises(HttpFailedError):
        ask("http://127.0.0.1:1/")
