"""Measures the loop's time for requests without a token, one by one.

The server runs in this process on its own engines and partitions; its client is a thread. The time
is processor time of the loop's thread alone, from before a request to after its answer: the time
that the request keeps from all other work.
"""

import asyncio
import http.client
import statistics
import time

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from server.hosting.app import create_app
from server.http.openapi import operation_of
from server.process import Process
from server.runtime.rate_card_file import load_rate_card
from server.transport.push import uvicorn_options
from storage.postgres.records import Records
from tests.benchmarks import machine
from tests.benchmarks.environment import open_environment

OTHERS = (
    "/client/taximeter.js",
    "/pages/style.css",
    "/pages/index.html",
    "/nothing/at/all",
    "/v1/accounts/ann",
)
"""Paths of files, of nothing, and of calls that need a token."""
PARTITIONS = 64
STATUSES = ("200", "400", "401", "404")


def anonymous(app: Starlette) -> list[str]:
    """The paths that anyone may request, as they are routed."""
    routes = [route for route in app.routes if isinstance(route, Route)]
    found = [
        route.path
        for route in routes
        if "GET" in (route.methods or ()) and not route.param_convertors and _is_open(route)
    ]
    return [*found, *OTHERS]


def _is_open(route: Route) -> bool:
    operation = operation_of(route)
    return operation is None or not operation.roles


async def measure(times: int) -> list[str]:
    """Requests each path ``count`` times; returns the lines of the report."""
    lines = [machine.describe(), f"{'':<28}{'median ms':>10}{'most ms':>9}"]
    async with open_environment() as environment:
        settings = environment.settings.model_copy(update={"partitions": PARTITIONS})
        assert settings.database_url is not None
        records = await Records.connect(settings.database_url)
        process = Process(settings, load_rate_card(settings.rates), records)
        app = create_app(process)
        config = uvicorn.Config(
            app, port=0, log_config=None, access_log=False, lifespan="on",
            **uvicorn_options(process.limiter),
        )  # fmt: skip
        server = uvicorn.Server(config)
        served = asyncio.create_task(server._serve())
        try:
            while not server.started:
                await asyncio.sleep(0)
                if served.done():
                    await served
            _use(process, app)
            port = server.servers[0].sockets[0].getsockname()[1]
            for path in anonymous(app):
                taken = await asyncio.to_thread(_ask, asyncio.get_running_loop(), port, path, times)
                lines.append(
                    f"{path:<28}{statistics.median(taken) * 1000:>10.2f}{max(taken) * 1000:>9.2f}"
                )
        finally:
            server.should_exit = True
            await served
            await records.close()
    return lines


def _use(process: Process, app: Starlette) -> None:
    """Fills the metrics of a process with every path and every outcome."""
    for route in app.routes:
        for status in STATUSES:
            process.metrics.requests.observe("GET", getattr(route, "path", "none"), status, 0.01)


def _ask(loop: asyncio.AbstractEventLoop, port: int, path: str, times: int) -> list[float]:
    """Processor time of the loop's thread for each request, in seconds."""

    async def now() -> float:
        return time.thread_time()

    def reading() -> float:
        return asyncio.run_coroutine_threadsafe(now(), loop).result()

    taken = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        for _ in range(times):
            before = reading()
            connection.request("GET", path)
            connection.getresponse().read()
            taken.append(reading() - before)
    finally:
        connection.close()
    return taken
