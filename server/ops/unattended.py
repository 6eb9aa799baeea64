"""Live sessions for which no process speaks, read from Redis.

A process that died leaves its sessions behind until another one sweeps them, and a message about a
session may be lost. So the table is compared with Redis, one partition after the other.
"""

from collections.abc import Iterable

from server.ops import limits as ops_limits
from server.ops.live_rows import stored_row_of
from server.ops.live_table import REDIS, LiveTable
from server.runtime.clock import Clock
from storage import limits as storage_limits
from storage.redis.live_feed import LiveFeed


class UnattendedSessions:
    """Keeps the rows of such sessions in a table."""

    def __init__(self, table: LiveTable, feed: LiveFeed, clock: Clock) -> None:
        self._table = table
        self._feed = feed
        self._clock = clock
        self._missing: dict[str, None] = {}
        self._partition = 0

    def add(self, keys: Iterable[str]) -> None:
        """Looks for these sessions soon: no process speaks for them."""
        for key in keys:
            if len(self._missing) < ops_limits.MISSING_MAX:
                self._missing[key] = None

    async def look(self) -> None:
        """Reads what is missing, and compares the next partition. Raises ``LiveError``."""
        async for keys in self._feed.keys_in(self._partition):
            self.add(key for key in keys if key not in self._table.rows)
        self._partition = (self._partition + 1) % self._feed.live.keys.partitions
        self.add(self._table.keys_of(REDIS))
        keys, self._missing = list(self._missing), {}
        most = storage_limits.CLAIMS_PER_PIPELINE_MAX
        for first in range(0, len(keys), most):
            await self._read(keys[first : first + most])

    async def look_at_all(self) -> None:
        """Compares every partition. Raises ``LiveError``."""
        for _ in range(self._feed.live.keys.partitions):
            await self.look()

    async def _read(self, keys: list[str]) -> None:
        found = {stored.session.key: stored for stored in await self._feed.stored(keys)}
        now_ms = self._clock.now()
        for key in keys:
            stored = found.get(key)
            row = None if stored is None else stored_row_of(stored, now_ms)
            if row is None:
                self._table.gone(REDIS, key, ended=False)
            else:
                self._table.put(REDIS, row)
