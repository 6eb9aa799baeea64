"""Health and metrics of the process."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server import limits as server_limits
from server.http.requests import process_of
from server.http.responses import answer


async def healthz(_: Request) -> Response:
    """The process is alive."""
    return answer({"status": "alive"})


async def readyz(request: Request) -> Response:
    """The process can serve, and does not drain.

    Redis, Postgres and the outbox can be reached.
    """
    process = process_of(request)
    look = await process.engine_health.look()
    # A long outbox is reported, but the process stays ready: nothing stops without Postgres.
    ready = look.redis_up and look.postgres_up and not process.draining
    return answer(
        {
            "status": "ready" if ready else "draining" if process.draining else "unavailable",
            "redis": "up" if look.redis_up else "down",
            "postgres": "up" if look.postgres_up else "down",
            "outbox": {
                "entries": look.outbox_entries,
                "oldest_ms": look.oldest_ms,
                "behind": look.oldest_ms > server_limits.OUTBOX_AGE_MS_WARN
                or look.outbox_entries > server_limits.OUTBOX_ENTRIES_WARN,
            },
        },
        200 if ready else 503,
    )


async def metrics(request: Request) -> Response:
    """The metrics of the process, for Prometheus."""
    process = process_of(request)
    await process.engine_health.look()
    body, content_type = process.metrics.render()
    return Response(body, media_type=content_type)


ROUTES = [
    Route("/healthz", healthz),
    Route("/readyz", readyz),
    Route("/metrics", metrics),
]
