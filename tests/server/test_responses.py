"""Responses of JSON, and the media type of their status."""

import json

import msgspec
import pytest

from server.http.responses import answer, json_response


class Pair(msgspec.Struct):
    first: int
    second: str | None = None


@pytest.mark.parametrize(
    ("status", "media_type"),
    [(200, "application/json"), (201, "application/json"), (400, "application/problem+json"),
     (503, "application/problem+json")],
)  # fmt: skip
def test_errors_are_problem_documents(status: int, media_type: str) -> None:
    response = json_response(b'{"a":1}', status, {"X-A": "b"})
    assert (response.status_code, response.body) == (status, b'{"a":1}')
    assert (response.headers["content-type"], response.headers["x-a"]) == (media_type, "b")


@pytest.mark.parametrize("value", [Pair(1), {"first": 1, "second": None}])
def test_structs_and_plain_values_are_encoded_alike(value: object) -> None:
    response = answer(value, 503)
    assert json.loads(bytes(response.body)) == {"first": 1, "second": None}
    assert (response.status_code, response.headers["content-type"]) == (503, "application/json")
