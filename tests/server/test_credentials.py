"""API keys and tokens: signatures, and the keys that check them."""

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
from server import limits as server_limits
from server.access.credentials import Authenticator
from server.access.issuer_keys import IssuerKeys
from server.access.principals import Principal
from server.runtime.settings import Settings

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
    """A token signed with the shared secret, without claims of value None."""
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
    """Checks that refusals share one text, except for a named ``claim``.

    A ``claim`` is named when it is bad in a well-signed token.
    """
    with pytest.raises(PeerError) as caught:
        await (checker or authenticator()).authenticate(bearer, None, network)
    assert caught.value.code == ErrorCode.UNAUTHENTICATED
    if claim is None:
        assert caught.value.message == "the token is not valid"
    else:
        assert caught.value.message.startswith(f"the token is not valid: its claim `{claim}` ")
    assert caught.value.__cause__ is None


async def test_an_api_key() -> None:
    two = authenticator(api_keys=(SecretStr("another"), SecretStr(KEY)))
    assert await two.authenticate(KEY) == Principal(kind="key", via="key")
    assert await two.authenticate("another") == Principal(kind="key", via="key")
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
    # If no issuer is configured, the claim is ignored.
    assert (await authenticator().authenticate(token(iss="x"))).user_id == "u1"


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


def public_jwks() -> list[dict[str, Any]]:
    return [
        RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True) | {"kid": "rsa", "use": "sig"},
        ECAlgorithm.to_jwk(EC.public_key(), as_dict=True) | {"kid": "ec"},
        OKPAlgorithm.to_jwk(ED.public_key(), as_dict=True) | {"kid": "ed"},
    ]


class EnoughError(Exception):
    """Ends a loop that has no end of its own."""


class ChangingIssuer:
    """An issuer whose keys can change, and which can be away."""

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
    issuer = ChangingIssuer()
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
    issuer = ChangingIssuer()
    assert (await issuer.authenticator.authenticate(issued(RSA, "RS256", "rsa"))).user_id == "u1"
    assert issuer.calls == 1


async def test_a_public_key_is_no_shared_secret() -> None:
    """Confusion of algorithms: HS256 with a key that is public."""
    issuer = ChangingIssuer()
    checker = authenticator(issuer.keys)
    await checker.prepare()
    claims = {"sub": "u1", "exp": NOW + 60}
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, json.dumps(issuer.jwks[0]).encode(), b""):
        for header in ({"alg": "HS256"}, {"alg": "HS256", "kid": "rsa"}, {"alg": "RS256"}):
            await refused(signed_by_hand(header, claims, secret), checker)


async def test_a_shared_secret_in_the_key_set_is_not_used() -> None:
    issuer = ChangingIssuer()
    secret = b"known to the whole world, as it is public"
    issuer.jwks.append({"kty": "oct", "k": encoded(secret), "kid": "oct"})
    issuer.jwks.append(public_jwks()[0] | {"kid": "enc", "use": "enc"})
    checker = issuer.authenticator
    await checker.prepare()
    claims = {"sub": "u1", "exp": NOW + 60}
    await refused(signed_by_hand({"alg": "HS256", "kid": "oct"}, claims, secret), checker)
    await refused(issued(RSA, "RS256", "enc"), checker)


async def test_the_secret_and_the_issuers_keys_are_not_interchangeable() -> None:
    await refused(token(), ChangingIssuer().authenticator)
    await refused(issued(RSA, "RS256", "rsa"), authenticator())


async def test_algorithms_of_the_key_alone_do_not_widen_ours() -> None:
    issuer = ChangingIssuer()
    issuer.jwks = [public_jwks()[0] | {"alg": "RS512"}]
    checker = issuer.authenticator
    await checker.prepare()
    await refused(issued(RSA, "RS512", "rsa"), checker)
    await refused(issued(RSA, "RS256", "rsa"), checker)


async def test_unknown_keys_ask_the_issuer_a_bounded_number_of_times() -> None:
    issuer = ChangingIssuer()
    checker = issuer.authenticator
    await checker.prepare()
    for number in range(server_limits.JWKS_MISSES_MAX):
        await refused(issued(RSA, "RS256", f"unknown-{number}"), checker)
    # Until the next fetch is allowed, an unknown key may merely be new.
    for number in range(20):
        with pytest.raises(ServiceError):
            await checker.authenticate(issued(RSA, "RS256", f"unknown-{number}"))
    assert issuer.calls == 1 + server_limits.JWKS_MISSES_MAX
    issuer.jwks = [public_jwks()[0] | {"kid": "rotated"}]
    issuer.now_ms += server_limits.JWKS_MISS_MS
    assert (await checker.authenticate(issued(RSA, "RS256", "rotated"))).user_id == "u1"
    with pytest.raises(ServiceError):
        await checker.authenticate(issued(RSA, "RS256", "rsa"))
    issuer.now_ms += server_limits.JWKS_MISS_MS
    await refused(issued(RSA, "RS256", "rsa"), checker)
    assert issuer.calls == 3 + server_limits.JWKS_MISSES_MAX


async def test_unknown_keys_from_one_network_use_up_no_others_fetches() -> None:
    issuer = ChangingIssuer()
    checker = issuer.authenticator
    await checker.prepare()
    for number in range(50):
        with pytest.raises((PeerError, ServiceError)):
            await checker.authenticate(issued(RSA, "RS256", f"made-up-{number}"), None, "a")
    assert issuer.calls == 1 + server_limits.JWKS_MISSES_PER_ADDRESS_MAX
    # A key that is known waits for no fetch, there neither.
    good = await checker.authenticate(issued(RSA, "RS256", "rsa"), None, "a")
    assert (good.user_id, issuer.calls) == ("u1", 1 + server_limits.JWKS_MISSES_PER_ADDRESS_MAX)
    issuer.jwks = [public_jwks()[0] | {"kid": "rotated"}]
    assert (await checker.authenticate(issued(RSA, "RS256", "rotated"), None, "b")).user_id == "u1"
    # Once one client has asked for the key, it is known to all.
    assert (await checker.authenticate(issued(RSA, "RS256", "rotated"), None, "a")).user_id == "u1"


async def test_networks_that_name_unknown_keys_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_limits, "AUTH_FAILURE_ADDRESSES_MAX", 3)
    issuer = ChangingIssuer()
    checker = issuer.authenticator
    await checker.prepare()
    for number in range(10):
        await refused(issued(RSA, "RS256", "made-up"), checker, network=f"network {number}")
    assert len(issuer.keys._misses_of) == 3


async def test_a_key_that_was_published_a_moment_ago_is_good() -> None:
    issuer = ChangingIssuer()
    checker = issuer.authenticator
    await checker.prepare()
    issuer.jwks = [public_jwks()[0] | {"kid": "rotated"}]
    assert (await checker.authenticate(issued(RSA, "RS256", "rotated"))).user_id == "u1"


async def test_what_no_key_set_makes_good_asks_nobody() -> None:
    issuer = ChangingIssuer()
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
    issuer = ChangingIssuer()
    issuer.error = error
    checker = issuer.authenticator
    await checker.prepare()
    with pytest.raises(ServiceError) as caught:
        await checker.authenticate(issued(RSA, "RS256", "rsa"))
    assert caught.value.retryable
    assert issuer.calls == 2
    issuer.error = None
    issuer.now_ms += server_limits.JWKS_MISS_MS
    assert (await checker.authenticate(issued(RSA, "RS256", "rsa"))).user_id == "u1"


async def test_known_keys_are_trusted_during_a_days_outage() -> None:
    issuer = ChangingIssuer()
    checker = issuer.authenticator
    await checker.prepare()
    issuer.error = OSError("away")
    issuer.now_ms += server_limits.JWKS_STALE_MS_MAX
    assert not await issuer.keys.refresh()
    assert (await checker.authenticate(issued(RSA, "RS256", "rsa"))).user_id == "u1"
    issuer.now_ms += 1
    with pytest.raises(ServiceError):
        await checker.authenticate(issued(RSA, "RS256", "rsa"))


async def test_the_keys_are_kept_fresh() -> None:
    issuer = ChangingIssuer()
    issuer.error = OSError("away")
    checker = issuer.authenticator
    await checker.prepare()
    with pytest.raises(EnoughError):
        await checker.run()
    # Away, away, back: asked soon, soon, and then once in a lifetime of keys.
    miss, lifetime = server_limits.JWKS_MISS_MS / 1000, server_limits.JWKS_LIFETIME_MS / 1000
    assert issuer.waits == [miss, miss, lifetime]
    assert issuer.calls == 4


async def test_without_issuer_there_is_nothing_to_run() -> None:
    checker = authenticator()
    await checker.prepare()
    await checker.run()
    assert (await checker.authenticate(token())).user_id == "u1"


@pytest.fixture
def key_server() -> Iterator[http.server.HTTPServer]:
    class KeySetHandler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"[" if self.path == "/broken" else json.dumps({"keys": public_jwks()}).encode()
            self.send_response(200 if self.path != "/missing" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), KeySetHandler) as server:
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
