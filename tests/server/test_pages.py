"""The page at ``/`` and the browser's client, and no other file."""

import pytest

from tests.fixtures.server import TestServer
from tests.server.api import ask, assert_problem


async def test_page_is_served_with_its_parts(server: TestServer) -> None:
    for path, media_type in (
        ("/", "text/html"), ("/pages/style.css", "text/css"), ("/pages/icon.svg", "image/svg+xml"),
    ):  # fmt: skip
        response = await ask(server, "GET", path, None)
        assert response.status_code == 200, path
        assert response.headers["content-type"].startswith(media_type)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("taximeter.js", "text/javascript"),
        ("taximeter.d.ts", "text/plain"),
        ("live.js", "text/javascript"),
        ("fallback.js", "text/javascript"),
        ("fallback.d.ts", "text/plain"),
    ],
)
async def test_client_may_be_imported_by_every_page(
    server: TestServer, name: str, media_type: str
) -> None:
    response = await ask(server, "GET", f"/client/{name}", None)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(media_type)
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    ["/client/none.js", "/client/package.json", "/client/..%2Ftaximeter.js", "/client/%2e%2e",
     "/pages/none.html", "/pages/", "/pages/..%2f..%2fserver%2fprocess.py"],
)  # fmt: skip
async def test_other_files_are_not_found(server: TestServer, path: str) -> None:
    assert_problem(await ask(server, "GET", path, None), 404, "not_found")
