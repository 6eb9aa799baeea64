"""Lying clients: withheld pongs, floods of joins and starts, and guessed tokens.

Guesses come from the addresses of honest users.
"""

import asyncio
import contextlib
import json
import random
import struct
from typing import Any, Final

import httpx
from websockets.frames import Frame, Opcode

from tests.fuzz.cases import HANDSHAKE, frame_bytes, masked_text

GUESSES: Final = 80
"""More than the guesses that one address may make in a minute."""
RETURNS: Final = 20
STARTS: Final = 200
"""More than the sessions that one user may start at once."""
WAIT_S: Final = 60.0


async def withhold(port: int, token: str, seed: int, returns: int = RETURNS) -> list[str]:
    """Joins one session again and again, and proves its life rarely.

    It answers at most one ping after a join, sends a heartbeat now and then, and leaves with a
    close, with `leave`, or by an abort.
    """
    rng = random.Random(f"withhold/{seed}")
    session_id, problems = f"unproven-{seed}", []
    start = {"type": "start", "kind": "chat", "session_id": session_id, "tick_ms": 250}
    async with _client(port, token, seed) as http:
        for turn in range(returns):
            reader, writer = await _socket(port, token, f"10.254.{seed}.1")
            try:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(masked_text(rng, json.dumps(start).encode()))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rng.choice((0.02, 0.1, 0.4))):
                        while await reader.read(1 << 16):
                            if turn % 3 == 1:
                                writer.write(frame_bytes(rng, Frame(Opcode.PONG, b"")))
                if rng.random() < 0.3:
                    path = f"/v1/sessions/{session_id}/heartbeat"
                    response = await http.post(path, json={"kind": "chat"})
                    if response.status_code >= 500 and response.status_code != 503:
                        problems.append(f"a heartbeat was answered {response.status_code}")
                await _part(rng, writer, session_id)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()
    return problems


async def _part(rng: random.Random, writer: asyncio.StreamWriter, session_id: str) -> None:
    """Leaves in one of several ways."""
    match rng.randrange(4):
        case 0:
            close = Frame(Opcode.CLOSE, struct.pack("!H", rng.choice((1000, 1001, 4000))))
            writer.write(frame_bytes(rng, close))
        case 1 | 2:
            kind = rng.choice(("leave", "leave", "pause", "stop"))
            message = {"type": kind, "session_id": session_id}
            writer.write(masked_text(rng, json.dumps(message).encode()))
        case _:
            writer.transport.abort()
            return
    await writer.drain()


async def start_many(port: int, token: str, seed: int) -> list[str]:
    """Sends one user's flood of starts, then stops the sessions.

    The flood uses several sockets. Most of the starts must be refused.
    """
    rng = random.Random(f"starts/{seed}")
    refused = 0

    async def flood(socket: int) -> None:
        nonlocal refused
        reader, writer = await _socket(port, token, f"10.253.{seed}.1")
        try:
            await reader.readuntil(b"\r\n\r\n")
            for number in range(STARTS // 4):
                name = f"flood-{seed}-{socket}-{number}"
                start = {"type": "start", "kind": "lesson", "session_id": name, "id": number}
                writer.write(masked_text(rng, json.dumps(start).encode()))
            heard = await _heard(reader, STARTS // 4)
            refused += heard.count(b'"rate_limited"')
            for number in range(STARTS // 4):
                name = f"flood-{seed}-{socket}-{number}"
                stop = {"type": "stop", "session_id": name, "id": number}
                writer.write(masked_text(rng, json.dumps(stop).encode()))
            await _heard(reader, STARTS // 4)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    await asyncio.gather(*(flood(socket) for socket in range(4)))
    return [] if refused else [f"{STARTS} starts of one user at once, and none was refused"]


async def _heard(reader: asyncio.StreamReader, count: int) -> bytes:
    """All bytes until ``count`` requests are answered."""
    heard = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            while heard.count(b'"id":') < count and (data := await reader.read(1 << 16)):
                heard += data
    return heard


async def guess(port: int, address: str) -> list[str]:
    """Makes more bad guesses than an address may.

    It guesses over HTTP and with handshakes.
    """
    problems = []
    headers = {"X-Forwarded-For": address}
    async with _client(port, "", 0) as http:
        for number in range(GUESSES):
            bad = {"Authorization": f"Bearer {'a.b.c' if number % 2 else 'guess'}-{number}"}
            path = ("/v1/accounts/x", "/api/usage/stats", "/v1/holds/h/post")[number % 3]
            method = "POST" if path.endswith("post") else "GET"
            response = await http.request(method, path, headers=headers | bad)
            if response.status_code not in (401, 429):
                problems.append(f"a bad guess was answered {response.status_code}")
            if number % 8 == 0:  # a request without credentials is no guess
                response = await http.get(path, headers=headers)
                if response.status_code not in (401, 405):
                    problems.append(f"nothing to guess was answered {response.status_code}")
    for number in range(8):
        reader, writer = await _socket(port, f"guess-{number}", address)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(WAIT_S):
                await reader.read()
        writer.close()
    return problems


def _client(port: int, token: str, seed: int) -> httpx.AsyncClient:
    headers: dict[str, Any] = {"X-Forwarded-For": f"10.254.{seed}.2"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=WAIT_S, trust_env=False
    )


async def _socket(
    port: int, token: str, address: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has sent its handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    handshake = HANDSHAKE.replace(b"{address}", address.encode())
    writer.write(handshake + f"Authorization: Bearer {token}\r\n\r\n".encode())
    await writer.drain()
    return reader, writer
