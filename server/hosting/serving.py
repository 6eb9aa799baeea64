"""One server process: uvicorn around a ``Process``, from start to drain."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import structlog
import uvicorn

from server import limits as server_limits
from server.hosting.app import create_app
from server.hosting.metrics_port import scrape_port
from server.hosting.worker import Worker
from server.process import Process
from server.runtime.descriptors import raise_descriptor_limit
from server.runtime.garbage import look_rarely
from server.runtime.rate_card_file import load_rate_card
from server.runtime.settings import ConfigurationError, Settings
from server.transport.push import uvicorn_options
from storage.postgres.records import Records

log = structlog.get_logger()


class GracefulServer(uvicorn.Server):
    """A uvicorn server that drains its clients before it stops."""

    def __init__(
        self, config: uvicorn.Config, process: Process, worker: Worker | None = None
    ) -> None:
        super().__init__(config)
        self.process = process
        self.worker = worker
        self.interrupted = False
        """Ctrl-C stopped the server, not a service manager."""
        self._draining: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Stops serving, as a signal does."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stops at a signal, without raising the signal again.

        uvicorn raises the signal again once it has stopped, which would kill the process before the
        outbox is flushed and the engines are released.
        """
        with super().capture_signals():
            yield
            self.interrupted = signal.SIGINT in self._captured_signals
            self._captured_signals.clear()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts connections, and reports readiness to the supervisor, if there is one."""
        await super().startup(sockets)
        if self.worker is not None:
            self.worker.ready(self.stop)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal; a second Ctrl-C ends the wait for clients."""
        super().handle_exit(sig, frame)
        if self.force_exit and self._draining is not None:
            self._draining.get_loop().call_soon_threadsafe(self._draining.cancel)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the listeners, drains the process, then stops.

        The listeners close first, so that clients that are sent away reconnect to another process.
        The drain sends the clients away and settles their sessions.
        """
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        self._draining = asyncio.create_task(self.process.drain())
        await asyncio.wait([self._draining])
        if not self._draining.cancelled() and self._draining.exception() is not None:
            log.error("not_drained", exc_info=self._draining.exception())
        await super().shutdown(sockets)


async def serve(
    settings: Settings,
    beside: "asyncio.Task[None] | None" = None,
    worker: Worker | None = None,
) -> None:
    """Serves sockets and requests until a signal stops it, or ``beside`` ends.

    A ``worker`` shares its port with others, and stops when their supervisor is gone. Raises
    KeyboardInterrupt after Ctrl-C, when all else is done.
    """
    rates = load_rate_card(settings.rates)
    connections_max = raise_descriptor_limit()
    assert settings.database_url is not None
    records = await Records.connect(settings.database_url)
    process = Process(settings, rates, records, connections_max)
    config = uvicorn.Config(
        create_app(process),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=server_limits.REQUESTS_LEFT_MS // 1000,
        **uvicorn_options(process.limiter),
    )
    server = GracefulServer(config, process, worker)
    if beside is not None:
        beside.add_done_callback(lambda _: server.stop())
    index = 0 if worker is None else worker.index
    try:
        # Started here and not by uvicorn, which shows a failed start as a stack trace.
        await process.start()
        look_rarely()
        log.info(
            "serving",
            url=f"http://{settings.host}:{settings.port}/",
            env=settings.env,
            worker=index,
        )
        async with scrape_port(process, index):
            await server.serve(sockets=None if worker is None else worker.listen(settings))
    except SystemExit:
        raise ConfigurationError(
            f"cannot serve on {settings.host} port {settings.port}: the log says why"
        ) from None
    finally:
        await records.close()
    if server.interrupted:
        raise KeyboardInterrupt
