"""Responses of JSON."""

from typing import Any

import msgspec
import orjson
from starlette.responses import Response


def json_response(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A response of JSON that is encoded already; with an error's status, a problem."""
    media_type = "application/json" if status < 400 else "application/problem+json"
    return Response(body, status, headers, media_type=media_type)


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response of a struct or plain value, whatever its status means."""
    body = msgspec.json.encode(value) if isinstance(value, msgspec.Struct) else orjson.dumps(value)
    return Response(body, status, headers, media_type="application/json")
