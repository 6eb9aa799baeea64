"""The attacked server: the real command plus a path with internal counts.

Two waits are short here, because a run lasts less than a day: those for the next HTTP heartbeat and
for the next reported minute. The server may also have few descriptors, so that a small flood is
enough. All else is as in production.
"""

import asyncio
import ctypes
import gc
import os
import resource
from collections import Counter
from pathlib import Path
from typing import Any

from server import limits as server_limits

server_limits.HEARTBEAT_PROOF_MS = 2_000  # type: ignore[misc]
server_limits.REPORTED_SILENCE_MS_MAX = 2_000  # type: ignore[misc]

from starlette.applications import Starlette  # noqa: E402 -- the limits come first
from starlette.requests import Request  # noqa: E402
from starlette.responses import JSONResponse, Response  # noqa: E402
from starlette.routing import BaseRoute, Route  # noqa: E402

import server.hosting.serving as serving  # noqa: E402
from server.__main__ import commands  # noqa: E402
from server.access.principals import PUBLIC  # noqa: E402
from server.hosting.app import create_app  # noqa: E402
from server.http.routes import Access, declared  # noqa: E402
from server.process import Process  # noqa: E402
from tests.fuzz.cases import INSIDE_PATH  # noqa: E402


def resident_bytes() -> int:
    """The memory of the process, after free memory was given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def lasting_tasks() -> int:
    """The number of tasks, without the two of the flusher.

    Between two writes, the flusher reads or rests in one task, and waits for its end in another.
    """
    names = Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]
    waits, steps = names["Event.wait"], names["Flusher.read"] + names["sleep"]
    return names.total() - min(1, waits) - min(1, steps)


def counts(app: Starlette) -> dict[str, int]:
    """Counts of everything that a peer could leave behind in a process."""
    process: Process = app.state.process
    registry, limiter, sockets = process.registry, process.limiter, process.sockets
    timers = process.timers
    # A cancelled timer keeps its place until its time comes.
    waiting = [
        timer
        for wheel in (timers._deadlines, timers._ticks)
        for timer in wheel
        if not timer.is_cancelled
    ]
    return {
        "tasks": lasting_tasks(),
        "timers": len(waiting),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "connections": limiter.count,
        "admitted": len(limiter.connections),
        "idle": len(limiter.idle),
        "lingering": limiter.lingering,
        "networks": len(limiter._by_network),
        "sockets": len(sockets.connections),
        "users": len(sockets._by_user),
        "addresses": len(sockets._by_network),
        "local_sessions": len(registry.local_sessions),
        "members": sum(len(local.subscribers) for local in registry),
        "accounts": len(list(registry.accounts)),
        "channels": len(registry.accounts.channels),
        "listeners": sum(len(account.listeners) for account in registry.accounts),
        "locks": len(registry._locks),
        "tenants": len(registry.tenants._sessions),
        "claims": registry.pipeline.waiting,
        "heartbeats": len(app.state.heartbeats._presences),
        "silences": len(app.state.reported_minutes._silent_at),
        "reports": app.state.reports,
    }


@declared(Access(roles=PUBLIC))
async def inside(request: Request) -> Response:
    """The counts, and with ``?memory`` the resident bytes.

    These take a moment.
    """
    found: dict[str, Any] = counts(request.app)
    if "memory" in request.query_params:
        found["resident_bytes"] = resident_bytes()
    return JSONResponse(found)


def create_shown_app(process: Process, routes: list[BaseRoute] | None = None) -> Starlette:
    """The application of a process, with the additional path."""
    return create_app(process, [*(routes or []), Route(INSIDE_PATH, inside)])


if __name__ == "__main__":
    descriptors = int(os.environ["FUZZ_DESCRIPTORS"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    vars(serving)["create_app"] = create_shown_app
    commands()
