"""Handshakes to any path except the socket's."""

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.fixtures.server import TestServer


@pytest.mark.parametrize("path", ["/v1/ws/", "/v1/accounts/ann", "/", "/nothing", "/pages/x"])
async def test_another_path_has_no_socket_and_says_so(server: TestServer, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await connect(f"ws://127.0.0.1:{server.port}{path}", proxy=None)
    response = caught.value.response
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/problem+json"
    assert b'"not_found"' in response.body
