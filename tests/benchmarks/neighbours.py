"""Measures an account's effect on others: long turns and late stops.

One account has many sessions, each on its own socket. They start together, receive the same credit,
lose their sockets together, and end together when their grace is over; those of another account run
out of credits together. Meanwhile bystanders, each with an account of their own, reach their
limits. The server runs in the measuring process, whose loop never waits.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

import asyncpg
import msgspec
import uvloop
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from protocol.metering.records import EntryPosted
from protocol.wire.errors import ProtocolError
from protocol.wire.messages import LimitReached
from protocol.wire.money import MICROS_PER_CREDIT
from server.access.tokens import mint_token
from server.runtime.settings import load_settings
from server.transport.push import PushProtocol
from storage.redis.spending import AccountName
from tests.benchmarks import machine
from tests.benchmarks.in_process import InProcessServer, serving

RATES = """
[kinds.chat]
credits_per_minute = "1"
increment_seconds = [1, 1]
stop_grace_seconds = 1
reconnect_grace_seconds = 3
"""
ORG = "big"
TENANT = f"org:{ORG}"
SOCKETS_PER_USER = 16
PLENTY_MICROS = 10**12
BYSTANDERS = 20
PHASE_S = 4.0
DRY_S = 2.0
HELD_S = 180.0
"""Time that each recalled session could burn; it holds a minute of it, or less."""
NEED_S = 12.0
"""Time that the spend leaves to each session."""
WAIT_S_MAX = 120
STARTS_TRIED = 20
"""Attempts to start a session, repeated where the server says that the client may ask again."""

BYSTANDING = "FROM sessions WHERE session_id LIKE 'by-%'"
SLOW_US = 200
"""Redis lists commands that took longer than this."""
SLOW_MAX = 8_192
Measured = tuple[float, float, float]
"""The longest turn of the loop, the latest stop of a bystander, and the longest command of Redis,
in milliseconds."""
Row = tuple[str, Measured]
"""An event, and its effect."""
Client = tuple[str, str, str, str]
"""User, organisation (empty: none), account, session."""


class StopNotingSocket(PushProtocol):
    """A socket that notes when a ``limit_reached`` was written to it."""

    __slots__ = ()
    written: ClassVar[dict[str, tuple[float, int]]] = {}
    """By session: the monotonic time of the write, and the message's instant of the stop."""

    def push(self, frame: bytes) -> bool:
        """See ``PushSocket.push``."""
        pushed = super().push(frame)
        if b'"limit_reached"' in frame[:40]:
            said = msgspec.json.decode(frame[frame.index(b"{") :], type=LimitReached)
            self.written[said.session_id] = time.monotonic(), said.stopped_at
        return pushed


class LoopTurns:
    """Measures this loop's turns in processor time, by a callback per turn.

    Wall time would include the time of other programs.
    """

    def __init__(self) -> None:
        self._longest_s = 0.0
        self._at = time.thread_time()
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._turn)

    def take(self) -> float:
        """The longest turn since the last call, in milliseconds."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s * 1000

    def stop(self) -> None:
        """Removes the callback, so that the loop can wait again."""
        self._handle.cancel()

    def _turn(self) -> None:
        now = time.thread_time()
        self._longest_s = max(self._longest_s, now - self._at)
        self._at = now
        self._handle = self._loop.call_soon(self._turn)


class Clients:
    """A process of clients, whose sockets end when it is killed."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def open(self, port: int, clients: list[Client]) -> None:
        """Connects each client and starts its session; returns when all are active."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([port, clients]).encode() + b"\n")
        async with asyncio.timeout(WAIT_S_MAX):
            answer = await self._child.stdout.readline()
        if answer != b"ok\n":
            raise RuntimeError(f"a session did not start: {answer.decode()}")

    async def kill(self) -> None:
        """Ends all of them at once."""
        if self._child.returncode is None:
            self._child.kill()
            await self._child.wait()


@asynccontextmanager
async def clients_of(inside: InProcessServer) -> AsyncIterator[Clients]:
    """A process of clients."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.benchmarks.neighbours"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=inside.environment.variables,
        limit=1 << 24,
    )
    clients = Clients(child)
    try:
        yield clients
    finally:
        await clients.kill()


async def measure(counts: list[int]) -> AsyncIterator[str]:
    """Measures an account with each number of sessions; returns the report's lines."""
    head = (
        f"{'sessions':<10}{'of one account':<34}{'longest turn':>14}{'latest stop of others':>24}"
        f"{'longest in Redis':>19}"
    )
    yield machine.describe()
    yield head
    async with serving(RATES, StopNotingSocket) as inside, _redis_of(inside) as redis:
        other = await inside.environment.serve()
        for number, count in enumerate(counts):
            async for text, figures in _Round(inside, redis, number, count).run():
                turn_ms, late_ms, redis_ms = figures
                yield (
                    f"{count:<10}{text:<34}{turn_ms:>11.1f} ms{late_ms:>21.1f} ms"
                    f"{redis_ms:>16.1f} ms"
                )
        await inside.environment.flushed()
        other.check()
        yield f"sweeps by the other process: {other.log.read_text().count('node_swept')}"
        yield f"how sessions of others ended: {await _ends(inside)}"
        yield f"audit: {(await inside.environment.audit())[-1]}"


@asynccontextmanager
async def _redis_of(inside: InProcessServer) -> AsyncIterator[Redis]:
    """The Redis of the environment, set to list slow commands."""
    assert inside.environment.settings.redis_url is not None
    async with Redis.from_url(inside.environment.settings.redis_url) as redis:
        await redis.config_set("slowlog-log-slower-than", SLOW_US)
        await redis.config_set("slowlog-max-len", SLOW_MAX)
        yield redis


async def _ends(inside: InProcessServer) -> str:
    """Why the bystanders' sessions ended: each reason with its number."""
    assert inside.environment.settings.database_url is not None
    connection = await asyncpg.connect(inside.environment.settings.database_url)
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            # The last sessions may still get credits.
            while await connection.fetchval(  # noqa: ASYNC110
                f"SELECT true {BYSTANDING} AND reason IS NULL"
            ):
                await asyncio.sleep(0.2)
        rows = await connection.fetch(
            f"SELECT reason, count(*) AS number {BYSTANDING} GROUP BY reason ORDER BY reason"
        )
    finally:
        await connection.close()
    return ", ".join(f"{row['number']} {row['reason']}" for row in rows)


class _Round:
    """All events of an account with ``count`` sessions."""

    def __init__(self, inside: InProcessServer, redis: Redis, number: int, count: int) -> None:
        self.inside = inside
        self.redis = redis
        self.number = number
        self.count = count
        self.bystanders = 0
        self.spent = ""
        """The answer to the spend, and its delay."""

    async def run(self) -> AsyncIterator[Row]:
        """Each event with its effect."""
        account = f"plenty-{self.number}"
        await self._grant(TENANT, account, PLENTY_MICROS)
        async with clients_of(self.inside) as clients:
            members = self._members(account)
            opening = self._during(lambda: clients.open(self.inside.port, members))
            yield "all start", await opening
            yield "a credit comes in, told to all", await self._during(self._credit)
            yield "all lose their sockets, and end", await self._during(clients.kill, 5)
        account = f"dry-{self.number}"
        # All sessions started at about the same time, and share the rest.
        micros = int(self.count * MICROS_PER_CREDIT * (DRY_S + self.count / 40) / 60)
        await self._grant(TENANT, account, micros)
        async with clients_of(self.inside) as clients:
            await clients.open(self.inside.port, self._members(account))
            yield "all run out of credits", await self._during(self._dried)
        account = f"held-{self.number}"
        await self._grant(TENANT, account, int(self.count * MICROS_PER_CREDIT * HELD_S / 60))
        async with clients_of(self.inside) as clients:
            await clients.open(self.inside.port, self._members(account))
            figures = await self._during(self._spend)
            yield f"a spend recalls all: {self.spent}", figures

    def _members(self, account: str) -> list[Client]:
        users = [f"{account}-{one // SOCKETS_PER_USER}" for one in range(self.count)]
        return [(user, ORG, account, f"{account}-{one}") for one, user in enumerate(users)]

    async def _during(self, act: Callable[[], Awaitable[object]], phases: float = 1) -> Measured:
        """The measurements during ``act`` and its consequences."""
        names = [f"by-{self.number}-{self.bystanders + one}" for one in range(BYSTANDERS)]
        self.bystanders += BYSTANDERS
        seconds = PHASE_S * phases
        for one, name in enumerate(names):
            micros = int((1.5 + seconds * one / BYSTANDERS) * MICROS_PER_CREDIT / 60)
            await self._grant(f"user:{name}", name, micros)
        async with clients_of(self.inside) as clients:
            await clients.open(self.inside.port, [(name, "", name, name) for name in names])
            await self.redis.slowlog_reset()
            turns = LoopTurns()
            await act()
            async with asyncio.timeout(WAIT_S_MAX):
                while not all(name in StopNotingSocket.written for name in names):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            turn_ms = turns.take()
            turns.stop()
        late = [
            self.inside.process.clock.at_ms(written) - stopped_at
            for written, stopped_at in map(StopNotingSocket.written.__getitem__, names)
        ]
        slow = await self.redis.slowlog_get(SLOW_MAX)
        return turn_ms, max(late), max((one["duration"] for one in slow), default=0) / 1000

    async def _credit(self) -> None:
        live, clock = self.inside.process.live, self.inside.process.clock
        await self._post(TENANT, f"plenty-{self.number}", MICROS_PER_CREDIT, "more")
        await live.credit(
            TENANT, f"plenty-{self.number}", "more", MICROS_PER_CREDIT, "grant", clock.now()
        )

    async def _spend(self) -> None:
        """Spends all credits except those that the sessions need.

        The sessions hold these in advance.
        """
        account = AccountName(TENANT, f"held-{self.number}")
        projection = self.inside.process.registry.accounts.get(*account)
        assert projection is not None
        left = projection.projection.credits_micros(self.inside.process.clock.now())
        need = int(self.count * MICROS_PER_CREDIT * NEED_S / 60)
        began_at = time.monotonic()
        try:
            answered = await self.inside.process.ledger.spend(
                account, entry_id="spend:bench", micros=left - need
            )
            answer = type(answered).__name__.lower()
        except ProtocolError as error:
            answer = error.code.value
        self.spent = f"{answer}, {(time.monotonic() - began_at) * 1000:.0f} ms"

    async def _dried(self) -> None:
        async with asyncio.timeout(WAIT_S_MAX):
            names = [name for *_, name in self._members(f"dry-{self.number}")]
            while not all(name in StopNotingSocket.written for name in names):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def _grant(self, tenant: str, account: str, micros: int) -> None:
        await self._post(tenant, account, micros, "grant:bench")
        await self.inside.process.records.inbox_done([(tenant, account, "grant:bench")])

    async def _post(self, tenant: str, account: str, micros: int, entry_id: str) -> None:
        await self.inside.process.records.post_entry(
            EntryPosted(
                tenant=tenant,
                account_id=account,
                entry_id=entry_id,
                entry_kind="grant",
                amount_micros=micros,
                at=int(time.time() * 1000),
            )
        )


async def _serve_clients() -> None:
    """The process of clients: opens clients on command, and reads their messages."""
    settings = load_settings()
    reading = set()

    async def open_one(port: int, client: Client) -> str:
        user, org, account, session = client
        token = mint_token(settings, user, org=org or None, account=account)
        socket = await connect(f"ws://127.0.0.1:{port}/v1/ws", ping_interval=None, max_queue=None)
        await socket.send(json.dumps({"type": "auth", "token": token}))
        start = {"type": "start", "kind": "chat", "session_id": session}
        for _ in range(STARTS_TRIED):
            await socket.send(json.dumps(start))
            while (message := json.loads(await socket.recv()))["type"] not in {"session", "error"}:
                pass
            if not message.get("retryable"):
                break
            await asyncio.sleep(0.2)
        reading.add(asyncio.create_task(_read(socket)))
        return "" if message["type"] == "session" else str(message)

    async def _read(socket: object) -> None:
        async for _ in socket:  # type: ignore[attr-defined]
            pass

    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        port, clients = json.loads(line)
        limit = asyncio.Semaphore(32)

        async def bounded(
            client: Client, port: int = port, limit: asyncio.Semaphore = limit
        ) -> str:
            async with limit:
                return await open_one(port, client)

        refused = [one for one in await asyncio.gather(*map(bounded, clients)) if one]
        print(refused[0] if refused else "ok", flush=True)


if __name__ == "__main__":
    uvloop.run(_serve_clients())
