"""Whether the process lives, whether it can serve, and what it counts."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol import limits
from server.http import answer, process_of
from server.process import Process


async def healthz(_: Request) -> Response:
    """The process is alive."""
    return answer({"status": "alive"})


async def _look(process: Process) -> tuple[bool, bool, int, int]:
    """Looks at what the process stands on, and notes it in the metrics: Redis and Postgres
    up, entries of the outbox, the age of the oldest in milliseconds."""
    redis_up = await process.redis_answers()
    postgres_up = await process.records.healthy()
    entries, age_ms = await process.outbox() if redis_up else (0, 0)
    process.metrics.redis_up.set(redis_up)
    process.metrics.redis_step.set(process.clock.stepped_ms / 1000)
    process.metrics.postgres_up.set(postgres_up)
    process.metrics.outbox_entries.set(entries)
    process.metrics.flush_lag.set(age_ms / 1000)
    return redis_up, postgres_up, entries, age_ms


async def readyz(request: Request) -> Response:
    """Redis, Postgres and the outbox can be reached, and the process is not draining."""
    process = process_of(request)
    redis_up, postgres_up, entries, age_ms = await _look(process)
    # A long outbox is said, but the process can serve: nothing stops without Postgres.
    ready = redis_up and postgres_up and not process.draining
    return answer(
        {
            "status": "ready" if ready else "draining" if process.draining else "unavailable",
            "redis": "up" if redis_up else "down",
            "postgres": "up" if postgres_up else "down",
            "outbox": {
                "entries": entries,
                "oldest_ms": age_ms,
                "behind": age_ms > limits.OUTBOX_AGE_MS_WARN
                or entries > limits.OUTBOX_ENTRIES_WARN,
            },
        },
        200 if ready else 503,
    )


async def metrics(request: Request) -> Response:
    """What the process counts, for Prometheus."""
    process = process_of(request)
    await _look(process)
    process.count_sessions()
    body, content_type = process.metrics.render()
    return Response(body, media_type=content_type)


ROUTES = [
    Route("/healthz", healthz),
    Route("/readyz", readyz),
    Route("/metrics", metrics),
]
