"""Slow or deaf peers, and how long a server keeps them.

They send too little or read nothing.
"""

import asyncio
import contextlib
import json
import random
import socket
import time

from tests.fuzz.cases import HANDSHAKE, masked_text

CLOSE_BY_S = 60.0
"""Longest wait for a connection to be cut."""
STARTS = (b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"POST / HTTP/1.1\r\nHost: x\r\n")
"""First bytes of connections that send nothing more."""
ASKING_S = 0.1
SMALL_BUFFER_BYTES = 4_096
LONG_ANSWERS = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 9
SESSIONS = 60
"""Sessions of a peer that reads no tick: together they push 40 KB a second."""


async def stay(port: int, sent: bytes) -> float:
    """Opens an otherwise silent connection; returns the seconds until its close."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(CLOSE_BY_S):
            await reader.read()
    writer.close()
    return time.monotonic() - began


async def take_no_answer(port: int) -> float:
    """Asks for long answers, reads none; returns seconds until the cut."""
    with _deaf() as peer:
        await _write(peer, port, LONG_ANSWERS)
        return await _cut_after(peer, b"\r\n")


async def take_no_tick(port: int, token: str) -> float:
    """Starts sessions and reads no tick; returns the seconds until the cut."""
    rng = random.Random(0)
    handshake = HANDSHAKE + b"Authorization: Bearer {token}\r\n\r\n"
    handshake = handshake.replace(b"{address}", b"10.255.255.1").replace(b"{token}", token.encode())
    start = {"type": "start", "kind": "lesson", "tick_ms": 250}
    frames = [
        masked_text(rng, json.dumps({**start, "session_id": f"deaf-{number}"}).encode())
        for number in range(SESSIONS)
    ]
    with _deaf() as peer:
        await _write(peer, port, handshake)
        # Wait for the answer: the server would drop frames that come with the handshake.
        await asyncio.get_running_loop().sock_recv(peer, 1_024)
        for frame in frames:
            await asyncio.get_running_loop().sock_sendall(peer, frame)
        return await _cut_after(peer, masked_text(rng, b'{"type":"ping"}'))


def _deaf() -> socket.socket:
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
    peer.setblocking(False)
    return peer


async def _write(peer: socket.socket, port: int, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(peer, ("127.0.0.1", port))
    await loop.sock_sendall(peer, data)


async def _cut_after(peer: socket.socket, word: bytes) -> float:
    """Sends a word now and then until that fails.

    A read would empty the buffer.
    """
    began = time.monotonic()
    while time.monotonic() - began < CLOSE_BY_S:
        try:
            await asyncio.get_running_loop().sock_sendall(peer, word)
        except OSError:
            break
        await asyncio.sleep(ASKING_S)
    return time.monotonic() - began
