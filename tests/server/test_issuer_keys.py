"""Tokens wait for an issuer's new keys.

Known keys stay good while the issuer is away.
"""

import asyncio
import json
import threading
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.access.issuer_keys import IssuerKeys
from server.access.key_set import parse_key_set
from tests.server.test_credentials import EC, RSA, authenticator, issued, public_jwks, refused


class HeldFetch:
    """A fetch that ends when the test says so."""

    def __init__(self, *answers: list[dict[str, Any]] | Exception) -> None:
        self.answers = list(answers)
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.calls = 0

    def __call__(self) -> list[jwt.PyJWK]:
        self.calls += 1
        self.begun.release()
        assert self.go.acquire(timeout=30)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return parse_key_set(json.dumps({"keys": answer}).encode())


def renamed(kid: str) -> list[dict[str, Any]]:
    return [public_jwks()[0] | {"kid": kid}]


async def begun(fetch: HeldFetch) -> None:
    assert await asyncio.to_thread(fetch.begun.acquire, timeout=30)


async def test_a_new_key_waits_for_the_fetch_under_way() -> None:
    fetch = HeldFetch(renamed("old"), renamed("new"))
    keys = IssuerKeys("https://issuer.example/keys", fetch=fetch, now_ms=lambda: 0)
    checker = authenticator(keys, jwt_secret=None)
    fetch.go.release()
    await checker.prepare()
    await begun(fetch)
    refresh = asyncio.create_task(keys.refresh())
    await begun(fetch)
    # While the keys are fetched anew, known keys are good and new ones wait.
    assert (await checker.authenticate(issued(RSA, "RS256", "old"))).user_id == "u1"
    tokens = [issued(RSA, "RS256", "new") for _ in range(5)]
    waiting = [asyncio.create_task(checker.authenticate(one)) for one in tokens]
    waiting[0].cancel()
    fetch.go.release()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(one, "user_id", None) for one in found[1:]] == ["u1"] * 4
    assert await refresh
    assert fetch.calls == 2


async def test_a_fetch_under_way_refuses_no_newer_key() -> None:
    fetch = HeldFetch(renamed("old"), renamed("new"))
    keys = IssuerKeys("https://issuer.example/keys", fetch=fetch, now_ms=lambda: 0)
    checker = authenticator(keys, jwt_secret=None)
    prepare = asyncio.create_task(checker.prepare())
    await begun(fetch)
    waiting = [
        asyncio.create_task(checker.authenticate(issued(RSA, "RS256", "new"))) for _ in range(5)
    ]
    fetch.go.release()
    await prepare
    await begun(fetch)  # one of them has asked again, and all wait for that
    fetch.go.release()
    assert [one.user_id for one in await asyncio.gather(*waiting)] == ["u1"] * 5
    assert fetch.calls == 2


async def test_without_an_issuer_new_keys_are_unavailable_and_known_ones_good() -> None:
    fetch = HeldFetch(renamed("old"), *[OSError("away")] * 3)
    fetch.go.release(4)
    keys = IssuerKeys("https://issuer.example/keys", fetch=fetch, now_ms=lambda: 0)
    checker = authenticator(keys, jwt_secret=None)
    await checker.prepare()
    for _ in range(3):
        with pytest.raises(ServiceError) as caught:
            await checker.authenticate(issued(RSA, "RS256", "new"))
        assert caught.value.retryable
    assert (await checker.authenticate(issued(RSA, "RS256", "old"))).user_id == "u1"
    assert fetch.calls == 4


async def test_keys_with_one_id_are_all_tried() -> None:
    others = [
        json.loads(
            jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key())
        )
        | {"kid": "ec"}
        for _ in range(server_limits.JWKS_SAME_ID_MAX)
    ]
    good = public_jwks()[1] | {"kid": "ec"}
    for jwks, is_good in (
        ([*others[:-1], good], True),
        ([good, *others], True),
        (others, False),
        ([*others, good], False),  # beyond the bound
    ):
        fetch = HeldFetch(jwks, jwks)
        fetch.go.release(2)
        keys = IssuerKeys("https://issuer.example/keys", fetch=fetch, now_ms=lambda: 0)
        checker = authenticator(keys, jwt_secret=None)
        await checker.prepare()
        if is_good:
            assert (await checker.authenticate(issued(EC, "ES256", "ec"))).user_id == "u1"
        else:
            await refused(issued(EC, "ES256", "ec"), checker)
