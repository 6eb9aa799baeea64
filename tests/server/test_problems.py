"""Errors over HTTP are problem documents."""

from typing import Any

import pytest

from server.http.problems import Problem
from tests.fixtures.server import TestServer
from tests.server.api import ask, assert_problem

PAGE = "https://shop.example"


async def test_an_internal_error_reveals_no_details(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(server.process.live, "account", broken)
    response = await ask(server, "GET", "/v1/accounts/ann", headers={"Origin": PAGE})
    assert_problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


def test_retry_after_is_an_hour_at_most() -> None:
    for given, said in ((None, "1"), (0, "1"), (-5, "1"), (60, "60"), (3_600, "3600"),
                        (31 * 86_400, "3600")):  # fmt: skip
        response = Problem(429, "rate_limited", "later", retry_after_s=given).response()
        assert response.headers["retry-after"] == said
