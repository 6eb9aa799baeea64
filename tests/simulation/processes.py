"""A virtual cluster's processes: servers and flushers, and how they die.

Each is the product's own ``Process`` or ``Flusher``, with its heartbeats, sweeps, retries and
timers, on a virtual loop. A task belongs to a process by its context, so that a process can be
killed between any two of its lines.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from redis.exceptions import RedisError

import server.process
import server.recovery.lost_sessions
import server.recovery.reported_sessions
from protocol import limits
from protocol.metering.states import Event
from protocol.rate_card import RateCard
from server import limits as server_limits
from server.process import Process
from server.runtime.metrics import Metrics
from server.runtime.settings import Settings
from storage import limits as storage_limits
from storage.flush.flusher import Flusher
from storage.postgres.records import Records, UnavailableError
from tests.simulation.postgres_links import PostgresLink, PostgresServer
from tests.simulation.redis_links import RedisLink, VirtualRedis
from tests.simulation.virtual import VirtualLoop
from tests.simulation.virtual_redis import VirtualRedisServer

PARTITIONS = 2
CALM_BEAT_MS = 120_000
"""Interval of heartbeats while nothing is wrong.

Proofs of life are given all the same, see ``ServerHost.proof_at``.
"""
FLUSH_STEPS_MAX = 500
"""Batches of one flush. More of them count as an endless loop."""
PACES = {
    # The product polls these every few seconds; here only as often as a poll changes anything.
    (storage_limits, "CHANNEL_POLL_S"): 10_000_000.0,
    (server_limits, "HOLD_EXPIRY_INTERVAL_S"): 60.0,
    (server_limits, "GRANT_EXPIRY_INTERVAL_S"): 900.0,
    (server_limits, "INBOX_INTERVAL_S"): 600.0,
}

_ACTING: contextvars.ContextVar["Host | None"] = contextvars.ContextVar("host", default=None)


def make_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> "asyncio.Task[Any]":
    """A task, noted for the process that it belongs to."""
    task = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    host = context.get(_ACTING) if context is not None else _ACTING.get()
    if host is not None:
        host.tasks[task] = None
        task.add_done_callback(host.forget)
    return task


@contextmanager
def paced() -> Iterator[None]:
    """Runs the product's loops at the pace of a simulation."""
    with ExitStack() as stack:
        for (module, name), value in PACES.items():
            stack.enter_context(mock.patch.object(module, name, value))
        for name in ("PRESENCE_BEAT_MS", "RECONCILE_BEATS"):
            stack.enter_context(
                mock.patch.object(server_limits, name, getattr(server_limits, name))
            )
        yield


class Host:
    """A process: its connections, its tasks, and whether it is alive."""

    def __init__(
        self,
        loop: VirtualLoop,
        redis: VirtualRedisServer,
        postgres: PostgresServer,
        name: str,
        timeout_ms: int,
    ) -> None:
        self.loop = loop
        self.name = name
        self.is_alive = True
        self.failures: list[BaseException | None] = []
        """Errors that ended tasks which no caller awaits: bugs."""
        self.line = RedisLink(redis.carry, timeout_ms)
        self.postgres = PostgresLink(postgres)
        self.line.die = self.postgres.die = self.kill
        self.tasks: dict[asyncio.Task[Any], None] = {}
        """Running tasks, in the order in which they began."""
        self.died: Callable[[Host], None] = lambda host: None
        self._context = contextvars.Context()
        self._context.run(_ACTING.set, self)

    def act(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Runs a request to the process.

        The caller must look at the task's result.
        """
        task = self.loop.create_task(work, context=self._context)
        task.remove_done_callback(self.forget)
        task.add_done_callback(lambda done: self.tasks.pop(done, None))
        return task

    def begin(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Runs background work of the process. An error counts as a failure."""
        return self.loop.create_task(work, context=self._context)

    def do(self, work: Callable[..., Any], *args: Any) -> Any:
        """Calls a function in the context of the process."""
        if _ACTING.get() is self:
            return work(*args)
        return self._context.run(work, *args)

    def kill(self) -> None:
        """SIGKILL: the process stops at once, without a message to others."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.line.cut()
        self.postgres.is_away = True
        for task in list(self.tasks):
            task.cancel()
        self.died(self)

    def forget(self, task: "asyncio.Task[Any]") -> None:
        """Drops a finished task, and keeps its error."""
        self.tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            self.failures.append(task.exception())


class ServerHost(Host):
    """A process that serves sockets."""

    def __init__(
        self,
        loop: VirtualLoop,
        redis: VirtualRedisServer,
        postgres: PostgresServer,
        name: str,
        settings: Settings,
        rates: RateCard,
    ) -> None:
        super().__init__(loop, redis, postgres, name, limits.REDIS_TIMEOUT_MS)
        self.round_trip_ms = 20
        self.began_late = False
        """When this one started, a living process was not heard, or after seconds only."""
        host, _, number = name.partition(".")
        usage = SimpleNamespace(over=PostgresLink.usage)
        with (
            mock.patch.object(server.process, "connect", return_value=VirtualRedis(self.line)),
            mock.patch.object(server.process, "Metrics", return_value=Metrics(with_process=False)),
            mock.patch.object(server.process, "socket", SimpleNamespace(gethostname=lambda: host)),
            mock.patch.object(
                server.process, "secrets", SimpleNamespace(token_hex=lambda size: number)
            ),
            mock.patch.object(server.recovery.lost_sessions, "Usage", usage),
            mock.patch.object(server.recovery.reported_sessions, "Usage", usage),
        ):
            self.process = Process(settings, rates, cast(Records, self.postgres))
        self.reported_minutes: Any = None
        """Accepts reported minutes; set at the first report (``reports``)."""
        # A process here never stalls while it is alive, so no stall detector is needed.
        self.process.stall_detector.start = lambda: None  # type: ignore[method-assign]
        self.registry = self.process.registry
        self.timers = self.process.timers
        self.clock = self.process.clock
        self.ledger = self.process.ledger
        self._phase_ms = sum(name.encode()) * 37 % 1000

    def proof_at(self, now_ms: int) -> int:
        """The process's last proof of life by an instant: one a second."""
        return now_ms - (now_ms - self._phase_ms) % 1000

    def untold(self, versions: Mapping[str, int]) -> list[tuple[str, int]]:
        """Sessions whose last socket left, perhaps unknown to Redis, and when.

        Redis does not know of a leave whose step is not answered yet. And Redis may have lost that
        step: ``versions`` are the sessions' versions there, by their names. The instants are true
        time. Sessions that this process sweeps for others are left out, because other processes
        know of them.
        """
        ahead_ms = self.clock.now() - self.loop.clock.now()
        found = []
        for local in self.registry:
            session = local.meter.session
            if local.node != self.process.node:
                continue
            left_at = [one.at for one in local.meter._intents if one.event is Event.LOST]
            lost_at, version = session.standing.lost_at, session.standing.version
            if lost_at is not None and versions.get(local.key, version) < version:
                left_at.append(lost_at)
            found += [(session.identity.session_id, at - ahead_ms) for at in left_at]
        return found

    def beat_now(self) -> None:
        """Restarts the heartbeat loop, at the pace that is set."""
        membership = self.process.membership
        if membership._beating is not None:
            membership._beating.cancel()
            membership._beating = self.begin(membership._run())

    def kill(self) -> None:
        """SIGKILL."""
        super().kill()
        self.timers.stop()


class FlusherHost(Host):
    """A process that flushes."""

    def __init__(
        self,
        loop: VirtualLoop,
        redis: VirtualRedisServer,
        postgres: PostgresServer,
        name: str,
        pace_ms: int,
    ) -> None:
        super().__init__(loop, redis, postgres, name, storage_limits.FLUSH_SOCKET_TIMEOUT_MS)
        self.pace_ms = pace_ms
        self.flusher = Flusher(
            lambda: VirtualRedis(self.line, legacy_responses=False),
            cast(Records, self.postgres),
            range(PARTITIONS),
            name,
            take_over_idle_ms=0,
        )

    async def run(self) -> None:
        """Flushes batches with pauses; handles failures as the product does."""
        while True:
            await asyncio.sleep(self.pace_ms / 1000)
            await self.flush()

    async def flush(self) -> None:
        """Flushes whatever there is, unless Redis or Postgres is away.

        A step that finds the groups lost reads nothing. The product's ``run`` makes the next step
        at once, with new groups, and this method does the same: after the last flush there is no
        other.
        """
        try:
            for _ in range(FLUSH_STEPS_MAX):
                if not await self.flusher._step(None) and self.flusher._is_prepared:
                    break
            else:
                raise AssertionError(f"{self.name} finds no end")
            self.flusher.failures = 0
        except (UnavailableError, RedisError, OSError) as error:
            self.flusher.failed(error)
