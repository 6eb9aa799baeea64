"""What can happen to a system that must not lose a minute: each scenario strikes once.

A scenario gets a stage on which everything runs, and returns when whatever it did is over
(a process that was killed has a successor, an engine is back). It says of itself how long
sessions went uncounted, where they did.
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
from tests.faults.stage import POLL_S, WAIT_S, Stage

FROZEN_S = 8.0
"""A process that stands still for longer than ``NODE_SILENT_MS`` is taken for dead."""
BEATS_S = 2.0
"""What a process that comes back may take to find its sessions again."""


async def kill_server(stage: Stage) -> None:
    """``kill -9`` of one of three server processes; its clients go to the others."""
    dead = stage.servers.pop(0)
    await stage.turn()
    dead.kill()
    await stage.struck()
    await stage.fleet.ticking()
    await stage.serve()
    await stage.turn()


async def freeze_server(stage: Stage) -> None:
    """One of three server processes stands still for 8 s, and goes on as if nothing was."""
    frozen = stage.servers[0].child
    began = time.monotonic()
    frozen.send_signal(signal.SIGSTOP)
    await stage.struck()
    await asyncio.sleep(FROZEN_S)
    frozen.send_signal(signal.SIGCONT)
    stage.unserved_s += time.monotonic() - began + BEATS_S


async def leave_frozen_server(stage: Stage) -> None:
    """One of three server processes stands still; its clients lose patience and go to the
    others. When it goes on, it finds that they have left it long ago."""
    frozen = stage.servers.pop(0)
    await stage.turn()
    frozen.child.send_signal(signal.SIGSTOP)
    await asyncio.sleep(FROZEN_S / 2)
    await stage.fleet.abandon(frozen.port)
    await stage.struck()
    await stage.fleet.ticking()
    await asyncio.sleep(FROZEN_S / 2)
    frozen.child.send_signal(signal.SIGCONT)
    stage.servers.append(frozen)
    await stage.turn()
    # Its clients sat before something that did not count.
    stage.unserved_s += FROZEN_S / 2 + BEATS_S


async def replace_servers(stage: Stage) -> None:
    """A new version: every server process drains, one after the other, and has a successor."""
    await stage.struck()
    for old in list(stage.servers):
        await stage.serve()
        stage.servers.remove(old)
        await stage.turn()
        code = await old.stop()
        assert code == 0, old.log.read_text()[-2_000:]


async def kill_flusher(stage: Stage) -> None:
    """One of two flushers dies between reading and writing; the other takes over."""
    await stage.struck()
    stage.postgres.signal(signal.SIGSTOP)
    try:
        victim = await _one_that_has_read(stage)
        victim.kill()
        stage.flushers.remove(victim)
    finally:
        stage.postgres.signal(signal.SIGCONT)
    await victim.ended()
    await _taken_over(stage)
    await stage.flush()


async def _one_that_has_read(stage: Stage) -> ChildProcess:
    """A flusher that has entries which it has not written yet: Postgres stands still."""
    by_pid = {str(flusher.child.pid): flusher for flusher in stage.flushers}
    keys = Keys(PARTITIONS)
    async with stage.client() as redis, asyncio.timeout(WAIT_S):
        while True:
            for partition in range(PARTITIONS):
                pending = await redis.xpending(keys.outbox(partition), GROUP)
                for consumer in pending["consumers"] or ():
                    pid = consumer["name"].decode().rpartition(":")[2]
                    if pid in by_pid:
                        return by_pid[pid]
            await asyncio.sleep(POLL_S)


async def _taken_over(stage: Stage) -> None:
    """Waits until nothing is pending for a flusher that is gone."""
    async with stage.client() as redis, asyncio.timeout(WAIT_S):
        while await _pending_for_the_dead(stage, redis):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


async def _pending_for_the_dead(stage: Stage, redis: Redis) -> int:
    """How many entries those flushers have read that do not live; half a minute is long in a
    test, so what they have read is aged there."""
    living = {str(flusher.child.pid) for flusher in stage.flushers}
    found = 0
    for partition in range(PARTITIONS):
        key = Keys(PARTITIONS).outbox(partition)
        for one in await redis.xpending_range(key, GROUP, "-", "+", 1000):
            consumer, name = cast(bytes, one["consumer"]).decode(), one["message_id"]
            if consumer.rpartition(":")[2] in living:
                continue
            found += 1
            if stage.scale < 1:
                await redis.xclaim(key, GROUP, consumer, 0, [name], idle=60_000, justid=True)
    return found


async def freeze_redis(stage: Stage) -> None:
    """Redis stands still for 10 s, and knows everything afterwards."""
    stage.redis.signal(signal.SIGSTOP)
    await stage.struck()
    await stage.sleep(10)
    stage.redis.signal(signal.SIGCONT)


async def kill_redis(stage: Stage) -> None:
    """``kill -9`` of Redis; it comes back with what it had written to its file."""
    stage.redis.signal(signal.SIGKILL)
    await stage.struck()


async def stop_redis(stage: Stage) -> None:
    """Redis is stopped for 20 s, and started again."""
    async with stage.redis.away():
        await stage.struck()
        await stage.sleep(20)


async def empty_redis(stage: Stage) -> None:
    """``FLUSHALL``."""
    async with stage.client() as redis:
        await redis.flushall()
    await stage.struck()


async def stop_postgres(stage: Stage) -> None:
    """Postgres is stopped for 60 s, and started again."""
    async with stage.postgres.away():
        await stage.struck()
        await stage.sleep(60)


async def kill_postgres(stage: Stage) -> None:
    """Postgres is stopped at once, in the middle of a batch, and recovers from its log."""
    async with stage.record() as record, stage.record() as watch:
        transaction = record.transaction()
        await transaction.start()
        await record.execute("LOCK TABLE usage_tracking IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(WAIT_S):
            while not await watch.fetchval(  # noqa: ASYNC110 -- nothing tells of it
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND query LIKE '%usage_tracking%'"
            ):
                await asyncio.sleep(POLL_S)
        stage.postgres.signal(signal.SIGQUIT)  # immediate: as a crash, for all that is written
        await stage.struck()


async def empty_redis_and_stop_postgres(stage: Stage) -> None:
    """``FLUSHALL`` while Postgres is stopped for 60 s: both at once."""
    async with stage.postgres.away():
        async with stage.client() as redis:
            await redis.flushall()
        await stage.struck()
        await stage.sleep(60)


Scenario = Callable[[Stage], Awaitable[None]]

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
