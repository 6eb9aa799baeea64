"""Calls without a token cost little work, counted and not timed."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from server.api import description
from tests.benchmarks.anonymous import anonymous
from tests.fixtures.server import StartServer, TestServer
from tests.server.api import ask

TIMES = 20


class Work:
    """Work done by requests: documents built, metrics rendered, engines asked."""

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
