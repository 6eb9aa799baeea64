"""Whether this process was awake: what it reads after it stood still proves nothing of now.

A process may be stopped for a while, and its machine too, under all of its sockets. When it
goes on, what came in meanwhile waits in them: pongs to pings of before, the farewell of a
client that left long ago. When those were sent nobody knows; for sure they were after the
process was last awake. So that is the proof of life that they are taken for, and then every
socket is asked for a new one.
"""

import asyncio
from collections.abc import Callable

import structlog

from server import limits as server_limits
from server.runtime.clock import Clock

log = structlog.get_logger()


class StallDetector:
    """Notes when the process was awake. ``resumed`` is called after it has stood still; ``woke``
    at once when that is found out, before what had waited is believed: others are about to
    take this process for dead."""

    def __init__(
        self,
        clock: Clock,
        resumed: Callable[[], None],
        woke: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._resumed = resumed
        self._woke = woke
        self._awake_at = self._beaten_at = clock.now()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to note it, on the running event loop."""
        self._awake_at = self._beaten_at = self._clock.now()
        self._timer = asyncio.get_running_loop().call_later(server_limits.STALL_LOOK_S, self._run)

    def stop(self) -> None:
        """Notes nothing any more: whatever comes is taken for what it seems."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def proof_at(self, now_ms: int) -> int:
        """The instant that something proves which was read at ``now_ms``."""
        if self._timer is None or now_ms - self._awake_at <= server_limits.STOOD_STILL_MS:
            return now_ms
        return self._awake_at

    def beat(self) -> None:
        """The process is awake. After it stood still this is believed a beat later, when
        what had waited in the sockets is read."""
        now_ms = self._clock.now()
        stood_ms = now_ms - self._beaten_at
        self._beaten_at = now_ms
        if stood_ms > server_limits.STOOD_STILL_MS:
            log.warning("stood_still", ms=stood_ms)
            self._woke()
            return
        resumed = now_ms - self._awake_at > server_limits.STOOD_STILL_MS
        self._awake_at = now_ms
        if resumed:
            self._resumed()

    def _run(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(server_limits.STALL_LOOK_S, self._run)
        self.beat()
