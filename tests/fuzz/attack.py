"""The attack: several workers send cases to a server over real sockets."""

import asyncio
import contextlib
import itertools
import json
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import jwt
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from protocol.wire.errors import ErrorCode
from tests.fuzz.cases import (
    ATTACKERS,
    HONEST_ORG,
    Bearer,
    Case,
    FrameCase,
    MessageCase,
    RequestCase,
)
from tests.fuzz.claims import signed

WORKERS = 16
MESSAGES_PER_SOCKET = 90
"""Messages for each socket: fewer than the rate limit at which the server closes a socket."""
QUIET_S = 0.05
"""Longest wait for an optional answer."""
WAIT_S = 60.0
CLOSE_CODES = {1000, 1002, 1003, 1007, 1009, 4001, 4002, 4500, 4501, 4502, 4503}
"""Codes with which the server may close a socket because of its peer's behaviour."""
SENTINEL = 123_456_789
"""An id of a request that no case uses."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class Tokens:
    """The tokens of attackers.

    They are not part of a case, because they expire.
    """

    def __init__(self, secret: str, api_key: str) -> None:
        self.secret = secret
        self.api_key = api_key
        self._made: dict[tuple[Bearer, int], tuple[float, str]] = {}

    def get(self, bearer: Bearer, number: int) -> str:
        """A token for a case."""
        key = (bearer, number % ATTACKERS)
        made_at, token = self._made.get(key, (0.0, ""))
        if time.monotonic() - made_at > 60 or not token:
            token = self._make(bearer, number % ATTACKERS)
            self._made[key] = (time.monotonic(), token)
        return token

    def odd(self, claims: str) -> str:
        """A token with the claims of one case."""
        now = int(time.time())
        instants = {"{now_s}": now, "{soon_s}": now + 30, "{exp}": now + 3600}
        for name, instant in instants.items():
            claims = claims.replace(name, str(instant))
        return signed(claims, self.secret)

    def _make(self, bearer: Bearer, user: int) -> str:
        now = int(time.time())
        claims = {"sub": f"mallory-{user}", "exp": now + 3600}
        secret, algorithm = self.secret, "HS256"
        match bearer:
            case "key":
                return self.api_key
            case "none":
                return ""
            case "member":
                claims["org"] = HONEST_ORG
            case "observer":
                claims |= {"org": HONEST_ORG, "sessions": ["theirs-1", "honest-12"]}
            case "ops":
                claims["scope"] = "ops"
            case "expired":
                claims["exp"] = now - 3600
            case "forged":
                claims |= {"sub": "honest-1", "scope": "ops"}
                secret, algorithm = [
                    ("another-secret-of-at-least-32-bytes", "HS256"),
                    ("", "none"),
                    (self.secret * 2, "HS384"),
                ][user % 3]
            case _:
                pass
        return jwt.encode(claims, secret, algorithm=algorithm)


class Attack:
    """Sends cases, and notes every answer that must not happen."""

    def __init__(self, port: int, tokens: Tokens) -> None:
        self.port = port
        self.tokens = tokens
        self.answers: Counter[str] = Counter()
        """Counts of answers: errors by code, statuses, close codes."""
        self.problems: list[str] = []
        self.sent = 0

    async def run(self, make: Callable[[int], Case], numbers: Sequence[int]) -> None:
        """Sends every case of ``numbers`` once."""
        queue = iter(numbers)
        await asyncio.gather(*(self._work(make, queue, worker) for worker in range(WORKERS)))

    async def _work(self, make: Callable[[int], Case], queue: Iterator[int], worker: int) -> None:
        messages: list[MessageCase] = []
        for number in queue:
            case = make(number)
            if isinstance(case, MessageCase):
                messages.append(case)
                if len(messages) == MESSAGES_PER_SOCKET:
                    await self._send_messages(messages, worker)
                    messages = []
            else:
                await self._send_bytes(case)
            self.sent += 1
        if messages:
            await self._send_messages(messages, worker)

    def _problem(self, what: str) -> None:
        if len(self.problems) < 50:
            self.problems.append(what)

    # --- Messages ------------------------------------------------------------------------

    async def _send_messages(self, cases: list[MessageCase], worker: int) -> None:
        """Sends messages on as few sockets as possible.

        A case may end its socket.
        """
        rest = list(cases)
        while rest:
            bearer: Bearer = "member" if rest[0].number % 3 == 0 else "user"
            token = self.tokens.get(bearer, worker)
            try:
                connection = await self._socket(rest[0].number)
            except (OSError, InvalidHandshake, TimeoutError) as error:
                self._problem(f"case {rest[0].number}: no socket: {error!r}")
                return
            try:
                async with asyncio.timeout(WAIT_S):
                    if rest[0].number % 10:
                        await connection.send(json.dumps({"type": "auth", "token": token}))
                    while rest:
                        case = rest.pop(0)
                        data = case.data.replace(b"{token}", token.encode())
                        await connection.send(data, text=case.is_text)
                        # Read after each message, so that the case that ends a socket is known.
                        await self._heard(connection, case)
                    await self._answers(connection, case)
            except ConnectionClosed as error:
                self._closed(case, error)
            except TimeoutError:
                self._problem(f"case {case.number}: a socket does not answer")
            finally:
                await connection.close()

    async def _socket(self, number: int) -> ClientConnection:
        return await connect(
            f"ws://127.0.0.1:{self.port}/v1/ws",
            compression=None,
            proxy=None,
            max_queue=None,
            ping_interval=None,
            close_timeout=WAIT_S,
            open_timeout=WAIT_S,
            additional_headers={"X-Forwarded-For": _address(number)},
        )

    async def _heard(self, connection: ClientConnection, case: MessageCase) -> None:
        """Pings after the case and reads to the pong.

        With the pong, the case was handled.
        """
        name = f"{case.number}".encode()
        pong = asyncio.ensure_future(await connection.ping(name))
        while not pong.done():
            reading = asyncio.ensure_future(connection.recv())
            await asyncio.wait({reading, pong}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                self._note(json.loads(reading.result()), case)
            else:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                    self._note(json.loads(await reading), case)
        await pong

    async def _answers(self, connection: ClientConnection, case: MessageCase) -> None:
        """Waits for the answer to one more message.

        With this answer, all earlier messages were handled.
        """
        await connection.send(json.dumps({"type": "ping", "id": SENTINEL}))
        message: dict[str, object] = {}
        while message.get("id") != SENTINEL:
            message = json.loads(await connection.recv())
            self._note(message, case)

    def _note(self, message: dict[str, object], case: Case) -> None:
        if message["type"] == "error":
            code = str(message["code"])
            self.answers[code] += 1
            if code not in set(ErrorCode):
                self._problem(f"case {case.number}: an unknown code: {message}")
        else:
            self.answers[str(message["type"])] += 1

    def _closed(self, case: Case, error: ConnectionClosed) -> None:
        code = error.rcvd.code if error.rcvd is not None else 1006
        self.answers[f"close {code}"] += 1
        if code not in CLOSE_CODES:
            self._problem(f"case {case.number}: the socket was closed with {code}")

    # --- Bytes -----------------------------------------------------------------------------

    async def _send_bytes(self, case: FrameCase | RequestCase) -> None:
        """Sends bytes unchanged, and reads answers until the connection's end."""
        token = self.tokens.get(case.bearer, case.number).encode()
        if case.claims:
            token = self.tokens.odd(case.claims).encode()
        address = _address(case.number).encode()
        if isinstance(case, FrameCase):
            parts = [*case.handshake, *case.frames]
        else:
            parts = [_with_length(part) for part in case.parts]
        loop = asyncio.get_running_loop()
        with socket.socket() as peer:
            peer.setblocking(False)
            try:
                async with asyncio.timeout(WAIT_S):
                    await loop.sock_connect(peer, ("127.0.0.1", self.port))
                    for part in parts:
                        for name, value in ((b"{token}", token), (b"{address}", address)):
                            part = part.replace(name, value)  # noqa: PLW2901
                        await loop.sock_sendall(peer, part)
                        if isinstance(case, FrameCase) and b"\r\n\r\n" in part:
                            await self._read(peer, case)
                    await self._finish(peer, case)
            except TimeoutError:
                self._problem(f"case {case.number}: the connection has no end")
            except (ConnectionError, OSError):
                self.answers["cut"] += 1

    async def _finish(self, peer: socket.socket, case: FrameCase | RequestCase) -> None:
        if case.ending == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if case.ending == "wait" and not await self._read(peer, case):
            return
        peer.shutdown(socket.SHUT_WR)
        while await self._read(peer, case, patience_s=WAIT_S):
            pass

    async def _read(
        self, peer: socket.socket, case: FrameCase | RequestCase, patience_s: float = QUIET_S
    ) -> bool:
        """Reads data that is there or arrives soon.

        False: the connection has ended.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s):
                while data := await loop.sock_recv(peer, 1 << 16):
                    for status in _STATUS.findall(data):
                        self.answers[status.decode()] += 1
                        if status == b"500" or _is_wrong(case, status):
                            what = status.decode()
                            self._problem(f"case {case.number}: {what}: {data[:600]!r}")
                return False
        except TimeoutError:
            if patience_s == WAIT_S:
                raise
            return True


def _is_wrong(case: FrameCase | RequestCase, status: bytes) -> bool:
    """Whether a good case was refused, or a bad one passed."""
    if isinstance(case, FrameCase) or case.refused is None:
        return False
    if not case.claims:
        return status[:1] != b"4"
    return (status in (b"401", b"431")) is not case.refused


def _address(number: int) -> str:
    """A case's own address.

    No attacker is refused because of another.
    """
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _with_length(request: bytes) -> bytes:
    head, found, body = request.partition(b"\r\n\r\n")
    minute = int(time.time() * 1000) // 60_000 * 60_000
    body = body.replace(b"{now}", b"%d" % minute).replace(b"{later}", b"%d" % (minute + 3_600_000))
    return head.replace(b"{length}", b"%d" % len(body)) + found + body


def numbered(first: int, count: int) -> Sequence[int]:
    """The numbers of a part of a run."""
    return list(itertools.islice(itertools.count(first), count))
