"""Detects stalls: later reads prove nothing about the present.

A process may be stopped for a while, and its machine too, under all of its sockets. When the
process continues, messages wait in the sockets: pongs to old pings, the farewell of a client that
left long ago. Their time of sending is unknown; it is certainly after the process was last awake.
Therefore they prove life only for the instant when the process was last awake, and then every
socket is asked for a new proof.
"""

import asyncio
from collections.abc import Callable

import structlog

from server import limits as server_limits
from server.runtime.clock import Clock

log = structlog.get_logger()


class StallDetector:
    """Notes when the process was awake.

    After a stall it calls ``woke`` at once, before waiting messages are believed, because peers are
    about to take this process for dead. It calls ``resumed`` a beat later.
    """

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
        self._due_at = 0.0
        self._lag_s = 0.0

    def start(self) -> None:
        """Begins to take notes, on the running event loop."""
        self._awake_at = self._beaten_at = self._clock.now()
        self._arm()

    def take_lag_ms(self) -> int:
        """The event loop's greatest lateness since the last call, in ms."""
        lag_ms, self._lag_s = round(self._lag_s * 1000), 0.0
        return lag_ms

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._due_at = loop.time() + server_limits.STALL_LOOK_S
        self._timer = loop.call_at(self._due_at, self._run)

    def stop(self) -> None:
        """Stops taking notes: from now on every message proves the present."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def proof_at(self, now_ms: int) -> int:
        """The instant up to which a message read at ``now_ms`` proves life."""
        if self._timer is None or now_ms - self._awake_at <= server_limits.STOOD_STILL_MS:
            return now_ms
        return self._awake_at

    def beat(self) -> None:
        """Notes that the process is awake.

        After a stall this takes effect one beat later, when the waiting messages are read.
        """
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
        self._lag_s = max(self._lag_s, asyncio.get_running_loop().time() - self._due_at)
        self._arm()
        self.beat()
