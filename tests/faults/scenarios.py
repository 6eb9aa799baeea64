"""Faults that must not lose a minute: each scenario causes one.

A scenario gets a running testbed, and returns when its fault is over (a killed process has a
successor, an engine is back). It adds to the testbed how long sessions went uncounted, where they
did.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import cast

from redis.asyncio import Redis

from storage.redis.keys import Keys
from storage.redis.outbox import GROUP
from tests.benchmarks.environment import PARTITIONS, ChildProcess
from tests.faults.testbed import POLL_S, WAIT_S, FaultTestbed

FROZEN_S = 8.0
"""Longer than ``NODE_SILENT_MS``, after which peers take a process for dead."""
BEATS_S = 2.0
"""Time in which a process that returns finds its sessions again."""


async def kill_server(testbed: FaultTestbed) -> None:
    """One of three server processes is killed; its clients go elsewhere.

    The signal is that of ``kill -9``; the clients go to the other servers.
    """
    dead = testbed.servers.pop(0)
    await testbed.turn()
    dead.kill()
    await testbed.struck()
    await testbed.fleet.ticking()
    await testbed.serve()
    await testbed.turn()


async def freeze_server(testbed: FaultTestbed) -> None:
    """One of three server processes stalls for 8 s, then continues."""
    frozen = testbed.servers[0].child
    began = time.monotonic()
    frozen.send_signal(signal.SIGSTOP)
    await testbed.struck()
    await asyncio.sleep(FROZEN_S)
    frozen.send_signal(signal.SIGCONT)
    testbed.unserved_s += time.monotonic() - began + BEATS_S


async def leave_frozen_server(testbed: FaultTestbed) -> None:
    """One of three server processes stalls; its clients go elsewhere.

    They go to the other servers. When the process continues, it finds that they left long ago.
    """
    frozen = testbed.servers.pop(0)
    await testbed.turn()
    frozen.child.send_signal(signal.SIGSTOP)
    await asyncio.sleep(FROZEN_S / 2)
    await testbed.fleet.abandon(frozen.port)
    await testbed.struck()
    await testbed.fleet.ticking()
    await asyncio.sleep(FROZEN_S / 2)
    frozen.child.send_signal(signal.SIGCONT)
    testbed.servers.append(frozen)
    await testbed.turn()
    # Its clients were connected to a process that did not count.
    testbed.unserved_s += FROZEN_S / 2 + BEATS_S


async def replace_servers(testbed: FaultTestbed) -> None:
    """Server processes drain in turn, each with a successor.

    This is how a new version is deployed.
    """
    await testbed.struck()
    for old in list(testbed.servers):
        await testbed.serve()
        testbed.servers.remove(old)
        await testbed.turn()
        code = await old.stop()
        assert code == 0, old.log.read_text()[-2_000:]


async def kill_flusher(testbed: FaultTestbed) -> None:
    """One of two flushers dies after a read; the other takes over.

    The flusher dies between reading and writing.
    """
    await testbed.struck()
    testbed.postgres.signal(signal.SIGSTOP)
    try:
        victim = await _one_that_has_read(testbed)
        victim.kill()
        testbed.flushers.remove(victim)
    finally:
        testbed.postgres.signal(signal.SIGCONT)
    await victim.ended()
    await _taken_over(testbed)
    await testbed.flush()


async def _one_that_has_read(testbed: FaultTestbed) -> ChildProcess:
    """A flusher with entries that it has read but not written.

    Postgres is stopped, so the flusher cannot write.
    """
    by_pid = {str(flusher.child.pid): flusher for flusher in testbed.flushers}
    keys = Keys(PARTITIONS)
    async with testbed.client() as redis, asyncio.timeout(WAIT_S):
        while True:
            for partition in range(PARTITIONS):
                pending = await redis.xpending(keys.outbox(partition), GROUP)
                for consumer in pending["consumers"] or ():
                    pid = consumer["name"].decode().rpartition(":")[2]
                    if pid in by_pid:
                        return by_pid[pid]
            await asyncio.sleep(POLL_S)


async def _taken_over(testbed: FaultTestbed) -> None:
    """Waits until no entry is pending for a dead flusher."""
    async with testbed.client() as redis, asyncio.timeout(WAIT_S):
        while await _pending_for_the_dead(testbed, redis):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


async def _pending_for_the_dead(testbed: FaultTestbed, redis: Redis) -> int:
    """The number of entries that dead flushers have read.

    The other flusher takes entries over after half a minute. Short tests age the entries, so that
    they need not wait for it.
    """
    living = {str(flusher.child.pid) for flusher in testbed.flushers}
    found = 0
    for partition in range(PARTITIONS):
        key = Keys(PARTITIONS).outbox(partition)
        for one in await redis.xpending_range(key, GROUP, "-", "+", 1000):
            consumer, name = cast(bytes, one["consumer"]).decode(), one["message_id"]
            if consumer.rpartition(":")[2] in living:
                continue
            found += 1
            if testbed.scale < 1:
                await redis.xclaim(key, GROUP, consumer, 0, [name], idle=60_000, justid=True)
    return found


async def freeze_redis(testbed: FaultTestbed) -> None:
    """Redis stalls for 10 s, and keeps its data."""
    testbed.redis.signal(signal.SIGSTOP)
    await testbed.struck()
    await testbed.sleep(10)
    testbed.redis.signal(signal.SIGCONT)


async def kill_redis(testbed: FaultTestbed) -> None:
    """``kill -9`` of Redis, which returns with the data in its file."""
    testbed.redis.signal(signal.SIGKILL)
    await testbed.struck()


async def stop_redis(testbed: FaultTestbed) -> None:
    """Redis is stopped for 20 s, and started again."""
    async with testbed.redis.away():
        await testbed.struck()
        await testbed.sleep(20)


async def empty_redis(testbed: FaultTestbed) -> None:
    """``FLUSHALL`` empties Redis."""
    async with testbed.client() as redis:
        await redis.flushall()
    await testbed.struck()


async def stop_postgres(testbed: FaultTestbed) -> None:
    """Postgres is stopped for 60 s, and started again."""
    async with testbed.postgres.away():
        await testbed.struck()
        await testbed.sleep(60)


async def kill_postgres(testbed: FaultTestbed) -> None:
    """Postgres stops in the middle of a batch, and recovers.

    It stops at once, and recovers from its log.
    """
    async with testbed.record() as record, testbed.record() as watch:
        transaction = record.transaction()
        await transaction.start()
        await record.execute("LOCK TABLE usage_tracking IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(WAIT_S):
            while not await watch.fetchval(  # noqa: ASYNC110 -- no event reports it
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND query LIKE '%usage_tracking%'"
            ):
                await asyncio.sleep(POLL_S)
        testbed.postgres.signal(signal.SIGQUIT)  # immediate: for written data the same as a crash
        await testbed.struck()


async def empty_redis_and_stop_postgres(testbed: FaultTestbed) -> None:
    """``FLUSHALL`` while Postgres is stopped for 60 s: both at once."""
    async with testbed.postgres.away():
        async with testbed.client() as redis:
            await redis.flushall()
        await testbed.struck()
        await testbed.sleep(60)


Scenario = Callable[[FaultTestbed], Awaitable[None]]

SCENARIOS: dict[str, Scenario] = {
    scenario.__name__.replace("_", "-"): scenario
    for scenario in (
        kill_server,
        freeze_server,
        leave_frozen_server,
        replace_servers,
        kill_flusher,
        freeze_redis,
        kill_redis,
        stop_redis,
        empty_redis,
        stop_postgres,
        kill_postgres,
        empty_redis_and_stop_postgres,
    )
}
