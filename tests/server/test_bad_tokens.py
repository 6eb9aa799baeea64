"""Refused tokens: bad, expired, too late, or sent twice."""

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from protocol.metering.terms import MINUTE_MS
from server import limits as server_limits
from tests.fixtures.server import API_KEY, BOTH_CARRIERS, SECRET, StartServer
from tests.server.api import ask
from tests.server.billed_session import BilledSession, begin_scene, closed
from tests.server.test_bad_guesses import StoppedClock


@pytest.fixture
async def scene(start_server: StartServer, tmp_path: Path) -> AsyncIterator[BilledSession]:
    """A session with a bill, which no stranger may change."""
    made = await begin_scene(start_server, tmp_path)
    yield made
    await made.unharmed()


def claims(**changes: Any) -> dict[str, Any]:
    made = {"sub": "ann", "exp": int(time.time()) + 600} | changes
    return {name: value for name, value in made.items() if value is not ...}


def sign(key: str = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm)


def forge(header: dict[str, Any], **changes: Any) -> str:
    """A token with any header, with the signature of a good token."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (header, claims(**changes))
    ]
    return ".".join([*parts, sign().split(".")[2]])


BAD_TOKENS: dict[str, Callable[[], str]] = {
    "no token at all": lambda: "hello",
    "an API key": lambda: API_KEY,
    "another secret": lambda: sign("another-secret-of-at-least-32-bytes"),
    "an empty secret": lambda: sign(" "),
    "another algorithm": lambda: sign(algorithm="HS512"),
    "alg none": lambda: jwt.encode(claims(), "", algorithm="none"),
    "alg none with a signature": lambda: forge({"alg": "none", "typ": "JWT"}),
    "alg in other letters": lambda: forge({"alg": "nOnE"}),
    "alg of public keys": lambda: forge({"alg": "RS256"}),
    "no alg": lambda: forge({"typ": "JWT"}),
    "other claims than were signed": lambda: forge({"alg": "HS256", "typ": "JWT"}, sub="eve"),
    "no sub": lambda: sign(sub=...),
    "sub with a slash": lambda: sign(sub="a/b"),
    "no exp": lambda: sign(exp=...),
    "exp as text": lambda: sign(exp="soon"),
    "not valid yet": lambda: sign(nbf=int(time.time()) + 600),
    "org with a space": lambda: sign(org="a b"),
    "account as a number": lambda: sign(account=5),
    "scope as a number": lambda: sign(scope=5),
    "sessions as null": lambda: sign(sessions=None),
    "for another application": lambda: sign(aud="another", scope="ops"),
    "sessions as text": lambda: sign(sessions="chat-1"),
}


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_a_bad_token_closes_4500(scene: BilledSession) -> None:
    for name, make in BAD_TOKENS.items():
        client = await scene.server.connect()
        number = await client.send("auth", token=make())
        answer = await client.receive()
        assert (name, answer["type"], answer.get("id")) == (name, "error", number)
        assert answer["code"] == ("forbidden" if name == "an API key" else "unauthenticated")
        assert (name, await closed(client)) == (name, (4500, []))
    # The handshake refuses it in the same way.
    bearer = {"Authorization": "Bearer hello"}
    client = await scene.server.connect(additional_headers=bearer)
    assert await closed(client) == (4500, ["error"])


async def test_bad_guesses_lock_nobody_out(
    scene: BilledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = scene.server.process
    # The whole test lies in one minute, however slow the machine is.
    process.bad_guesses._clock = StoppedClock(MINUTE_MS)
    monkeypatch.setattr(server_limits, "AUTH_FAILURES_PER_ADDRESS_PER_MINUTE", 3)
    waiting = await scene.server.connect()
    # Expired tokens are not guesses, in any number.
    for _ in range(4):
        client = await scene.server.connect()
        await client.send("auth", token=sign(exp=int(time.time()) - 600))
        assert await closed(client) == (4002, [])
    for _ in range(3):
        client = await scene.server.connect()
        await client.send("auth", token=sign("another-secret-of-at-least-32-bytes"))
        assert (await client.receive())["code"] == "unauthenticated"
        assert await closed(client) == (4500, [])
    # Further guesses are too many, in a socket, in a handshake and over HTTP.
    client = await scene.server.connect()
    await client.send("auth", token=sign("another-secret-of-at-least-32-bytes"))
    assert (await client.receive())["code"] == "rate_limited"
    assert await closed(client) == (4500, [])
    client = await scene.server.connect(additional_headers={"Authorization": "Bearer guess"})
    assert await closed(client) == (4500, ["error"])
    assert (await ask(scene.server, "GET", "/v1/accounts/ann", "guess")).status_code == 429
    # Good tokens and keys pass everywhere, and so do handshakes.
    token = scene.server.token()
    assert (await waiting.ask("auth", token=token))["type"] == "welcome"
    assert (await scene.client.ask("refresh", token=token))["type"] == "welcome"
    bearer = {"Authorization": f"Bearer {token}"}
    client = await scene.server.connect(additional_headers=bearer)
    assert (await client.receive())["type"] == "welcome"
    for good in (token, API_KEY):
        assert (await ask(scene.server, "GET", "/v1/accounts/ann", good)).status_code == 200
    expired = sign(exp=int(time.time()) - 600)
    assert (await ask(scene.server, "GET", "/v1/accounts/ann", expired)).status_code == 401
    await scene.unharmed()


async def test_an_expired_token_closes_4002(scene: BilledSession) -> None:
    client = await scene.server.connect()
    await client.send("auth", token=sign(exp=int(time.time()) - 60))
    assert await closed(client) == (4002, [])


async def test_a_socket_ends_with_its_token(scene: BilledSession) -> None:
    # Within the leeway of the issuer's clock the token is accepted, and expires at once.
    client = await scene.server.connect()
    await client.send("auth", token=sign(exp=int(time.time()) - 1))
    assert await closed(client) == (4002, ["welcome"])


async def test_no_authentication_in_time_closes_4501(
    scene: BilledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "AUTH_TIMEOUT_MS", 1)
    client = await scene.server.connect()
    assert await closed(client) == (4501, [])


async def test_the_first_message_is_auth(scene: BilledSession) -> None:
    client = await scene.server.connect()
    requests = {
        "start": {"kind": "talk", "session_id": "bill-1"},
        "resume": {"session_id": "bill-1"},
        "stop": {"session_id": "bill-1"},
        "watch": {"session_id": "bill-1"},
        "refresh": {"token": scene.server.token()},
        "ping": {},
    }
    for type_, fields in requests.items():
        answer = await client.ask(type_, **fields)
        assert (type_, answer["code"]) == (type_, "unauthenticated")
    welcome = await client.ask("auth", token=scene.server.token())
    assert welcome["type"] == "welcome"
    again = await client.ask("auth", token=scene.server.token("eve"))
    assert again["code"] == "bad_message"
    await scene.unharmed(client)


@BOTH_CARRIERS
async def test_a_refresh_is_for_the_same_user(scene: BilledSession) -> None:
    for changes in ({"sub": "eve"}, {"org": "acme"}, {"account": "team"}):
        answer = await scene.client.ask("refresh", token=sign(**changes))
        assert (answer["type"], answer["code"]) == ("error", "forbidden")


@BOTH_CARRIERS
async def test_a_refresh_with_a_bad_token_closes(scene: BilledSession) -> None:
    client = await scene.server.login()
    number = await client.send("refresh", token=sign("another-secret-of-at-least-32-bytes"))
    answer = await client.until("error")
    assert (answer["code"], answer["id"]) == ("unauthenticated", number)
    assert await closed(client) == (4500, [])
    client = await scene.server.login()
    await client.send("refresh", token=sign(exp=int(time.time()) - 60))
    assert await closed(client) == (4002, [])
