"""The claims of a token, and which of them are refused."""

from typing import Any

import jwt
import pytest

from protocol.wire.errors import ErrorCode
from server import limits as server_limits
from server.access.claims import ExpiredTokenError
from server.access.principals import Principal
from server.access.tokens import mint_token
from tests.server.test_credentials import (
    NOW,
    NOW_MS,
    RSA,
    SECRET,
    ChangingIssuer,
    authenticator,
    configured,
    refused,
    signed_by_hand,
    token,
)


async def test_a_token_with_what_is_required() -> None:
    assert await authenticator().authenticate(token()) == Principal(
        kind="user",
        user_id="u1",
        account_id="u1",
        tenant="user:u1",
        expires_at=(NOW + 60) * 1000,
    )


async def test_a_token_with_everything() -> None:
    bearer = token(
        org="o1", account="shared", scope="ops  read", sessions=["s1", "s2"], nbf=NOW, iat=NOW
    )
    assert await authenticator().authenticate(bearer) == Principal(
        kind="user",
        user_id="u1",
        org_id="o1",
        account_id="shared",
        tenant="org:o1",
        scopes=frozenset({"ops", "read"}),
        sessions=frozenset({"s1", "s2"}),
        expires_at=(NOW + 60) * 1000,
    )


async def test_no_sessions_is_not_any_session() -> None:
    principal = await authenticator().authenticate(token(sessions=[]))
    assert principal.sessions == frozenset()
    assert not principal.may_start("s1")


async def test_a_time_may_have_decimals() -> None:
    principal = await authenticator().authenticate(token(exp=NOW + 0.5))
    assert principal.expires_at == NOW_MS + 500


async def test_the_issuers_clock_may_be_a_little_off() -> None:
    checker = authenticator()
    ahead, behind = server_limits.JWT_LEEWAY_MS // 1000, server_limits.JWT_EXPIRY_LEEWAY_MS // 1000
    assert ahead == 60
    assert (await checker.authenticate(token(exp=NOW - behind + 1))).user_id == "u1"
    assert (await checker.authenticate(token(exp=NOW + 600, nbf=NOW + ahead))).user_id == "u1"
    assert (await checker.authenticate(token(iat=NOW + 3600))).user_id == "u1"
    with pytest.raises(ExpiredTokenError) as caught:
        await checker.authenticate(token(exp=NOW - behind))
    assert caught.value.code == ErrorCode.UNAUTHENTICATED
    await refused(token(exp=NOW + 600, nbf=NOW + ahead + 1), claim="nbf")


@pytest.mark.parametrize(
    ("claims", "found"),
    [
        ({"scope": ["ops", "org:read"]}, {"scopes": {"ops", "org:read"}}),
        ({"scope": ["ops org:read"]}, {"scopes": {"ops", "org:read"}}),
        ({"scope": []}, {"scopes": set()}),
        ({"scope": ""}, {"scopes": set()}),
        ({"scope": None}, {"scopes": set()}),
        ({"sub": "auth0|5f7c", "nbf": None}, {"user_id": "auth0|5f7c", "account_id": "auth0|5f7c"}),
        ({"sub": "ann+x@example.com"}, {"user_id": "ann+x@example.com"}),
        ({"sub": "a=b~c", "org": "o|1", "account": "a+"}, {"org_id": "o|1", "account_id": "a+"}),
        ({"org": None, "account": None, "aud": None}, {"org_id": None, "account_id": "u1"}),
        ({"nbf": NOW - 0.5, "iat": None, "jti": 5}, {"user_id": "u1"}),
        ({"exp": NOW + 0.0}, {"user_id": "u1"}),
    ],
)
async def test_claims_as_issuers_write_them(claims: dict[str, Any], found: dict[str, Any]) -> None:
    values = {"sub": "u1", "exp": NOW + 60} | claims
    header = {"alg": "HS256", "typ": "JWT"}
    bearer = signed_by_hand(header, values, SECRET.encode())
    principal = await authenticator().authenticate(bearer)
    for name, value in found.items():
        assert getattr(principal, name) == value


async def test_another_claim_may_name_the_user() -> None:
    checker = authenticator(jwt_user_claim="email")
    principal = await checker.authenticate(token(sub=5, email="ann+x@example.com"))
    assert (principal.user_id, principal.account_id) == ("ann+x@example.com", "ann+x@example.com")
    await refused(token(), checker, "email")
    await refused(token(email=None), checker, "email")
    await refused(token(email=["ann"]), checker, "email")
    minted = mint_token(configured(jwt_user_claim="email"), "ann", now_ms=NOW_MS)
    assert (await checker.authenticate(minted)).user_id == "ann"


@pytest.mark.parametrize("audience", ["other", ["other"], "", [], ["a", "b"], 5])
async def test_a_token_for_another_application_is_refused(audience: Any) -> None:
    """Without a configured audience, a token that names an audience is refused."""
    issuer = ChangingIssuer()
    with_keys = authenticator(issuer.keys)
    claims = {"sub": "u1", "exp": NOW + 60, "aud": audience, "scope": "ops"}
    bearer = jwt.encode(claims, RSA, "RS256", headers={"kid": "rsa"})
    await refused(bearer, with_keys, "aud")
    await refused(token(aud=audience), claim="aud")


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": None},
        {"exp": None},
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "a/b"},
        {"sub": "a\n"},
        {"sub": "a" * 129},
        {"org": ""},
        {"org": 5},
        {"org": "a/b"},
        {"account": "ä"},
        {"account": ["a"]},
        {"scope": ["ops", 5]},
        {"scope": {"ops": 1}},
        {"sub": "a{b}"},
        {"sub": "a%7Cb"},
        {"sub": 5},
        {"scope": 1},
        {"sessions": "s1"},
        {"sessions": {"s1": 1}},
        {"sessions": ["s1", "s 2"]},
        {"sessions": ["s1", 2]},
        {"sessions": [f"s{number}" for number in range(65)]},
        *(
            {name: value}
            for name in ("kinds", "counterparts")
            for value in (None, "x", {"x": 1}, ["x y"], [1], [None], True, ["x"] * 65)
        ),
        {"exp": "soon"},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"exp": 10**400},
        {"exp": -1},
        {"nbf": "x"},
        {"nbf": NOW + 61},
        {"sessions": None},
        {"aud": "x"},
    ],
)
async def test_claims_that_are_refused(claims: dict[str, Any]) -> None:
    values = {"sub": "u1", "exp": NOW + 60} | claims
    header = {"alg": "HS256", "typ": "JWT"}
    (claim,) = claims
    await refused(signed_by_hand(header, values, SECRET.encode()), claim=claim)
    if claims[claim] is None and claim not in ("sessions", "kinds", "counterparts"):
        del values[claim]
        await refused(signed_by_hand(header, values, SECRET.encode()), claim=claim)


async def test_claims_that_are_no_object_or_too_deep() -> None:
    malformed: list[object] = [[], b"[" * 3000, b"{", b"\xff"]
    for claims in malformed:
        await refused(signed_by_hand({"alg": "HS256"}, claims, SECRET.encode()))
