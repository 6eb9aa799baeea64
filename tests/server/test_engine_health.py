"""What anybody may ask for without a token costs little work, counted and not timed."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.api import description
from server.recovery.engine_health import EngineHealth
from server.runtime.metrics import Metrics
from server.runtime.request_times import RequestTimes
from storage.redis.live import LiveError
from tests.benchmarks.anonymous import anonymous
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask

TIMES = 20


class Work:
    """What requests had done: documents built, metrics rendered, Redis and Postgres asked."""

    def __init__(self, server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self.server = server
        process = server.process
        self._count(monkeypatch, description, "openapi")
        self._count(monkeypatch, description, "asyncapi")
        self._count(monkeypatch, process.metrics, "render")
        self._count(monkeypatch, process.records, "healthy")
        self._count(monkeypatch, process, "outbox")
        self._count(monkeypatch, process, "redis_answers")
        # A test that takes long measures no more often.
        process.engine_health.now_s = lambda: 1_000.0

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            self.counts[name] += 1
            return call(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)


async def test_every_anonymous_route_does_its_work_once(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(partitions=64)
    work = Work(server, monkeypatch)
    listed = anonymous(server.app)
    assert {"/healthz", "/readyz", "/metrics", "/openapi.json", "/asyncapi.json", "/"} <= {*listed}
    for path in listed:
        work.counts.clear()
        # Half of them together, half one after the other.
        together = [ask(server, "GET", path, None) for _ in range(TIMES)]
        answers = [*await asyncio.gather(*together)]
        answers += [await ask(server, "GET", path, None) for _ in range(TIMES)]
        assert len({answer.status_code for answer in answers}) == 1, path
        renders = work.counts.pop("render", 0)
        assert renders <= (2 * TIMES if path == "/metrics" else 0), path
        done = dict(work.counts)
        assert all(count <= 1 for count in done.values()), (path, done)
        assert not {"openapi", "asyncapi"} & done.keys(), path
        if path not in ("/readyz", "/metrics"):
            assert done == {}, (path, done)


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
    # Draining is said at once.
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


# --- The histogram of requests -----------------------------------------------------------


def test_requests_are_rendered_as_prometheus_reads_them() -> None:
    times = RequestTimes()
    for seconds in (0.0001, 0.001, 0.0011, 0.3, 7.0):
        times.observe("GET", "/a", "200", seconds)
    times.observe("other", 'quo"te\\back\nline', "404", 0.02)
    (family,) = text_string_to_metric_families(times.render().decode())
    (collected,) = times.collect()

    def plain(samples: Any) -> dict[Any, float]:
        return {
            (one.name, *sorted(one.labels.items())): one.value
            for one in samples
            if not one.name.endswith("_created")
        }

    assert plain(family.samples) == plain(collected.samples)
    assert (family.name, family.type) == (collected.name, collected.type)
    by_bound = {
        one.labels["le"]: one.value for one in family.samples
        if one.name.endswith("_bucket") and one.labels["route"] == "/a"
    }  # fmt: skip
    assert (by_bound["0.001"], by_bound["0.0025"], by_bound["+Inf"]) == (2, 3, 5)


def test_only_what_changed_is_rendered_anew() -> None:
    times = RequestTimes()
    for number in range(100):
        times.observe("GET", f"/{number}", "200", 0.01)
    times.render()
    times.observe("GET", "/5", "200", 0.01)
    unrendered = [key for key, series in times._series.items() if not series.text]
    assert unrendered == [("GET", "/5", "200")]
    assert b'_count{method="GET",route="/5",status="200"} 2.0' in times.render()


def test_metrics_are_rendered_with_requests_at_the_end() -> None:
    metrics = Metrics(with_process=False)
    metrics.requests.observe("GET", "/a", "200", 0.01)
    body, _ = metrics.render()
    names = [family.name for family in text_string_to_metric_families(body.decode())]
    assert len(names) == len(set(names))
    assert {family.name for family in metrics.registry.collect()} <= set(names)
