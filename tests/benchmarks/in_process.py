"""A whole server in the measuring process, to measure memory and time.

The server is composed as by ``python -m server web``, serves a real port on real engines, and its
clients are another process.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import uvicorn

from server.hosting.app import create_app
from server.process import Process
from server.runtime.descriptors import raise_descriptor_limit
from server.runtime.garbage import look_rarely
from server.runtime.rate_card_file import load_rate_card
from server.transport.push import PushProtocol, uvicorn_options
from storage.postgres.records import Records
from tests.benchmarks.distant_redis import DistantRedis, distant_redis
from tests.benchmarks.environment import Environment, open_environment
from tests.benchmarks.fleet import Fleet


@dataclass
class InProcessServer:
    """A server in this process, and a fleet of clients in another."""

    environment: Environment
    process: Process
    port: int
    fleet: Fleet
    redis: DistantRedis
    """The server's proxy to Redis, which may be slowed."""


@asynccontextmanager
async def serving(
    rates: str = "", protocol: type[PushProtocol] = PushProtocol, *, is_far: bool = False
) -> AsyncIterator[InProcessServer]:
    """An environment with a flusher, a server here, and an empty fleet.

    ``is_far``: the server reaches Redis through a proxy that can be slowed.
    """
    async with open_environment(rates) as environment, AsyncExitStack() as stack:
        settings = environment.settings
        assert settings.database_url is not None
        records = await Records.connect(settings.database_url)
        assert settings.redis_url is not None
        far = await stack.enter_async_context(distant_redis(settings.redis_url))
        mine = settings.model_copy(update={"redis_url": far.url}) if is_far else settings
        process = Process(mine, load_rate_card(settings.rates), records, raise_descriptor_limit())
        options = {**uvicorn_options(process.limiter), "ws": protocol}
        config = uvicorn.Config(
            create_app(process), log_config=None, access_log=False, lifespan="on", **options
        )
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0), backlog=config.backlog)
        # Without its signal handlers: this process has its own.
        served = asyncio.create_task(server._serve(sockets=[listener]))
        flusher = await environment.start("flush")
        fleet = await Fleet.start(environment.variables)
        try:
            while not server.started:
                await asyncio.sleep(0)
                if served.done():
                    raise RuntimeError("the server did not start")
            look_rarely()
            yield InProcessServer(environment, process, listener.getsockname()[1], fleet, far)
            flusher.check()
        finally:
            await fleet.close()
            server.should_exit = True
            await served
            await records.close()
            await flusher.stop()
