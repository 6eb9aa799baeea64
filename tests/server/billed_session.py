"""Helpers of the socket's tests: waits, internals, and a billed session."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from websockets.exceptions import ConnectionClosed

from protocol.metering.states import Phase
from server.gateway.connection import Connection
from server.runtime.settings import RATES_DEFAULT
from storage.redis.live import FoundSession
from tests.fixtures.server import TIMEOUT_S, SocketClient, StartServer, TestServer

CREDIT = 1_000_000

KINDS = """
[kinds.talk]
credits_per_minute = "6"
increment_seconds = [60, 60]

[kinds.lesson]
credits_per_minute = "0"
increment_seconds = [60, 60]
counts_minutes = true
"""

Bill = tuple[int, int, list[bytes]]


class BilledSession:
    """A server with a session that cost something, and a client socket."""

    def __init__(self, server: TestServer, client: SocketClient) -> None:
        self.server = server
        self.client = client
        self._bill: Bill | None = None

    async def bill(self) -> Bill:
        """What the session has cost, and what the account has left."""
        live = self.server.process.live
        standing = (await found(self.server, "bill-1")).session.standing
        name = live.keys.account("user:ann", "ann")
        account = await live.redis.hmget(name, ("balance", "charged_live", "held", "s:bill-1"))
        return standing.version, standing.charged_micros, [cast(bytes, part) for part in account]

    async def begin(self) -> None:
        """Starts the session and pauses it with a charge.

        An increment has begun, so it is charged.
        """
        await self.client.ask("start", kind="talk", session_id="bill-1")

        async def is_charged() -> bool:
            # An increment is billed once it has begun, and proven: not if the pause comes in
            # the same millisecond, nor if the machine stood still before it.
            await self.client.ask("pause", session_id="bill-1")
            self._bill = await self.bill()
            if not self._bill[1]:
                await self.client.ask("resume", session_id="bill-1")
            return self._bill[1] > 0

        await eventually(is_charged)
        assert self._bill is not None
        assert self._bill[1] == 6 * CREDIT

    async def unharmed(self, client: SocketClient | None = None) -> None:
        """The socket still answers, and no account was charged."""
        assert (await (client or self.client).ask("ping"))["type"] == "pong"
        assert await self.bill() == self._bill


async def begin_scene(start_server: StartServer, directory: Path) -> "BilledSession":
    """A server on these tests' rate card, and a billed session."""
    server = await start_server(rates=write_rates(directory))
    await server.grant(100 * CREDIT)
    scene = BilledSession(server, await server.login())
    await scene.begin()
    return scene


def write_rates(directory: Path) -> Path:
    """The default rate card, and kinds that cost at once."""
    path = directory / "rates.toml"
    path.write_text(RATES_DEFAULT.read_text().replace("[operations]", f"{KINDS}\n[operations]"))
    return path


async def eventually(condition: Callable[[], Awaitable[object]]) -> None:
    """Polls until the condition holds: nothing signals it to the client."""
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():  # noqa: ASYNC110 -- nothing tells of it
            await asyncio.sleep(0.005)


async def found(server: TestServer, session_id: str, tenant: str = "user:ann") -> FoundSession:
    """A session as Redis has it."""
    session = await server.process.live.attach(tenant, session_id, read_only=True)
    assert session is not None
    return session


async def reaches(
    server: TestServer, session_id: str, phase: Phase, tenant: str = "user:ann"
) -> None:
    """Waits until Redis has the session in a phase."""

    async def is_there() -> bool:
        return (await found(server, session_id, tenant)).session.standing.phase is phase

    await eventually(is_there)


async def closed(client: SocketClient) -> tuple[int, list[str]]:
    """The close code, and the types of earlier messages but ``usage``.

    The member's month is pushed at any moment after ``auth``.
    """
    types: list[str] = []
    while True:
        try:
            types.append((await client.receive())["type"])
        except ConnectionClosed as error:
            others = [name for name in types if name != "usage"]
            return (error.rcvd.code if error.rcvd is not None else 1006), others


def connection_of(server: TestServer, user_id: str = "ann") -> Connection:
    """The server's end of the user's only socket."""
    (connection,) = [
        connection
        for connection in cast("set[Connection]", server.process.sockets.connections)
        if connection.principal is not None and connection.principal.user_id == user_id
    ]
    return connection
