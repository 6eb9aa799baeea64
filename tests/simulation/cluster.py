"""A cluster in virtual time, with real registries, Lua, Redis and SQL.

Only time, sockets and the heartbeat are simulated. Nothing here sleeps: when nothing is under way
any more, the clock jumps to the next timer of any process.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any, TypeVar

from redis.asyncio import Redis

from protocol.metering.records import EntryPosted
from protocol.metering.session import Identity
from protocol.metering.states import Event
from protocol.metering.terms import Terms
from server.counters.loading import Loader
from server.credits.credit_ledger import CreditLedger
from server.recovery.orphans import Orphans
from server.recovery.reassertion import Recovery
from server.runtime.metrics import Metrics
from server.runtime.rate_card_file import load_rate_card
from server.runtime.timers import Timers
from server.sessions.local_session import LocalSession
from server.sessions.pending_requests import PendingRequest
from server.sessions.registry import SessionRegistry
from storage.postgres.records import Records
from storage.redis.encoding import decode_records
from storage.redis.keys import Keys
from storage.redis.live import Live, connect

START_AT = 1_780_000_000_000
"""The instant at which every virtual cluster begins (2026-05-28, 20:26:40 UTC)."""
PARTITIONS = 2
Result = TypeVar("Result")
PING_MS = 10_000


class ManualClock:
    """A clock that is set by hand."""

    def __init__(self, now_ms: int = START_AT) -> None:
        self.now_ms = now_ms

    def now(self) -> int:
        """The current instant."""
        return self.now_ms


def _payload(frame: bytes) -> dict[str, Any]:
    """The message in a server's text frame (RFC 6455 section 5.2: unmasked)."""
    length = frame[1]
    start = {126: 4, 127: 10}.get(length, 2)
    message: dict[str, Any] = json.loads(frame[start:])
    return message


class Browser:
    """A client's socket: answers pings until cut, keeps received messages."""

    def __init__(self, node: "Node", name: str) -> None:
        self.node = node
        self.name = name
        self.messages: list[dict[str, Any]] = []
        self.alive_at = node.clock.now()
        self.local_sessions: dict[str, LocalSession] = {}
        self.is_cut = False
        """The connection is dead: nothing arrives, and neither side was notified."""
        self._ping()

    # Subscriber

    def send(self, frame: bytes) -> None:
        """The server sends a message."""
        if not self.is_cut:
            message = _payload(frame)
            message["received_at"] = self.node.clock.now()
            self.messages.append(message)

    def send_tick(self, frame: bytes) -> bool:
        """The server sends a tick."""
        self.send(frame)
        return not self.is_cut

    def probe(self) -> None:
        """The server pings; the pong comes back after a round trip."""
        at = self.node.clock.now() + self.node.round_trip_ms
        self.node.timers.deadline(at, self._pong)

    def farewell(self, at_ms: int) -> None:
        """Another socket says good-bye; this socket stays."""

    def left(self, local: LocalSession) -> None:
        """A session has ended."""
        self.local_sessions.pop(local.meter.session.identity.session_id, None)

    # The connection

    def _ping(self) -> None:
        self.node.timers.deadline(self.node.clock.now() + PING_MS, self._pinged)

    def _pinged(self, now_ms: int) -> None:
        if not self.is_cut and self.node.is_alive:
            self._pong(now_ms)
            self._ping()

    def _pong(self, now_ms: int) -> None:
        if not self.is_cut and self.node.is_alive:
            self.alive_at = now_ms
            for local in list(self.local_sessions.values()):
                if self not in local.service.passive:
                    local.service.alive(now_ms, now_ms, self)

    # What a client does

    async def start(
        self,
        session_id: str,
        terms: Terms,
        *,
        user_id: str = "ann",
        org_id: str | None = None,
        account_id: str | None = None,
        counterpart_id: str | None = None,
        free_key: str | None = None,
        last_seq: int | None = None,
    ) -> dict[str, Any]:
        """Starts or joins a session. Returns the answer."""
        tenant = f"org:{org_id}" if org_id else f"user:{user_id}"
        pending = PendingRequest(self, 1)
        local = await self.node.registry.join(
            self, tenant, session_id, user_id, pending, tick_ms=60_000, last_seq=last_seq
        )
        if local is None:
            identity = Identity(
                tenant=tenant,
                session_id=session_id,
                user_id=user_id,
                org_id=org_id,
                account_id=account_id or user_id,
                counterpart_id=counterpart_id,
                kind=terms.kind,
                started_at=self.node.clock.now(),
                terms=terms,
                free_key=free_key,
            )
            local = await self.node.registry.start(self, identity, pending, 60_000)
            assert local is not None
        if self in local.subscribers:
            self.local_sessions[session_id] = local
        await self.node.cluster.settle()
        return self.answer(1)

    async def request(self, session_id: str, event: Event) -> dict[str, Any]:
        """Pauses, resumes or stops a session. Returns the answer."""
        self._pong(self.node.clock.now())
        self.node.registry.request(self.local_sessions[session_id], event, PendingRequest(self, 2))
        await self.node.cluster.settle()
        return self.answer(2)

    async def close(self) -> None:
        """Closes the socket cleanly, which proves life.

        If the socket was cut, the server finds it dead.
        """
        is_farewell = not self.is_cut
        if is_farewell:
            self.alive_at = self.node.clock.now()
        self.is_cut = True
        for local in list(self.local_sessions.values()):
            self.node.registry.unsubscribe(local, self, self.alive_at, farewell=is_farewell)
        self.local_sessions.clear()
        await self.node.cluster.settle()

    async def leave(self, session_id: str) -> None:
        """Leaves a session, and keeps the socket."""
        self._pong(self.node.clock.now())
        local = self.local_sessions.pop(session_id)
        self.node.registry.unsubscribe(local, self, self.alive_at, farewell=True)
        await self.node.cluster.settle()

    def cut(self) -> None:
        """The connection goes dead. The server finds out when ``close`` is called."""
        self.is_cut = True

    # What the client saw

    def all(self, type_: str) -> list[dict[str, Any]]:
        """Every message of a type."""
        return [message for message in self.messages if message["type"] == type_]

    def last(self, type_: str) -> dict[str, Any]:
        """The newest message of a type."""
        return self.all(type_)[-1]

    def answer(self, request_id: int) -> dict[str, Any]:
        """The newest message that echoes a request's id."""
        return [message for message in self.messages if message.get("id") == request_id][-1]


class Node:
    """One process."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        self.cluster = cluster
        self.clock = cluster.clock
        self.name = name
        self.round_trip_ms = 20
        self.is_alive = True
        self.alive_at = self.clock.now()
        self.redis = connect(cluster.redis_url)
        self.live = Live(self.redis, Keys(PARTITIONS), name)
        self.loader = Loader(self.live, cluster.records, self.clock)
        self.metrics = Metrics(with_process=False)
        self.timers = Timers(self.clock)
        self.registry = SessionRegistry(
            self.live, self.loader, self.clock, self.timers, self.metrics
        )
        self.orphans = Orphans(self.registry, self.live)
        self.recovery = Recovery(self.registry, self.loader, cluster.records, self.clock)
        self.ledger = CreditLedger(
            self.live,
            cluster.records,
            self.clock,
            self.registry.accounts,
            load_rate_card(),
            self.metrics,
        )
        self._barriers: dict[str, asyncio.Event] = {}
        self.is_stopped = False

    async def start(self) -> None:
        """Connects and listens."""
        await self.live.prepare()
        if len(self.cluster.nodes) == 1:
            await self.recovery.restoring.begin_epochs()
        await self.registry.accounts.start()
        await self.registry.accounts.channels.subscribe(f"barrier:{self.name}", self._reached)

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way in this process."""
        waits = bool(self.registry.pipeline.waiting) or self.loader.busy
        return waits or self.registry.busy or self.recovery.busy

    async def stop(self) -> None:
        """Closes the connections; a second call does nothing."""
        if self.is_stopped:
            return
        self.is_stopped = True
        await self.recovery.stop()
        await self.loader.stop()
        await self.registry.accounts.stop()
        await self.redis.aclose()

    def _reached(self, message: dict[str, Any]) -> None:
        self._barriers.pop(message["name"]).set()

    async def caught_up(self, redis: Redis, name: str) -> None:
        """Waits until every message published before has been received."""
        event = self._barriers[name] = asyncio.Event()
        channel, message = f"barrier:{self.name}", json.dumps({"name": name})
        await redis.execute_command(self.live.publish, channel, message)  # type: ignore[no-untyped-call]
        async with asyncio.timeout(10):
            await event.wait()

    def browser(self, name: str = "browser") -> Browser:
        """Opens a socket to this process."""
        return Browser(self, name)


class Cluster:
    """Processes on one Redis and one Postgres, in virtual time."""

    def __init__(self, redis: Redis, redis_url: str, records: Records) -> None:
        self.redis = redis
        self.redis_url = redis_url
        self.records = records
        self.clock = ManualClock()
        self.nodes: list[Node] = []
        self._barriers = 0
        self._entries: defaultdict[str, int] = defaultdict(int)

    async def node(self) -> Node:
        """Starts one more process."""
        node = Node(self, f"node-{len(self.nodes)}")
        self.nodes.append(node)
        await node.start()
        return node

    async def stop(self) -> None:
        """Stops all processes."""
        for node in self.nodes:
            await node.stop()  # the dead too: they would receive messages of the next test

    async def settle(self) -> None:
        """Waits until nothing is under way anywhere, while the clock stands still."""
        while True:
            for node in self._living():
                await node.registry.idle()
                await node.recovery.idle()
            self._barriers += 1
            name = str(self._barriers)
            for node in self._living():
                await node.caught_up(self.redis, name)
            if not any(node.is_busy for node in self._living()):
                return

    def _living(self) -> list[Node]:
        return [node for node in self.nodes if node.is_alive]

    async def advance(self, ms: int) -> None:
        """Lets this much time pass, deadline by deadline."""
        until = self.clock.now_ms + ms
        while True:
            await self.settle()
            due = [node.timers.next_at for node in self._living()]
            next_at = min((at for at in due if at is not None), default=None)
            if next_at is None or next_at > until:
                break
            self.clock.now_ms = max(self.clock.now_ms, next_at)
            for node in self._living():
                node.timers.run_due(self.clock.now_ms)
        self.clock.now_ms = until
        await self.settle()

    async def meanwhile(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Lets time pass until a waiting task is done; returns its result."""
        task = asyncio.create_task(work)
        while not task.done():
            await self.settle()
            if not task.done():
                await self.advance(10)
        return await task

    async def grant(
        self, micros: int, account_id: str = "ann", org_id: str | None = None, kind: str = "grant"
    ) -> None:
        """Credits for an account, through the first living process."""
        self._entries[account_id] += 1
        await self._living()[0].ledger.enter(
            EntryPosted(
                tenant=f"org:{org_id}" if org_id else f"user:{account_id}",
                account_id=account_id,
                entry_id=f"{kind}-{self._entries[account_id]}",
                entry_kind=kind,
                amount_micros=micros,
                at=self.clock.now(),
            )
        )
        await self.settle()

    async def lose(self) -> None:
        """Redis restarts empty."""
        await self.redis.flushall()

    async def beat(self) -> None:
        """Every process checks whether Redis has lost anything, as with each heartbeat."""
        for node in self._living():
            await node.recovery.look()
        await self.settle()

    async def recovered(self) -> None:
        """Waits until Redis takes more than assertions after a loss."""
        keys: list[Any] = await self.redis.keys("*:recovering")
        for key in keys:
            await self.redis.delete(key)
        await self.beat()

    async def flush(self) -> None:
        """Flushes every outbox to Postgres."""
        keys = Keys(PARTITIONS)
        for partition in range(PARTITIONS):
            entries: list[Any] = await self.redis.xrange(keys.outbox(partition)) or []
            for entry_id, fields in entries:
                await self.records.write(decode_records(fields[b"r"]))
                await self.redis.xdel(keys.outbox(partition), entry_id)

    async def account(self, account_id: str = "ann", org_id: str | None = None) -> dict[str, int]:
        """The integers of an account's hash in Redis."""
        tenant = f"org:{org_id}" if org_id else f"user:{account_id}"
        found: dict[Any, Any] = await self.redis.hgetall(
            Keys(PARTITIONS).account(tenant, account_id)
        )
        return {
            name.decode(): int(value) for name, value in found.items() if not name.startswith(b"s:")
        }
