"""The figures of a process, which Redis adds up each second."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog

from server.ops import limits as ops_limits
from server.process import Process
from storage.redis.live_feed import LiveFeed
from storage.redis.scripts import LiveError
from storage.tasks import end

log = structlog.get_logger()


class Sampler:
    """Writes this process's figures, one command a second.

    ``wanted`` is called when the answer says that rows are wanted.
    """

    def __init__(self, process: Process, feed: LiveFeed, wanted: Callable[[], None]) -> None:
        self._process = process
        self._feed = feed
        self._wanted = wanted
        self._before: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to write figures."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Writes no more; the last figures count until they are too old."""
        await end([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self.sample()
            except LiveError as error:
                log.debug("figures_not_written", error=str(error))
            except Exception:
                log.exception("figures_not_written")
            await asyncio.sleep(ops_limits.SAMPLE_MS / 1000)

    async def sample(self) -> None:
        """Writes the figures of now. Raises ``LiveError``."""
        if await self._feed.sample(self.figures(), self._process.clock.now()):
            self._wanted()

    def figures(self) -> dict[str, Any]:
        """What this process serves, and what happened since the last call."""
        process, counts = self._process, self._process.registry.counts
        tally, sockets = process.metrics.tally, process.sockets
        sessions: dict[str, dict[str, int]] = {}
        for (kind, state), count in counts.by_kind.items():
            sessions.setdefault(kind, {})[state] = count
        totals = Counter(
            pushes=tally.ticks_pushed + tally.messages_pushed,
            started=counts.started,
            rejoined=counts.rejoined,
        )
        since, self._before = totals - self._before, totals
        closed = Counter(sockets.closed)
        newly_closed, self._closed = closed - self._closed, closed
        return {
            "sessions": sessions,
            "sockets": sockets.open["websocket"],
            "streams": sockets.open["stream"],
            "burn_micros": counts.burn_micros,
            "lag_ms": process.stall_detector.take_lag_ms(),
            "pushes": since["pushes"],
            "started": since["started"],
            "rejoined": since["rejoined"],
            "closed": dict(newly_closed),
        }
