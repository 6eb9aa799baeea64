"""Steps wall clocks under real processes, and checks that no bill changes."""

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.processes import Installation, eventually, open_installation
from tests.fixtures.redis_servers import RedisServer
from tests.fixtures.server import SocketClient
from tests.fixtures.wall_clocks import FakeWallClock

HOUR, DAY = 3_600, 86_400
RATES = """
[kinds.talk]
credits_per_minute = "6"
increment_seconds = [1, 1]
reconnect_grace_seconds = 60
"""
needs_faketime = pytest.mark.skipif(
    FakeWallClock.library() is None, reason="libfaketime is not installed"
)


async def joins(installation: Installation, token: str) -> tuple[SocketClient, dict[str, Any]]:
    """Joins the session with another socket, and returns its first tick."""
    client, _ = await installation.connect(token)
    joined = await client.ask("start", kind="talk", session_id="call-1", tick_ms=250)
    assert joined["state"] == "active"
    return client, await client.until("tick")


async def beyond(client: SocketClient, elapsed_ms: int) -> dict[str, Any]:
    """The next tick with more than this counted time."""
    return await client.until("tick", lambda tick: int(tick["elapsed_ms"]) >= elapsed_ms)


@needs_faketime
async def test_steps_of_redis_and_of_a_process_change_no_bill(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    redis_clock, own_clock = FakeWallClock(tmp_path / "redis"), FakeWallClock(tmp_path)
    async with (
        RedisServer(tmp_path / "redis", environment=redis_clock.environment) as redis,
        open_installation(RATES) as installation,
        contextlib.AsyncExitStack() as stack,
    ):
        installation.environment["TAXIMETER_REDIS_URL"] = redis.url
        await installation.serve("web")
        await installation.start("flush")
        token = await installation.visitor("visitor-ann")
        asked_at = time.monotonic()
        client, tick = await joins(installation, token)

        # After each step of the clock of Redis a process starts, and joins the session.
        for step, wall in ((HOUR, 0), (-DAY, DAY), (0, -DAY), (DAY, 0)):
            redis_clock.step(step)
            own_clock.step(wall)
            newcomer = Installation(installation.data_dir, RATES)
            stack.push_async_callback(newcomer.close_processes)
            newcomer.environment["TAXIMETER_REDIS_URL"] = redis.url
            process = await newcomer.serve("web", **own_clock.environment)
            # Tokens expire by the process's own clock, which is then stepped the other way.
            other, seen = await joins(newcomer, await newcomer.visitor("visitor-ann", "1"))
            own_clock.step(-wall)
            seen = await beyond(other, seen["elapsed_ms"] + 1)
            run_ms = (time.monotonic() - asked_at) * 1000
            assert tick["elapsed_ms"] <= seen["elapsed_ms"] <= run_ms + 250
            tick = await beyond(client, seen["elapsed_ms"])
            assert tick["elapsed_ms"] <= (time.monotonic() - asked_at) * 1000 + 250
            await other.close()
            assert await process.stop(signal.SIGTERM) == 0

        receipt = (await client.ask("stop", session_id="call-1"))["receipt"]
        run_ms = (time.monotonic() - asked_at) * 1000
        assert tick["elapsed_ms"] <= receipt["elapsed_ms"] <= run_ms + 250
        assert receipt["gaps"] == []
        assert round(float(receipt["credits"]) * 10) == -(-receipt["elapsed_ms"] // 1_000)

        async def audited() -> bool:
            async with redis.client() as looked:
                if any([await looked.xlen(f"{{p{number}}}:outbox") for number in range(4)]):
                    return False
            audit = await installation.run("audit")
            return audit.child.returncode == 0

        await eventually(audited)
