"""A process's flushers: one, or one for each partition on Redis Cluster.

One ``XREADGROUP`` reads all partitions of a flusher. On Redis Cluster, streams that are read
together must share one slot, so each partition has its own flusher.
"""

import asyncio
import os
import socket
from collections.abc import Sequence

from protocol.metering.records import Record
from storage import limits as storage_limits
from storage.flush.flusher import Flusher
from storage.postgres.records import Records
from storage.redis.cluster import is_cluster
from storage.redis.outbox import connect


async def run_flusher(
    redis_url: str, records: Records, partitions: int, stop: asyncio.Event
) -> None:
    """Flushes all partitions until ``stop`` is set, and then what is left."""
    consumer = f"{socket.gethostname()}:{os.getpid()}"
    if not is_cluster(redis_url):
        flusher = Flusher(lambda: connect(redis_url), records, range(partitions), consumer)
        try:
            await flusher.run(stop)
        finally:
            await flusher.close()
        return
    # Each flusher holds a connection while it waits for entries.
    redis = connect(redis_url, 2 * partitions + storage_limits.FLUSH_CONNECTIONS_MAX)
    turns = _Turns(records)
    try:
        async with asyncio.TaskGroup() as tasks:
            for partition in range(partitions):
                one = Flusher(lambda: redis, turns, (partition,), consumer)
                tasks.create_task(one.run(stop))
    finally:
        await redis.aclose()


class _Turns:
    """The record for many flushers; a bounded number write at once.

    So none of them waits too long for a connection.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._turns = asyncio.Semaphore(storage_limits.FLUSH_WRITES_AT_ONCE)

    async def write(self, records: Sequence[Record]) -> None:
        async with self._turns:
            await self._records.write(records)
