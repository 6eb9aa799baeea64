"""Health of Redis and Postgres, measured at most once a second.

``/readyz`` and ``/metrics`` take no token, and one measurement costs two Redis commands for each
partition. Requests that arrive together wait for one measurement, and requests of the next second
share its result.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from server import limits as server_limits
from server.runtime.clock import ClusterClock
from server.runtime.metrics import Metrics
from server.sessions.registry import SessionRegistry
from storage.postgres.records import Records
from storage.redis.live import LiveError


class Measured(Protocol):
    """The process that is measured."""

    clock: ClusterClock
    registry: SessionRegistry
    metrics: Metrics
    records: Records

    async def redis_answers(self) -> bool:
        """Whether Redis answers now."""

    async def outbox(self) -> tuple[int, int]:
        """Number of entries that wait for Postgres; the oldest's age (ms)."""


class EngineReadings(NamedTuple):
    """One measurement of Redis, Postgres and the outbox."""

    redis_up: bool
    postgres_up: bool
    outbox_entries: int
    oldest_ms: int


class EngineHealth:
    """The measurements of one process; ``now_s`` is monotonic seconds."""

    def __init__(self, process: Measured, now_s: Callable[[], float] | None = None) -> None:
        self.process = process
        self.now_s = now_s or (lambda: asyncio.get_running_loop().time())
        self._last: EngineReadings | None = None
        self._looked_at = 0.0
        self._looking: asyncio.Task[EngineReadings] | None = None

    async def look(self) -> EngineReadings:
        """The last measurement, at most a second old, otherwise a new one."""
        age_s = self.now_s() - self._looked_at
        if self._last is not None and age_s * 1000 < server_limits.ENGINE_HEALTH_KEPT_MS:
            return self._last
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(self._over)
        # A request may be cancelled while others wait for the same measurement.
        return await asyncio.shield(self._looking)

    def _over(self, _: "asyncio.Task[EngineReadings]") -> None:
        self._looking = None

    async def _look(self) -> EngineReadings:
        process = self.process
        metrics = process.metrics
        redis_up = await process.redis_answers()
        postgres_up = await process.records.healthy()
        entries, oldest_ms = 0, 0
        if redis_up:
            try:
                entries, oldest_ms = await process.outbox()
            except LiveError:
                redis_up = False  # Redis went away after the first command
        metrics.redis_up.set(redis_up)
        metrics.redis_step.set(process.clock.stepped_ms / 1000)
        metrics.postgres_up.set(postgres_up)
        metrics.outbox_entries.set(entries)
        metrics.flush_lag.set(oldest_ms / 1000)
        metrics.tally.postgres_retries = process.records.retries
        metrics.tally.unflushed_dropped = process.registry.unflushed.dropped
        self._count_sessions()
        self._last = EngineReadings(redis_up, postgres_up, entries, oldest_ms)
        self._looked_at = self.now_s()
        return self._last

    def _count_sessions(self) -> None:
        registry, metrics = self.process.registry, self.process.metrics
        metrics.sessions.clear()
        for (kind, state), count in registry.counts.by_kind.items():
            metrics.sessions.labels(state, kind).set(count)
        metrics.claims_waiting.set(registry.pipeline.waiting)
