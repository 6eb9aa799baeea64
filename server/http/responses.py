"""JSON responses."""

from typing import Any

import msgspec
import orjson
from starlette.responses import Response


def json_response(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A response of encoded JSON.

    With a status of an error, it is a problem document.
    """
    media_type = "application/json" if status < 400 else "application/problem+json"
    return Response(body, status, headers, media_type=media_type)


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response of a struct or plain value, with any status."""
    body = msgspec.json.encode(value) if isinstance(value, msgspec.Struct) else orjson.dumps(value)
    return Response(body, status, headers, media_type="application/json")
