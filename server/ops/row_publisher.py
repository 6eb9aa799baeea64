"""Publishes the rows of this process's sessions while somebody watches.

Otherwise, a change of a session costs one comparison.
"""

import asyncio
import math
from collections.abc import Iterable
from typing import Any

import structlog

from protocol.metering.states import Phase
from server.ops import limits as ops_limits
from server.ops.live_rows import LiveRow, row_of
from server.runtime.clock import Clock
from server.sessions.local_session import LocalSession
from server.sessions.session_table import SessionTable
from storage.redis.live_feed import LiveFeed
from storage.redis.scripts import LiveError
from storage.tasks import end

log = structlog.get_logger()


class RowPublisher:
    """The rows of one process, on their way to the watchers."""

    def __init__(self, table: SessionTable, feed: LiveFeed, clock: Clock) -> None:
        self._sessions = table
        self._feed = feed
        self._clock = clock
        self._watched_until: float = -math.inf
        self._changed: dict[str, None] = {}
        """Keys of sessions whose rows wait; no more than there are, and those that have ended."""
        self._ended: dict[str, bool] = {}
        """Sessions that were cleared here meanwhile, and whether they have ended."""
        self._questions: dict[str, None] = {}
        """Questions for all rows that are not answered yet."""
        self._task: asyncio.Task[None] | None = None
        self.published = 0
        """Rows published so far."""
        table.touched = self.touched

    @property
    def is_watched(self) -> bool:
        """Whether rows are wanted now."""
        return self._clock.now() < self._watched_until

    async def stop(self) -> None:
        """Publishes no more."""
        await end([self._task])

    def touched(self, local: LocalSession) -> None:
        """Notes that a session may show something new, or was cleared here."""
        if not self.is_watched:
            return
        if self._sessions.local_sessions.get(local.key) is local:
            self._ended.pop(local.key, None)
        else:
            self._ended[local.key] = local.meter.session.standing.phase is Phase.ENDED
        self._changed[local.key] = None

    def watched(self) -> None:
        """Notes that rows are wanted; publishes all if they were not before."""
        if not self.is_watched:
            self._add_all()
        self._watched_until = self._clock.now() + ops_limits.INTEREST_MS
        self._run()

    def asked(self, message: dict[str, Any]) -> None:
        """Answers a process that asked for all rows."""
        question = message.get("all")
        if not isinstance(question, str) or len(self._questions) >= ops_limits.QUESTIONS_MAX:
            return
        self._add_all()
        self._questions[question] = None
        self._watched_until = self._clock.now() + ops_limits.INTEREST_MS
        self._run()

    def _add_all(self) -> None:
        self._changed.update(dict.fromkeys(self._sessions.local_sessions))

    def _run(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._publish_while_watched())

    async def _publish_while_watched(self) -> None:
        while self.is_watched:
            try:
                await self.publish()
            except LiveError as error:
                log.warning("rows_not_published", error=str(error))
            except Exception:
                log.exception("rows_not_published")
            await asyncio.sleep(ops_limits.FEED_PAUSE_MS / 1000)
        self._changed.clear()
        self._ended.clear()
        self._questions.clear()

    async def publish(self) -> None:
        """Publishes what waits, in bounded messages. Raises ``LiveError``."""
        changed, self._changed = list(self._changed), {}
        ended, self._ended = self._ended, {}
        questions, self._questions = list(self._questions), {}
        parts = [
            changed[first : first + ops_limits.ROWS_PER_MESSAGE]
            for first in range(0, len(changed), ops_limits.ROWS_PER_MESSAGE)
        ]
        if questions and not parts:
            parts = [[]]
        for number, keys in enumerate(parts, 1):
            message: dict[str, Any] = {"node": self._feed.live.node, "rows": self._rows(keys)}
            message["gone"] = [(key, ended[key]) for key in keys if key in ended]
            if number == len(parts) and questions:
                message["all"] = questions
            try:
                await self._feed.publish(message)
            except LiveError:
                unsent = {key: None for part in parts[number - 1 :] for key in part}
                self._changed = unsent | self._changed
                self._ended = ended | self._ended
                self._questions = dict.fromkeys(questions) | self._questions
                raise
            self.published += len(message["rows"])
            await asyncio.sleep(0)

    def _rows(self, keys: Iterable[str]) -> list[LiveRow]:
        now_ms = self._clock.now()
        found = []
        for key in keys:
            local = self._sessions.local_sessions.get(key)
            row = None if local is None else row_of(local, now_ms)
            if row is not None:
                found.append(row)
        return found
