"""The supervisor of several server processes on one port.

How it works
------------

Each process listens on a socket of its own (``SO_REUSEPORT``), and the kernel spreads new
connections evenly. The socket of a process that dies or drains is closed, so it gets no more
connections. The supervisor holds the port, without listening, from before the first process starts
until the last one is gone. The supervisor restarts processes that die. At SIGHUP it replaces one
process after the other, each when its successor accepts connections. At SIGTERM or SIGINT all
processes drain. The supervisor itself serves no requests and knows nothing of sessions.

When the supervisor dies, the standard input of each process ends, and the process drains: no
process stays behind on the port.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any

import structlog

from server import limits as server_limits
from server.hosting.worker import READY, addresses_of
from server.runtime.settings import ConfigurationError, Settings

log = structlog.get_logger()


class Child:
    """A process, as its supervisor sees it."""

    def __init__(self, process: asyncio.subprocess.Process, index: int) -> None:
        self.process = process
        self.index = index
        self.began_at = time.monotonic()
        self.is_ready = asyncio.Event()

    @property
    def lived_ms(self) -> float:
        """Milliseconds since the process was started."""
        return (time.monotonic() - self.began_at) * 1000

    async def listen(self) -> None:
        """Waits until the process is ready, then until its output ends."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if line == READY:
                self.is_ready.set()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, if the process still exists."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Supervisor:
    """Keeps ``count`` processes running until a signal stops it."""

    def __init__(self, settings: Settings, count: int) -> None:
        self.settings = settings
        self.count = count
        self.port = settings.port
        self._places: dict[int, Child] = {}
        """The current process of each index. A process that was replaced, and drains, has no entry.
        """
        self._children: set[Child] = set()
        """All living processes."""
        self._failures = [0] * count
        self._stop = asyncio.Event()
        self._number: signal.Signals | None = None
        self._failed: str | None = None
        self._proven = False
        """A process was ready once, so later failures are not caused by the configuration."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._rolling: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Runs until a signal comes, and returns when every process is gone.

        Raises ``ConfigurationError`` when the port is in use or no process ever gets ready, and
        KeyboardInterrupt after Ctrl-C, when all else is done.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._told_to_replace)
        with contextlib.ExitStack() as held:
            self._hold_port(held)
            log.info("supervising", workers=self.count, port=self.port)
            for index in range(self.count):
                self._begin(self._fill(index))
            await self._stop.wait()
            await self._end()
        if self._failed is not None:
            raise ConfigurationError(self._failed)
        if self._number is signal.SIGINT:
            raise KeyboardInterrupt

    def _hold_port(self, held: contextlib.ExitStack) -> None:
        """Keeps the port with sockets that do not listen.

        Such sockets get no connections. Raises ``ConfigurationError`` where another program listens
        on the port already.
        """
        try:
            for family, host in addresses_of(self.settings):
                # A socket with SO_REUSEPORT would not detect another one with it, so the probe has
                # none.
                with socket.create_server((host, self.port), family=family) as probe:
                    self.port = probe.getsockname()[1]
                holder = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                holder.bind((host, self.port))
        except OSError as error:
            where = f"{self.settings.host} port {self.settings.port}"
            raise ConfigurationError(f"cannot serve on {where}: {error}") from None

    # --- Signals -------------------------------------------------------------------

    def _told_to_stop(self, number: signal.Signals) -> None:
        """Handles a stop signal: all processes drain; a second Ctrl-C kills them."""
        if self._number is not None and number is signal.SIGINT:
            for child in self._children:
                child.signal(signal.SIGKILL)
        self._number = self._number or number
        self._stop.set()

    def _told_to_replace(self) -> None:
        if self._rolling is None or self._rolling.done():
            self._rolling = self._begin(self._replace_all())

    # --- Processes ------------------------------------------------------------------

    async def _start(self, index: int) -> Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "server", "worker", str(index)),
            env={**os.environ, "TAXIMETER_PORT": str(self.port)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # The supervisor handles Ctrl-C in a terminal and passes it on once.
            start_new_session=True,
        )
        child = Child(process, index)
        self._children.add(child)
        log.info("worker_started", worker=index, pid=process.pid)
        return child

    async def _fill(self, index: int) -> None:
        """Starts a process for an index, and watches it until its end."""
        child = self._places[index] = await self._start(index)
        if self._stop.is_set():
            child.signal(signal.SIGTERM)
        await self._look_after(child)

    async def _look_after(self, child: Child) -> None:
        """Waits for the end of a process, then replaces it."""
        listening = asyncio.create_task(child.listen())
        ready = asyncio.create_task(child.is_ready.wait())
        await asyncio.wait([listening, ready], return_when=asyncio.FIRST_COMPLETED)
        self._proven = self._proven or child.is_ready.is_set()
        code = await child.process.wait()
        await listening
        ready.cancel()
        self._children.discard(child)
        if self._stop.is_set() or self._places.get(child.index) is not child:
            log.info("worker_stopped", worker=child.index, pid=child.process.pid, code=code)
            return
        log.error("worker_died", worker=child.index, pid=child.process.pid, code=code)
        if not self._proven:
            self._failed = f"a worker ended with {code} before it could serve: the log says why"
            self._stop.set()
            return
        if child.lived_ms >= server_limits.WORKER_PROVEN_MS:
            self._failures[child.index] = 0
        delay_ms = min(
            server_limits.WORKER_RESTART_MS_MAX,
            server_limits.WORKER_RESTART_MS_MIN << min(self._failures[child.index], 16),
        )
        self._failures[child.index] += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_ms / 1000):
                await self._stop.wait()
                return
        self._begin(self._fill(child.index))

    async def _replace_all(self) -> None:
        """Replaces one process after the other.

        The old process drains when its successor accepts connections. When a successor does not get
        ready, the remaining processes stay.
        """
        log.info("replacing", workers=self.count)
        for index in range(self.count):
            successor = await self._start(index)
            looking = self._begin(self._look_after(successor))
            ready = asyncio.create_task(successor.is_ready.wait())
            await asyncio.wait([looking, ready], return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if not successor.is_ready.is_set():
                log.error("not_replaced", worker=index)
                return
            old = self._places.get(index)
            self._places[index] = successor
            self._failures[index] = 0
            if self._stop.is_set():
                return
            if old is not None:
                await self._let_go([old])
        log.info("replaced", workers=self.count)

    async def _let_go(self, children: list[Child]) -> None:
        """Has processes drain, and kills those that remain after ``WORKER_STOP_MS``."""
        for child in children:
            child.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(server_limits.WORKER_STOP_MS / 1000):
                await asyncio.gather(*(child.process.wait() for child in children))
        except TimeoutError:
            for child in children:
                log.error("worker_killed", worker=child.index, pid=child.process.pid)
                child.signal(signal.SIGKILL)

    async def _end(self) -> None:
        await self._let_go(list(self._children))
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
