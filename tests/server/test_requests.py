"""Bodies of HTTP requests are read strictly and within their bound."""

from collections.abc import AsyncIterator

import httpx
import pytest

from server import limits as server_limits
from tests.fixtures.server import TestServer
from tests.server.api import ask, assert_problem


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
    assert_problem(
        await put(b'{"tier":"' + b"x" * server_limits.BODY_BYTES_MAX), 413, "bad_message"
    )
    assert_problem(await put(b""), 400, "bad_message")


async def test_a_body_without_end_is_read_no_further_than_its_bound(server: TestServer) -> None:
    body = b'{"tier":"' + b"x" * server_limits.BODY_BYTES_MAX + b'"}'
    problem = assert_problem(
        await ask(server, "PUT", "/v1/orgs/acme", content=body), 413, "bad_message"
    )
    assert problem["title"] == "Content too large"
