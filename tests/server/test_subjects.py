"""Whose usage a call is about."""

import pytest
from starlette.requests import Request

from protocol.wire.errors import BadMessageError, ErrorCode, PeerError
from server.access.principals import Principal
from server.http.subjects import subject_of

ANN = Principal("user", "ann", "acme", "wallet", "org:acme")
KEY = Principal("key")


def asks(query: str) -> Request:
    scope = {"type": "http", "query_string": query.encode(), "headers": [], "path": "/"}
    return Request(scope)


@pytest.mark.parametrize(
    ("principal", "query", "expected"),
    [
        (ANN, "", ("ann", "acme", "org:acme", "wallet")),
        (ANN, "user=ann&org=acme&account=wallet", ("ann", "acme", "org:acme", "wallet")),
        (KEY, "user=ben", ("ben", None, "user:ben", "ben")),
        (KEY, "user=ben&org=acme&account=w", ("ben", "acme", "org:acme", "w")),
    ],
)
def test_subject_is_the_tokens_user_or_the_one_named(
    principal: Principal, query: str, expected: tuple[str, str | None, str, str]
) -> None:
    found = subject_of(asks(query), principal)
    assert (found.user_id, found.org_id, found.tenant, found.account_id) == expected
    assert found.principal is principal


@pytest.mark.parametrize("query", ["user=ben", "org=other", "account=other"])
def test_user_names_nobody_else(query: str) -> None:
    with pytest.raises(PeerError) as refused:
        subject_of(asks(query), ANN)
    assert refused.value.code is ErrorCode.FORBIDDEN


@pytest.mark.parametrize("query", ["", "org=acme"])
def test_backend_names_a_user(query: str) -> None:
    with pytest.raises(BadMessageError, match="user"):
        subject_of(asks(query), KEY)
