"""A port of each process's own, for its health and its metrics.

Of processes that share a port, a random one answers, and a draining one does not answer at all. On
these ports each process answers for itself, until its end.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import structlog
import uvicorn
from starlette.applications import Starlette

from server import limits as server_limits
from server.api import health
from server.process import Process

log = structlog.get_logger()


class _Quiet(uvicorn.Server):
    """A uvicorn server beside the main one, which handles the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles no signal."""
        yield


@contextlib.asynccontextmanager
async def scrape_port(process: Process, index: int) -> AsyncIterator[None]:
    """Serves ``TAXIMETER_METRICS_PORT + index`` inside the block, where that is set.

    A process that replaces another waits for its port until the other is gone.
    """
    base = process.settings.metrics_port
    if base is None:
        yield
        return
    app = Starlette(routes=health.ROUTES)
    app.router.redirect_slashes = False
    app.state.process = process
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        limit_concurrency=server_limits.SCRAPES_MAX,
        timeout_graceful_shutdown=1,
    )
    server = _Quiet(config)
    serving = asyncio.create_task(_serve(server, process.settings.host, base + index))
    try:
        yield
    finally:
        server.should_exit = True
        if not server.started:
            serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def _serve(server: uvicorn.Server, host: str, port: int) -> None:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    waited = False
    while True:
        try:
            listener = socket.create_server(address[:2], family=family)
            break
        except OSError as error:
            if not waited:
                log.warning("metrics_port_taken", port=port, error=str(error))
            waited = True
            await asyncio.sleep(server_limits.METRICS_PORT_RETRY_S)
    log.info("metrics", url=f"http://{host}:{port}/metrics")
    await server.serve(sockets=[listener])
