"""Tokens good and bad, the issuer's keys, and what a principal may do."""

import base64
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pydantic import SecretStr

from protocol import limits
from protocol.wire.errors import ErrorCode, PeerError, ProtocolError, ServiceError
from server.access.credentials import (
    Authenticator,
    ExpiredTokenError,
    Principal,
    mint_token,
    tenant_of,
)
from server.access.issuer_keys import IssuerKeys
from server.runtime.settings import ConfigurationError, Settings

SECRET = "a secret that is long enough for HS256"
KEY = "an-api-key-of-a-backend"
NOW_MS = 1_793_000_000_000
NOW = NOW_MS // 1000

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def configured(**changes: Any) -> Settings:
    values: dict[str, Any] = {"jwt_secret": SecretStr(SECRET), "api_keys": (SecretStr(KEY),)}
    return Settings(**(values | changes))


def authenticator(keys: IssuerKeys | None = None, **changes: Any) -> Authenticator:
    return Authenticator(configured(**changes), keys=keys, now_ms=lambda: NOW_MS)


def token(**claims: Any) -> str:
    """A token signed with the shared secret; a claim that is None is left out."""
    values = {"sub": "u1", "exp": NOW + 60, **claims}
    return jwt.encode(
        {name: value for name, value in values.items() if value is not None}, SECRET, "HS256"
    )


def encoded(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed_by_hand(header: object, claims: object, secret: bytes) -> str:
    body = f"{encoded(header)}.{encoded(claims)}"
    return f"{body}.{encoded(hmac.digest(secret, body.encode(), hashlib.sha256))}"


async def refused(
    bearer: str,
    checker: Authenticator | None = None,
    claim: str | None = None,
    network: str = "",
) -> None:
    """One sentence for all, unless the signature is good and a ``claim`` is not."""
    with pytest.raises(PeerError) as caught:
        await (checker or authenticator()).authenticate(bearer, None, network)
    assert caught.value.code == ErrorCode.UNAUTHENTICATED
    if claim is None:
        assert caught.value.message == "the token is not valid"
    else:
        assert caught.value.message.startswith(f"the token is not valid: its claim `{claim}` ")
    assert caught.value.__cause__ is None


# --- Good tokens


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
    ahead, behind = limits.JWT_LEEWAY_MS // 1000, limits.JWT_EXPIRY_LEEWAY_MS // 1000
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


async def test_an_api_key() -> None:
    two = authenticator(api_keys=(SecretStr("another"), SecretStr(KEY)))
    assert await two.authenticate(KEY) == Principal(kind="key")
    assert await two.authenticate("another") == Principal(kind="key")
    await refused(KEY[:-1], two)
    await refused(KEY + "x", two)
    await refused(KEY, authenticator(api_keys=()))


async def test_issuer_and_audience_are_checked_when_set() -> None:
    both = authenticator(jwt_issuer="i", jwt_audience="a")
    assert (await both.authenticate(token(iss="i", aud=["x", "a"]))).user_id == "u1"
    for claims, wrong in (
        ({}, "iss"),
        ({"iss": "i"}, "aud"),
        ({"aud": "a"}, "iss"),
        ({"iss": "j", "aud": "a"}, "iss"),
        ({"iss": "i", "aud": "b"}, "aud"),
        ({"iss": "i", "aud": []}, "aud"),
        ({"iss": "i", "aud": ["ab", "A"]}, "aud"),
    ):
        await refused(token(**claims), both, wrong)
    # Not set, an issuer is not looked at.
    assert (await authenticator().authenticate(token(iss="x"))).user_id == "u1"


@pytest.mark.parametrize("audience", ["other", ["other"], "", [], ["a", "b"], 5])
async def test_a_token_for_another_application_is_refused(audience: Any) -> None:
    """Without an audience of ours a token that names one is not ours."""
    issuer = Issuer()
    with_keys = authenticator(issuer.keys)
    claims = {"sub": "u1", "exp": NOW + 60, "aud": audience, "scope": "ops"}
    bearer = jwt.encode(claims, RSA, "RS256", headers={"kid": "rsa"})
    await refused(bearer, with_keys, "aud")
    await refused(token(aud=audience), claim="aud")


# --- Bad tokens


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


@pytest.mark.parametrize(
    "bearer",
    [
        "",
        "x",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "ä.ö.ü",
        "\ud800",
        "Bearer x",
        "x" * (limits.TOKEN_CHARACTERS_MAX + 1),
        encoded(b"[" * 4000) + ".e30.e30",
        encoded([]) + ".e30.e30",
        encoded({"alg": "HS256"}) + ".e30.e30",
        encoded({"alg": ["HS256"]}) + ".e30.e30",
        encoded({"alg": "HS256", "kid": 5}) + ".e30.e30",
        encoded({"alg": "HS256", "crit": ["x"]}) + ".e30.e30",
        encoded({}) + ".e30.e30",
        encoded({"alg": "none"}) + "." + encoded({"sub": "u1", "exp": NOW + 60}) + ".",
        encoded({"alg": "none"}) + "." + encoded({"sub": "u1", "exp": NOW + 60}) + ".AA",
        encoded({"alg": "None"}) + "." + encoded({"sub": "u1", "exp": NOW + 60}) + ".AA",
    ],
)
async def test_what_is_no_token(bearer: str) -> None:
    await refused(bearer)


async def test_claims_that_are_no_object_or_too_deep() -> None:
    malformed: list[object] = [[], b"[" * 3000, b"{", b"\xff"]
    for claims in malformed:
        await refused(signed_by_hand({"alg": "HS256"}, claims, SECRET.encode()))


async def test_a_signature_that_is_not_ours() -> None:
    good = token()
    await refused(good[:-4] + ("AAAA" if not good.endswith("AAAA") else "BBBB"))
    header, _, signature = good.split(".")
    await refused(f"{header}.{encoded({'sub': 'admin', 'exp': NOW + 60})}.{signature}")
    await refused(signed_by_hand({"alg": "HS256"}, {"sub": "u1", "exp": NOW + 60}, b"guess"))


async def test_an_expired_token_with_a_bad_signature_is_just_bad() -> None:
    await refused(signed_by_hand({"alg": "HS256"}, {"sub": "u1", "exp": NOW - 600}, b"guess"))


async def test_other_algorithms_of_the_same_family_are_refused() -> None:
    long = SECRET * 4
    for algorithm in ("HS384", "HS512"):
        bearer = jwt.encode({"sub": "u1", "exp": NOW + 60}, long, algorithm)
        await refused(bearer, authenticator(jwt_secret=SecretStr(long)))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: encoded(data) + ".e30.e30"))
async def test_nothing_else_is_ever_raised(bearer: str) -> None:
    with pytest.raises(ProtocolError):
        await authenticator().authenticate(bearer)


# --- The issuer's keys


def public_jwks() -> list[dict[str, Any]]:
    return [
        RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True) | {"kid": "rsa", "use": "sig"},
        ECAlgorithm.to_jwk(EC.public_key(), as_dict=True) | {"kid": "ec"},
        OKPAlgorithm.to_jwk(ED.public_key(), as_dict=True) | {"kid": "ed"},
    ]


class EnoughError(Exception):
    """Ends a loop that has no end of its own."""


class Issuer:
    """An issuer whose keys can change, and who can be away."""

    def __init__(self) -> None:
        self.jwks = public_jwks()
        self.calls = 0
        self.error: Exception | None = None
        self.now_ms = 0
        self.waits: list[float] = []
        self.keys = IssuerKeys(
            "https://issuer.example/keys",
            fetch=self.fetch,
            now_ms=lambda: self.now_ms,
            wait=self.wait,
        )

    def fetch(self) -> list[jwt.PyJWK]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return jwt.PyJWKSet(self.jwks).keys

    async def wait(self, seconds: float) -> None:
        if len(self.waits) == 3:
            raise EnoughError
        self.waits.append(seconds)
        if len(self.waits) == 2:
            self.error = None

    @property
    def authenticator(self) -> Authenticator:
        return authenticator(self.keys, jwt_secret=None)


def issued(key: Any, algorithm: str, kid: str | None) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode({"sub": "u1", "exp": NOW + 60}, key, algorithm, headers=headers)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(RSA, "RS256", "rsa"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed")]
)
async def test_tokens_of_the_issuer(key: Any, algorithm: str, kid: str) -> None:
    issuer = Issuer()
    checker = issuer.authenticator
    await checker.prepare()
    assert (await checker.authenticate(issued(key, algorithm, kid))).user_id == "u1"
    # Without `kid` the only key of the algorithm is meant.
    assert (await checker.authenticate(issued(key, algorithm, None))).user_id == "u1"
    assert issuer.calls == 1
    # The key of another algorithm is not tried.
    wrong = "rsa" if kid != "rsa" else "ec"
    await refused(issued(key, algorithm, wrong), checker)


async def test_without_prepare_the_first_token_fetches() -> None:
    issuer = Issuer()
    assert (await issuer.authenticator.authenticate(issued(RSA, "RS256", "rsa"))).user_id == "u1"
    assert issuer.calls == 1


async def test_a_public_key_is_no_shared_secret() -> None:
    """The confusion of algorithms: HS256 with what everybody may know."""
    issuer = Issuer()
    checker = authenticator(issuer.keys)
    await checker.prepare()
    claims = {"sub": "u1", "exp": NOW + 60}
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, json.dumps(issuer.jwks[0]).encode(), b""):
        for header in ({"alg": "HS256"}, {"alg": "HS256", "kid": "rsa"}, {"alg": "RS256"}):
            await refused(signed_by_hand(header, claims, secret), checker)


async def test_a_shared_secret_in_the_key_set_is_not_used() -> None:
    issuer = Issuer()
    secret = b"known to the whole world, as it is public"
    issuer.jwks.append({"kty": "oct", "k": encoded(secret), "kid": "oct"})
    issuer.jwks.append(public_jwks()[0] | {"kid": "enc", "use": "enc"})
    checker = issuer.authenticator
    await checker.prepare()
    claims = {"sub": "u1", "exp": NOW + 60}
    await refused(signed_by_hand({"alg": "HS256", "kid": "oct"}, claims, secret), checker)
    await refused(issued(RSA, "RS256", "enc"), checker)


async def test_the_secret_does_not_open_the_issuers_door_and_the_other_way_round() -> None:
    await refused(token(), Issuer().authenticator)
    await refused(issued(RSA, "RS256", "rsa"), authenticator())


async def test_algorithms_of_the_key_alone_do_not_widen_ours() -> None:
    issuer = Issuer()
    issuer.jwks = [public_jwks()[0] | {"alg": "RS512"}]
    checker = issuer.authenticator
    await checker.prepare()
    await refused(issued(RSA, "RS512", "rsa"), checker)
    await refused(issued(RSA, "RS256", "rsa"), checker)


async def test_unknown_keys_ask_the_issuer_a_bounded_number_of_times() -> None:
    issuer = Issuer()
    checker = issuer.authenticator
    await checker.prepare()
    for number in range(limits.JWKS_MISSES_MAX):
        await refused(issued(RSA, "RS256", f"unknown-{number}"), checker)
    # Until the issuer may be asked again, a key that is not known may merely be new.
    for number in range(20):
        with pytest.raises(ServiceError):
            await checker.authenticate(issued(RSA, "RS256", f"unknown-{number}"))
    assert issuer.calls == 1 + limits.JWKS_MISSES_MAX
    issuer.jwks = [public_jwks()[0] | {"kid": "rotated"}]
    issuer.now_ms += limits.JWKS_MISS_MS
    assert (await checker.authenticate(issued(RSA, "RS256", "rotated"))).user_id == "u1"
    with pytest.raises(ServiceError):
        await checker.authenticate(issued(RSA, "RS256", "rsa"))
    issuer.now_ms += limits.JWKS_MISS_MS
    await refused(issued(RSA, "RS256", "rsa"), checker)
    assert issuer.calls == 3 + limits.JWKS_MISSES_MAX


async def test_unknown_keys_from_one_network_use_up_no_others_fetches() -> None:
    issuer = Issuer()
    checker = issuer.authenticator
    await checker.prepare()
    for number in range(50):
        with pytest.raises((PeerError, ServiceError)):
            await checker.authenticate(issued(RSA, "RS256", f"made-up-{number}"), None, "a")
    assert issuer.calls == 1 + limits.JWKS_MISSES_PER_ADDRESS_MAX
    # A key that is known waits for no fetch, there neither.
    good = await checker.authenticate(issued(RSA, "RS256", "rsa"), None, "a")
    assert (good.user_id, issuer.calls) == ("u1", 1 + limits.JWKS_MISSES_PER_ADDRESS_MAX)
    issuer.jwks = [public_jwks()[0] | {"kid": "rotated"}]
    assert (await checker.authenticate(issued(RSA, "RS256", "rotated"), None, "b")).user_id == "u1"
    # And once anybody has asked for it, it is known to all.
    assert (await checker.authenticate(issued(RSA, "RS256", "rotated"), None, "a")).user_id == "u1"


async def test_networks_that_name_unknown_keys_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "AUTH_FAILURE_ADDRESSES_MAX", 3)
    issuer = Issuer()
    checker = issuer.authenticator
    await checker.prepare()
    for number in range(10):
        await refused(issued(RSA, "RS256", "made-up"), checker, network=f"network {number}")
    assert len(issuer.keys._misses_of) == 3


async def test_a_key_that_was_published_a_moment_ago_is_good() -> None:
    issuer = Issuer()
    checker = issuer.authenticator
    await checker.prepare()
    issuer.jwks = [public_jwks()[0] | {"kid": "rotated"}]
    assert (await checker.authenticate(issued(RSA, "RS256", "rotated"))).user_id == "u1"


async def test_what_no_key_set_makes_good_asks_nobody() -> None:
    issuer = Issuer()
    issuer.jwks.append(public_jwks()[0] | {"kid": "rsa-2"})
    checker = issuer.authenticator
    await checker.prepare()
    await refused(issued(RSA, "RS256", "ec"), checker)
    await refused(issued(RSA, "RS256", None), checker)
    assert issuer.calls == 1


@pytest.mark.parametrize(
    "error", [jwt.PyJWKClientConnectionError("away"), OSError("cut"), ValueError("no JSON")]
)
async def test_an_issuer_that_is_away_is_our_fault(error: Exception) -> None:
    issuer = Issuer()
    issuer.error = error
    checker = issuer.authenticator
    await checker.prepare()
    with pytest.raises(ServiceError) as caught:
        await checker.authenticate(issued(RSA, "RS256", "rsa"))
    assert caught.value.retryable
    assert issuer.calls == 2
    issuer.error = None
    issuer.now_ms += limits.JWKS_MISS_MS
    assert (await checker.authenticate(issued(RSA, "RS256", "rsa"))).user_id == "u1"


async def test_known_keys_are_believed_while_the_issuer_is_away_for_a_day() -> None:
    issuer = Issuer()
    checker = issuer.authenticator
    await checker.prepare()
    issuer.error = OSError("away")
    issuer.now_ms += limits.JWKS_STALE_MS_MAX
    assert not await issuer.keys.refresh()
    assert (await checker.authenticate(issued(RSA, "RS256", "rsa"))).user_id == "u1"
    issuer.now_ms += 1
    with pytest.raises(ServiceError):
        await checker.authenticate(issued(RSA, "RS256", "rsa"))


async def test_the_keys_are_kept_fresh() -> None:
    issuer = Issuer()
    issuer.error = OSError("away")
    checker = issuer.authenticator
    await checker.prepare()
    with pytest.raises(EnoughError):
        await checker.run()
    # Away, away, back: asked soon, soon, and then once in a lifetime of keys.
    miss, lifetime = limits.JWKS_MISS_MS / 1000, limits.JWKS_LIFETIME_MS / 1000
    assert issuer.waits == [miss, miss, lifetime]
    assert issuer.calls == 4


async def test_without_issuer_there_is_nothing_to_run() -> None:
    checker = authenticator()
    await checker.prepare()
    await checker.run()
    assert (await checker.authenticate(token())).user_id == "u1"


@pytest.fixture
def key_server() -> Iterator[http.server.HTTPServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"[" if self.path == "/broken" else json.dumps({"keys": public_jwks()}).encode()
            self.send_response(200 if self.path != "/missing" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/keys", "/broken", "/missing"])
async def test_keys_over_http(key_server: http.server.HTTPServer, path: str) -> None:
    url = f"http://127.0.0.1:{key_server.server_port}{path}"
    checker = authenticator(jwks_url=url)
    await checker.prepare()
    bearer = issued(EC, "ES256", "ec")
    if path == "/keys":
        assert (await checker.authenticate(bearer)).user_id == "u1"
    else:
        with pytest.raises(ServiceError):
            await checker.authenticate(bearer)


# --- Making tokens


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


# --- What a principal may do

USER = Principal(kind="user", user_id="u1", account_id="u1", tenant="user:u1")
MEMBER = Principal(kind="user", user_id="u1", org_id="o1", account_id="a1", tenant="org:o1")
LISTED = Principal(
    kind="user", user_id="u1", account_id="u1", tenant="user:u1", sessions=frozenset({"s1"})
)
OPERATOR = Principal(
    kind="user", user_id="op", account_id="op", tenant="user:op", scopes=frozenset({"ops"})
)
BACKEND = Principal(kind="key")


def test_tenants() -> None:
    assert tenant_of(None, "u1") == "user:u1"
    assert tenant_of("o1", "u1") == "org:o1"


def test_who_may_call() -> None:
    table: list[tuple[Any, list[Principal]]] = [
        (("user",), [USER, OPERATOR]),
        (("key",), [BACKEND]),
        (("ops",), [OPERATOR]),
        (("user", "key"), [USER, OPERATOR, BACKEND]),
        (("key", "ops"), [OPERATOR, BACKEND]),
        (("user", "key", "ops"), [USER, OPERATOR, BACKEND]),
    ]
    for roles, allowed in table:
        for principal in (USER, OPERATOR, BACKEND):
            if principal in allowed:
                principal.require(*roles)
            else:
                with pytest.raises(PeerError) as caught:
                    principal.require(*roles)
                assert caught.value.code == ErrorCode.FORBIDDEN


def test_whose_tenant_a_call_is_about() -> None:
    assert USER.tenant_for(None, "someone") == "user:u1"
    assert MEMBER.tenant_for(None, "someone") == "org:o1"
    assert MEMBER.tenant_for("o1", "someone") == "org:o1"
    for principal in (BACKEND, OPERATOR):
        assert principal.tenant_for("o2", "someone") == "org:o2"
        assert principal.tenant_for(None, "someone") == "user:someone"
    for principal in (USER, MEMBER):
        with pytest.raises(PeerError, match="organisation"):
            principal.tenant_for("o2", "u1")


def test_who_may_start_what() -> None:
    assert USER.may_start("s1")
    assert LISTED.may_start("s1")
    assert not LISTED.may_start("s2")
    assert OPERATOR.may_start("s1")
    assert not BACKEND.may_start("s1")


@pytest.mark.parametrize(
    ("principal", "see", "watch"),
    [
        (USER, True, True),
        (Principal(kind="user", user_id="u2"), False, False),
        (Principal(kind="user", user_id="u2", sessions=frozenset({"s1"})), False, True),
        (Principal(kind="user", user_id="u2", sessions=frozenset({"s2"})), False, False),
        (OPERATOR, True, True),
        (BACKEND, True, False),
    ],
)
def test_what_may_be_done_with_the_session_s1_of_u1(
    principal: Principal, see: bool, watch: bool
) -> None:
    assert principal.may_see_session("u1") is see
    assert principal.may_watch("u1", "s1") is watch


def test_whose_account_may_be_seen() -> None:
    assert MEMBER.may_see_account("a1")
    assert not MEMBER.may_see_account("u1")
    assert BACKEND.may_see_account("a1")
    assert OPERATOR.may_see_account("a1")


def test_a_refresh_changes_nothing_that_sessions_hang_on() -> None:
    longer = Principal(
        kind="user",
        user_id="u1",
        account_id="u1",
        tenant="user:u1",
        scopes=frozenset({"ops"}),
        expires_at=9,
    )
    USER.check_refresh(longer)
    for other in (OPERATOR, BACKEND, MEMBER, Principal(kind="user", user_id="u1")):
        with pytest.raises(PeerError) as caught:
            USER.check_refresh(other)
        assert caught.value.code == ErrorCode.FORBIDDEN
