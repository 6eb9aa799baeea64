"""A page has bounded rows, and only pages make cursors."""

import base64
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.requests import Request

from protocol import limits
from protocol.wire.errors import BadMessageError
from server import limits as server_limits
from server.http.paging import cursor_of, cursor_values, page_rows
from storage import limits as storage_limits


def asked(**query: Any) -> Request:
    return Request({"type": "http", "query_string": urlencode(query).encode(), "headers": []})


@pytest.mark.parametrize(
    ("values", "types"), [((7,), (int,)), ((0, "a.b"), (int, str)), ((2**53 - 1, "s"), (int, str))]
)
def test_cursor_brings_back_what_it_was_made_of(values: Any, types: Any) -> None:
    assert cursor_values(asked(cursor=cursor_of(*values)), types) == values


def test_first_page_needs_no_cursor() -> None:
    assert cursor_values(asked(), (int,)) is None


def encoded(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "", "x", "é", "!!!!", cursor_of(7), cursor_of("s", 7), cursor_of(7, "s") + "=",
        cursor_of(7, "s") + "\n", cursor_of(-1, "s"), cursor_of(limits.SAFE_INTEGER_MAX + 1, "s"),
        encoded(b'[7, "s"]'), encoded(b'[7,"s",1]'), encoded(b"{}"), encoded(b"\xff"),
        encoded(b'[true,"s"]'), encoded(b'[7.0,"s"]'), encoded(b"[" * 10_000),
    ],
)  # fmt: skip
def test_foreign_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(BadMessageError, match="cursor"):
        cursor_values(asked(cursor=cursor), (int, str))


def test_rows_of_a_page_are_bounded() -> None:
    assert page_rows(asked()) == server_limits.PAGE_ROWS_DEFAULT
    most = storage_limits.PAGE_ROWS_MAX
    assert (page_rows(asked(limit=1)), page_rows(asked(limit=most))) == (1, most)
    for bad in ("0", "-1", "", "x", "1.0", " 1", "²", "9" * 400, str(most + 1)):
        with pytest.raises(BadMessageError, match="limit"):
            page_rows(asked(limit=bad))
    with pytest.raises(BadMessageError, match="limit"):
        page_rows(asked(limit=11), most=10)
