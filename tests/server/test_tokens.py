"""Tokens that this server makes are good."""

from typing import Any

import pytest

from server.access.credentials import Authenticator
from server.access.principals import Principal
from server.access.tokens import mint_token
from server.runtime.settings import ConfigurationError
from tests.server.test_credentials import NOW_MS, authenticator, configured


async def test_a_minted_token_is_good() -> None:
    changes: dict[str, Any] = {"jwt_issuer": "i", "jwt_audience": "a"}
    bearer = mint_token(
        configured(**changes),
        "u1",
        org="o1",
        scope="ops",
        ttl_seconds=5,
        account="a1",
        sessions=["s1"],
        kinds=["chat"],
        counterparts=["bob", "eve"],
        now_ms=NOW_MS,
    )
    assert await authenticator(**changes).authenticate(bearer) == Principal(
        kind="user",
        user_id="u1",
        org_id="o1",
        account_id="a1",
        tenant="org:o1",
        scopes=frozenset({"ops"}),
        sessions=frozenset({"s1"}),
        kinds=frozenset({"chat"}),
        counterparts=frozenset({"bob", "eve"}),
        expires_at=NOW_MS + 5000,
    )


async def test_by_default_the_clocks_are_the_machines() -> None:
    checker = Authenticator(configured())
    assert (await checker.authenticate(mint_token(configured(), "u1"))).account_id == "u1"


@pytest.mark.parametrize(
    "arguments",
    [
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "u", "org": "/"},
        {"sub": "u", "account": ""},
        {"sub": "u", "sessions": ["a b"]},
        {"sub": "u", "kinds": ["a b"]},
        {"sub": "u", "counterparts": ["x"] * 65},
        {"sub": "u", "ttl_seconds": 0},
    ],
)
def test_only_good_tokens_are_minted(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        mint_token(configured(), **arguments)


def test_without_secret_nothing_is_minted() -> None:
    with pytest.raises(ConfigurationError):
        mint_token(configured(jwt_secret=None), "u1")
