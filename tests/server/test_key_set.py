"""Key sets as real issuers may send them: moved, huge, slow, absurd."""

import contextlib
import http.server
import io
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server import limits as server_limits
from server.access.key_set import KeySetError, _WithinSite, fetch_with, parse_key_set
from tests.server.test_credentials import EC, authenticator, issued, public_jwks

Serve = Callable[[http.server.BaseHTTPRequestHandler], None]

ABSURD: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"<html>",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"keys":' * 100_000,
    "a huge number": b'{"keys":[{"kty":' + b"9" * 100_000 + b"}]}",
    "infinity": b'{"keys":[{"kty":1e999,"n":NaN}]}',
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "no keys": b"{}",
    "keys as a number": b'{"keys":5}',
    "keys as an object": b'{"keys":{"kty":"RSA"}}',
    "keys as text": b'{"keys":"RSA"}',
    "no key": b'{"keys":[]}',
    "keys that are none": b'{"keys":[null,5,"x",[],{}]}',
    "lone surrogates": b'{"keys":[{"kty":"\\ud800","kid":"\\udfff"}]}',
    "not UTF-8": b'\xff\xfe{"keys":[]}',
}


@pytest.mark.parametrize("body", ABSURD.values(), ids=ABSURD)
def test_absurd_key_sets_are_key_set_errors(body: bytes) -> None:
    with pytest.raises(KeySetError):
        parse_key_set(body)


def test_absurd_keys_are_skipped_and_good_ones_found() -> None:
    good = public_jwks()
    values: list[Any] = [
        None,
        True,
        5,
        -1,
        1e308,
        10**400,
        "",
        "x" * 100_000,
        [],
        [[]],
        {},
        {"a": 1},
    ]
    absurd = [
        member | {field: value}
        for member in good
        for field in ("kty", "alg", "crv", "n", "e", "x", "y", "kid", "use")
        for value in values
        # These fields may be absent, or have values that the server ignores.
        if not (field == "use" or (field == "alg" and value in ("", None)))
    ]
    keys = parse_key_set(json.dumps({"keys": [*absurd[:200], *good]}).encode())
    assert {"rsa", "ec", "ed"} <= {key.key_id for key in keys}
    for first in range(0, len(absurd), 100):
        with contextlib.suppress(KeySetError):
            for key in parse_key_set(json.dumps({"keys": absurd[first : first + 100]}).encode()):
                assert key.key_id is None or isinstance(key.key_id, str)
    # The server looks at a bounded number of keys.
    many = parse_key_set(json.dumps({"keys": good[1:2] * 1_000}).encode())
    assert len(many) == server_limits.JWKS_KEYS_MAX


class IssuerSite:
    """An issuer's web server; ``paths`` contains its answers."""

    def __init__(self) -> None:
        self.paths: dict[str, Serve] = {}
        self.asked: list[tuple[str, str]] = []
        site = self

        class IssuerSiteHandler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, self.headers.get("User-Agent", "")))
                with contextlib.suppress(OSError):
                    site.paths[self.path](self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), IssuerSiteHandler)
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site() -> Iterator[IssuerSite]:
    made = IssuerSite()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def says(body: bytes, status: int = 200, **headers: str) -> Serve:
    def serve(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return serve


def keys_body() -> bytes:
    return json.dumps({"keys": public_jwks()}).encode()


def test_redirects_within_the_site_are_followed_with_our_user_agent(site: IssuerSite) -> None:
    site.paths = {
        "/keys": says(b"", 302, Location="/moved"),
        "/moved": says(b"", 308, Location=f"{site.url}/again"),
        "/again": says(keys_body()),
    }
    assert len(fetch_with(f"{site.url}/keys")()) == 3
    assert [path for path, _ in site.asked] == ["/keys", "/moved", "/again"]
    assert all(agent.startswith("Taximeter/") for _, agent in site.asked)


@pytest.mark.parametrize(
    "elsewhere",
    ["http://localhost:{port}/keys", "http://127.0.0.1:1/keys", "http://127.0.0.2:{port}/keys",
     "//localhost:{port}/keys", "file:///etc/passwd", "data:application/json,{{}}",
     "ftp://127.0.0.1/keys", "http://[/"],
)  # fmt: skip
def test_redirects_out_of_the_site_are_not(site: IssuerSite, elsewhere: str) -> None:
    target = elsewhere.format(port=site.server.server_port)
    site.paths = {"/start": says(b"", 302, Location=target), "/keys": says(keys_body())}
    with pytest.raises(KeySetError):
        fetch_with(f"{site.url}/start")()
    assert [path for path, _ in site.asked] == ["/start"]


def test_a_redirect_may_name_the_default_port() -> None:
    handler = _WithinSite("https://keys.example/a")
    for before, after in (
        ("https://keys.example/a", "https://keys.example:443/b"),
        ("http://keys.example:80/a", "http://KEYS.example/b"),
    ):
        asked = urllib.request.Request(before)
        found = handler.redirect_request(asked, io.BytesIO(), 302, "", {}, after)
        assert found is not None
        assert found.full_url == after


def test_redirects_in_a_circle_end(site: IssuerSite) -> None:
    site.paths = {"/a": says(b"", 302, Location="/b"), "/b": says(b"", 302, Location="/a")}
    with pytest.raises(KeySetError):
        fetch_with(f"{site.url}/a")()
    assert len(site.asked) <= 8


def test_a_huge_body_is_read_no_further_than_its_bound(site: IssuerSite) -> None:
    site.paths = {"/keys": says(keys_body() + b" " * 10_000_000)}
    with pytest.raises(KeySetError, match="over"):
        fetch_with(f"{site.url}/keys")()


def drip(handler: http.server.BaseHTTPRequestHandler, head: bytes) -> None:
    """Sends a byte now and then, until the peer closes the connection."""
    handler.wfile.write(head)
    pause = threading.Event()
    while True:
        handler.wfile.write(b" ")
        pause.wait(0.01)


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.1 200 OK\r\nX-Slow:", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
    ids=["status", "head", "body", "chunks"],
)  # fmt: skip
def test_a_peer_that_drips_is_cut(
    site: IssuerSite, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "JWKS_TIMEOUT_MS", 200)
    site.paths = {"/keys": lambda handler: drip(handler, head)}
    with pytest.raises(KeySetError):
        fetch_with(f"{site.url}/keys")()


@pytest.mark.parametrize(
    "answer",
    [says(b"", 404), says(b"", 500), says(b"", 204), says(b"", 302), says(b"", 304),
     lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"),
     lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"),
     lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000 + b"\r\n"),
     lambda handler: None],
)  # fmt: skip
def test_answers_that_are_none_are_key_set_errors(site: IssuerSite, answer: Serve) -> None:
    site.paths = {"/keys": answer}
    with pytest.raises(KeySetError):
        fetch_with(f"{site.url}/keys")()


async def test_absurd_answers_take_nothing_from_a_running_server(site: IssuerSite) -> None:
    site.paths = {"/keys": says(keys_body())}
    checker = authenticator(jwt_secret=None, jwks_url=f"{site.url}/keys")
    await checker.prepare()
    assert checker._keys is not None
    for body in ABSURD.values():
        site.paths["/keys"] = says(body)
        assert not await checker._keys.refresh()
        assert (await checker.authenticate(issued(EC, "ES256", "ec"))).user_id == "u1"
