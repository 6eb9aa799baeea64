"""Pages of a list: their size, and the cursor of the next.

A cursor has the key of a page's last row. Clients treat it as opaque, so only text that a page gave
is accepted: any other text gets ``bad_message``.
"""

import base64
import binascii
from typing import Any

import msgspec
from starlette.requests import Request

from protocol import limits
from protocol.wire.errors import BadMessageError
from server import limits as server_limits
from storage import limits as storage_limits


def cursor_of(*values: int | str) -> str:
    """The cursor of a row, whose key is ``values``."""
    return base64.urlsafe_b64encode(msgspec.json.encode(values)).rstrip(b"=").decode()


def cursor_values(request: Request, types: tuple[type, ...]) -> Any:
    """The key in the request's cursor; None for the first page.

    Raises ``bad_message`` for a cursor that ``cursor_of`` did not make of values of these
    ``types``, with integers between 0 and ``SAFE_INTEGER_MAX``.
    """
    cursor = request.query_params.get("cursor")
    if cursor is None:
        return None
    try:
        decoded = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        values = msgspec.json.decode(decoded, type=tuple[types])  # type: ignore[valid-type]
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise foreign_cursor() from None
    numbers = [value for value in values if isinstance(value, int)]
    if any(not 0 <= number <= limits.SAFE_INTEGER_MAX for number in numbers):
        raise foreign_cursor()
    if cursor_of(*values) != cursor:
        raise foreign_cursor()
    return values


def foreign_cursor() -> BadMessageError:
    """The error of a cursor that no page gave."""
    return BadMessageError("cursor: not one of ours")


def page_rows(request: Request, most: int = storage_limits.PAGE_ROWS_MAX) -> int:
    """The rows of a page, by the request's ``limit``.

    Raises ``bad_message`` for a limit that is no whole number between 1 and ``most``.
    """
    limit = request.query_params.get("limit")
    if limit is None:
        return server_limits.PAGE_ROWS_DEFAULT
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 6):
        raise BadMessageError("limit: expected a whole number")
    if not 1 <= int(limit) <= most:
        raise BadMessageError(f"limit: must be between 1 and {most}")
    return int(limit)
