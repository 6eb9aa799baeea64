"""A process checks Redis and Postgres once a second.

The number of requests that ask changes nothing in that.
"""

import asyncio

from server.recovery.engine_health import EngineHealth
from storage.redis.live import LiveError
from tests.fixtures.server import TestServer
from tests.server.api import ask


async def test_what_is_shared_is_a_second_old_at_most(server: TestServer) -> None:
    process = server.process
    clock = {"now": 5_000.0}
    process.engine_health = engine_health = EngineHealth(process, lambda: clock["now"])
    looks = 0
    answers = process.redis_answers
    is_up = True

    async def counted() -> bool:
        nonlocal looks
        looks += 1
        return is_up and await answers()

    process.redis_answers = counted  # type: ignore[method-assign]
    assert (await ask(server, "GET", "/readyz", None)).status_code == 200
    is_up = False
    clock["now"] += 0.99
    assert (await ask(server, "GET", "/readyz", None)).status_code == 200
    assert looks == 1
    clock["now"] += 0.01
    response = await ask(server, "GET", "/readyz", None)
    assert (response.status_code, response.json()["redis"]) == (503, "down")
    assert "taximeter_redis_up 0.0" in (await ask(server, "GET", "/metrics", None)).text
    assert looks == 2
    # Draining shows at once.
    is_up = True
    clock["now"] += 1
    assert (await engine_health.look()).redis_up
    process.draining = True
    response = await ask(server, "GET", "/readyz", None)
    assert (response.status_code, response.json()["status"]) == (503, "draining")
    process.draining = False


async def test_a_look_outlives_who_asked_for_it(server: TestServer) -> None:
    process = server.process
    process.engine_health = engine_health = EngineHealth(process)
    began, go = asyncio.Event(), asyncio.Event()
    looks = 0

    async def slow() -> bool:
        nonlocal looks
        looks += 1
        began.set()
        await go.wait()
        return True

    process.redis_answers = slow  # type: ignore[method-assign]

    async def lost() -> tuple[int, int]:
        raise LiveError("it went away in between")

    process.outbox = lost  # type: ignore[method-assign]
    first = asyncio.create_task(engine_health.look())
    second = asyncio.create_task(engine_health.look())
    await began.wait()
    first.cancel()
    go.set()
    assert (await second).redis_up is False
    assert looks == 1


async def test_sessions_are_counted_for_the_gauges(server: TestServer) -> None:
    client = await server.login()
    await client.ask("start", kind="chat", session_id="chat-1")
    text = (await ask(server, "GET", "/metrics", None)).text
    assert 'taximeter_sessions{kind="chat",state="active"} 1.0' in text
