"""Hostile peers against the whole server: effects on sessions and on neighbours."""

import asyncio
import base64
import hashlib
import hmac
import http.server
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from websockets.frames import Frame, Opcode

from protocol import limits
from protocol.metering.states import Phase
from server import limits as server_limits
from server.transport.frames import text_frame
from server.transport.push import PushProtocol
from tests.fixtures.server import SECRET, StartServer, TestServer
from tests.server.api import advance
from tests.server.billed_session import CREDIT, closed, eventually, found, reaches
from tests.server.peers import Peer, request

RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
EC = ec.generate_private_key(ec.SECP256R1())
EVE = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
SMALL_BUFFER_BYTES = 8_192


# --- Tokens --------------------------------------------------------------------------


class HttpIssuer:
    """An issuer's keys over HTTP, with a log of the requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        keys = [
            json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"kid": "rsa", "use": "sig"},
            json.loads(ECAlgorithm.to_jwk(EC.public_key())) | {"kid": "ec", "use": "sig"},
        ]
        self.jwk = keys[0]
        asked = self.asked
        evil = json.loads(RSAAlgorithm.to_jwk(EVE.public_key())) | {"kid": "eve"}

        class HttpIssuerHandler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                body = json.dumps({"keys": keys if self.path == "/keys" else [evil]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), HttpIssuerHandler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def issuer() -> Iterator[HttpIssuer]:
    made = HttpIssuer()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def claims(**changes: Any) -> dict[str, Any]:
    return {"sub": "ann", "scope": "ops", "exp": int(time.time()) + 600} | changes


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def by_hand(header: dict[str, Any], secret: bytes | None, **changes: Any) -> str:
    """A token of any header, signed by HMAC or unsigned.

    The signature disregards the header; without a secret (None) there is none.
    """
    parts = [encoded(json.dumps(part).encode()) for part in (header, claims(**changes))]
    signed = ".".join(parts)
    signature = b"" if secret is None else hmac.digest(secret, signed.encode(), hashlib.sha256)
    return f"{signed}.{encoded(signature)}"


def confusions(issuer: HttpIssuer) -> dict[str, str]:
    """Tokens that a checker accepts if the token chooses the check."""
    public = RSA.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    old = public.public_bytes(Encoding.PEM, PublicFormat.PKCS1)
    jwk = json.loads(RSAAlgorithm.to_jwk(EVE.public_key()))
    hs, rs = {"alg": "HS256", "typ": "JWT"}, {"alg": "RS256", "typ": "JWT"}

    def eve(**header: Any) -> str:
        return jwt.encode(claims(), EVE, "RS256", headers=header)

    made = {
        "HS256 with the public key as PEM": by_hand(hs, pem),
        "HS256 with the public key as PKCS1": by_hand(hs, old),
        "HS256 with the public key as DER": by_hand(hs, der),
        "HS256 with the public key as JWK": by_hand(hs, json.dumps(issuer.jwk).encode()),
        "HS256 with its kid": by_hand(hs | {"kid": "rsa"}, pem),
        "HS256 with nothing": by_hand(hs, b""),
        "RS256 signed by HMAC": by_hand(rs | {"kid": "rsa"}, pem),
        "RS256 with the shared secret": by_hand(rs | {"kid": "rsa"}, SECRET.encode()),
        "RS256 without signature": by_hand(rs | {"kid": "rsa"}, None),
        "HS256 without signature": by_hand(hs, None),
        "none": by_hand({"alg": "none"}, None),
        "none with a kid": by_hand({"alg": "none", "kid": "rsa"}, None),
        "None": by_hand({"alg": "None"}, None),
        "no algorithm": by_hand({"typ": "JWT"}, SECRET.encode()),
        "a list of algorithms": by_hand({"alg": ["HS256"]}, SECRET.encode()),
        "the key of another algorithm": jwt.encode(claims(), RSA, "RS256", headers={"kid": "ec"}),
        "the algorithm of another key": jwt.encode(claims(), EC, "ES256", headers={"kid": "rsa"}),
        "another digest": jwt.encode(claims(), RSA, "RS512", headers={"kid": "rsa"}),
        "another padding": jwt.encode(claims(), RSA, "PS256", headers={"kid": "rsa"}),
        "another's key by our kid": eve(kid="rsa"),
        "another's key by their kid": eve(kid="eve"),
        "a key in the header": eve(kid="rsa", jwk=jwk),
        "the address of a key": eve(kid="eve", jku=f"{issuer.url}/evil"),
        "the address of a certificate": eve(kid="eve", x5u=f"{issuer.url}/evil"),
        "a certificate in the header": eve(kid="rsa", x5c=[encoded(der)]),
        "a critical extension": by_hand(hs | {"crit": ["exp"], "exp": 0}, SECRET.encode()),
        "a payload that is not encoded": by_hand(hs | {"b64": False, "crit": ["b64"]}, b"x"),
    }
    for kid in ("../../../../dev/null", "/dev/null", "' UNION SELECT ''--", "", "\0", "x" * 5_000):
        made[f"kid {kid[:20]!r}"] = by_hand(hs | {"kid": kid}, b"")
        made[f"RS256 kid {kid[:20]!r}"] = by_hand(rs | {"kid": kid}, b"")
    odd: tuple[Any, ...] = (7, None, ["rsa"], {"rsa": 1}, True)
    for kid in odd:
        made[f"kid {kid!r}"] = by_hand(rs | {"kid": kid}, b"")
    return made


async def test_a_token_does_not_say_how_it_is_checked(
    start_server: StartServer, issuer: HttpIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "AUTH_FAILURES_PER_ADDRESS_PER_MINUTE", 1_000)
    monkeypatch.setattr(server_limits, "JWKS_MISSES_PER_ADDRESS_MAX", server_limits.JWKS_MISSES_MAX)
    server = await start_server(jwks_url=f"{issuer.url}/keys")
    for key, algorithm, kid in ((RSA, "RS256", "rsa"), (EC, "ES256", "ec")):
        client = await server.connect()
        good = jwt.encode(claims(), key, algorithm, headers={"kid": kid})
        assert (await client.ask("auth", token=good))["type"] == "welcome"
    for name, token in confusions(issuer).items():
        client = await server.connect()
        await client.send("auth", token=token)
        assert (name, (await client.receive()).get("code")) == (name, "unauthenticated")
        assert (name, await closed(client)) == (name, (4500, []))
    # The server fetches no key from an address that a token names.
    assert set(issuer.asked) == {"/keys"}


async def test_a_token_expiring_in_a_session_costs_only_the_grace(
    server: TestServer,
) -> None:
    await server.grant(100 * CREDIT)
    client = await server.login(ttl_seconds=3_600)
    token = server.token(ttl_seconds=5)
    await client.ask("start", kind="chat", session_id="chat-1")
    expires = await client.ask("refresh", token=token)
    assert expires["type"] == "welcome"
    # A new token in time, and the session does not notice.
    renewed = await client.ask("refresh", token=server.token(ttl_seconds=60))
    assert renewed["expires_at"] > expires["expires_at"]
    advance(server, 10_000)
    assert (await client.ask("ping"))["type"] == "pong"
    # None in time: the socket is closed, and the session waits for its user.
    advance(server, 60_000)
    code, types = await closed(client)
    assert code == 4002
    assert "stopped" not in types
    await reaches(server, "chat-1", Phase.SUSPENDED)
    suspended = (await found(server, "chat-1")).session.standing

    # The old token again opens nothing; a new one opens the session where it stood.
    replayed = jwt.encode(claims(exp=int(time.time()) - 60), SECRET, "HS256")
    stranger = await server.connect()
    await stranger.send("auth", token=replayed)
    assert await closed(stranger) == (4002, [])
    back = await server.login()
    joined = await back.ask("start", kind="chat", session_id="chat-1")
    assert joined["state"] == "active"
    await back.send("stop", session_id="chat-1")
    receipt = (await back.until("stopped"))["receipt"]
    assert len(receipt["gaps"]) == 1
    assert receipt["gaps"][0]["billed"] is False
    assert receipt["elapsed_ms"] >= suspended.elapsed_ms
    assert receipt["elapsed_ms"] - suspended.elapsed_ms < 60_000


# --- Peers that do not read ------------------------------------------------------------


class Deaf:
    """A peer that sends and never reads.

    The kernel gives it as little room as possible.
    """

    def __init__(self, server: TestServer) -> None:
        self.server = server
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        self.socket.setblocking(False)
        self.peer = Peer(self.socket)

    async def begin(self) -> None:
        """Opens a socket as ann and starts a session.

        This peer reads that much and no more.
        """
        await self.peer.loop.sock_connect(self.socket, ("127.0.0.1", self.server.port))
        bearer = f"Authorization: Bearer {self.server.token()}"
        await self.peer.write(request("/v1/ws", bearer))
        assert (await self.peer.head()).startswith(b"HTTP/1.1 101 ")
        await self.take("welcome")
        await self.say("start", kind="chat", session_id="deaf-1")
        await self.take("session")

    async def take(self, type_: str) -> None:
        """Reads up to a message of this type.

        A push, as that of the month's usage, may come before it.
        """
        while json.loads((await self.peer.frame())[1])["type"] != type_:
            pass

    async def say(self, type_: str, **fields: Any) -> None:
        """Sends a message."""
        payload = json.dumps({"type": type_, "id": 1, **fields}).encode()
        await self.peer.write_frames(Frame(Opcode.TEXT, payload))


@asynccontextmanager
async def deaf_peer(server: TestServer) -> AsyncIterator[Deaf]:
    deaf = Deaf(server)
    try:
        await deaf.begin()
        yield deaf
    finally:
        deaf.socket.close()


async def test_the_kernel_buffers_little_for_a_peer(server: TestServer) -> None:
    async with deaf_peer(server):
        (connection,) = server.process.sockets.connections
        written = 0
        frame = text_frame(b"t" * 150)
        while connection.socket.push_tick(frame):  # type: ignore[attr-defined]
            written += len(frame)
            await asyncio.sleep(0)  # the kernel may take what it likes; without a bound, 3 MiB
    assert written < 512 * 1024


async def test_a_peer_that_stops_reading_is_cut_and_its_session_settled(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "REQUESTS_BURST", 100_000)
    monkeypatch.setattr(PushProtocol, "drain_timeout", 0.1)
    server = await start_server()
    await server.grant(100 * CREDIT)
    await server.grant(100 * CREDIT, "bob")
    neighbour = await server.login("bob")
    await neighbour.ask("start", kind="chat", session_id="near-1", tick_ms=250)
    most = 0
    async with deaf_peer(server) as deaf:
        (connection,) = [
            connection
            for connection in server.process.sockets.connections
            if connection.principal.user_id == "ann"  # type: ignore[attr-defined]
        ]
        transport = connection.socket.transport  # type: ignore[attr-defined]
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES
        )
        async with asyncio.timeout(30):
            while connection in server.process.sockets.connections:
                most = max(most, transport.get_write_buffer_size())
                try:
                    await deaf.say("start", kind="chat", session_id="deaf-1")
                except (ConnectionError, OSError):
                    break
                await asyncio.sleep(0)
    # What it did not read is bounded, and goes with it.
    assert most > server_limits.WRITE_BUFFER_SKIP_BYTES
    assert most <= server_limits.WRITE_BUFFER_CLOSE_BYTES + limits.MESSAGE_BYTES_MAX
    await reaches(server, "deaf-1", Phase.SUSPENDED)

    async def alone() -> bool:
        return len(server.process.sockets.connections) == 1 == server.process.limiter.count

    await eventually(alone)
    # A peer that reads is served as before.
    assert (await neighbour.until("tick"))["session_id"] == "near-1"
    assert (await neighbour.ask("ping"))["type"] == "pong"
