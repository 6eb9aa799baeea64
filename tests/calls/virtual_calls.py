"""Calls of fake providers, counted by real processes in virtual time.

Webhooks arrive over the product's own routes, and its inbox, sweep, meter and settlement work on a
real Redis and Postgres. The provider tries again as providers do: after every answer but a success,
and after none. A process may die between any two of its messages to either engine.
"""

import asyncio
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from starlette.middleware import Middleware

import server.calls.metering
import server.calls.service
from protocol.rate_card import RateCard, parse_rate_card
from server.api import calls as calls_routes
from server.calls.facts import Adapter
from server.calls.livekit import LiveKitAdapter
from server.calls.livekit_rest import LiveKitRest
from server.calls.service import Calls
from server.calls.stream import StreamAdapter
from server.calls.stream_rest import StreamRest
from server.hosting.app import Application
from server.http.middleware import RequestObserver
from tests.calls import fake_livekit, fake_stream
from tests.calls.direct import DirectClient
from tests.calls.fake_calls import FakeCalls, SentWebhook
from tests.calls.fake_livekit import FakeLiveKit
from tests.calls.fake_stream import FakeStream
from tests.simulation.postgres_links import PostgresLink
from tests.simulation.processes import Host, ServerHost
from tests.simulation.redis_links import Mishap
from tests.simulation.virtual_cluster import VirtualCluster

TOLERANCE_MS = 2_000
RETRIES_MS = (1_000, 5_000, 20_000, 60_000)
"""Pauses between the attempts of a provider; the last one again and again."""
ATTEMPTS_MAX = 20
LOOK_MS = 5_000
"""How often the world looks for what a provider has sent by itself."""


def call_rates() -> RateCard:
    """A rate card: a credit a minute; a class counts minutes too."""
    call: dict[str, Any] = {
        "credits_per_minute": "1",
        "increment_seconds": [1, 1],
        "counts_minutes": False,
        "clock": "provider",
        "tolerance_seconds": TOLERANCE_MS // 1000,
        "enforce": "participant",
    }
    return parse_rate_card({"kinds": {"call": call, "class": {**call, "counts_minutes": True}}})


def adapter_of(fake: FakeCalls) -> Adapter:
    """The product's adapter, which asks the fake without a socket."""
    client = DirectClient(fake)
    if isinstance(fake, FakeStream):
        key, secret = fake_stream.API_KEY, fake_stream.SECRET
        return StreamAdapter(secret, StreamRest(client, key, secret, lambda: fake.now_ms))
    assert isinstance(fake, FakeLiveKit)
    key, secret = fake_livekit.API_KEY, fake_livekit.SECRET
    return LiveKitAdapter(key, secret, LiveKitRest(client, key, secret, lambda: fake.now_ms))


class VirtualCalls:
    """A provider, its webhooks, and the processes that count its calls."""

    def __init__(
        self,
        cluster: VirtualCluster,
        fake: FakeCalls,
        chance: random.Random,
        rates: RateCard | None = None,
    ) -> None:
        self.cluster = cluster
        self.fake = fake
        self.chance = chance
        self.adapter = adapter_of(fake)
        cluster.rates = rates or call_rates()
        cluster.prepared = self._prepared
        self.lost: Callable[[SentWebhook], bool] = lambda sent: False
        """Whether the provider's own side loses an event."""
        self.late_ms: Callable[[], list[int]] = lambda: [0]
        """How late each copy of an event arrives."""
        self.answers: Counter[int] = Counter()
        """Statuses of all answers to webhooks; 0: none."""
        self.given_up = 0
        """Events that the provider does not send any more."""
        self.deaths = 0
        self._post: list[tuple[int, int, int, SentWebhook]] = []
        self._numbers = itertools.count()
        self._apps: dict[str, tuple[Calls, Application]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flushers = itertools.count()

    @property
    def now(self) -> int:
        """The current instant."""
        return self.cluster.now

    # --- Processes -----------------------------------------------------------------------

    def _prepared(self, host: ServerHost) -> None:
        """The calls of a process, before its start."""
        records = SimpleNamespace(over=PostgresLink.calls)
        clocks = SimpleNamespace(over=PostgresLink.call_clocks)
        with (
            mock.patch.object(server.calls.service, "CallRecords", records),
            mock.patch.object(server.calls.metering, "CallClocks", clocks),
        ):
            calls = Calls(host.process, {self.adapter.name: self.adapter})
        observed = Middleware(RequestObserver, metrics=host.process.metrics)
        app = Application(routes=calls_routes.ROUTES, middleware=[observed])
        app.state.process, app.state.calls = host.process, calls
        self._apps[host.name] = calls, app

    async def serve(self) -> ServerHost:
        """Starts a process, which applies and sweeps."""
        host = await self.cluster.serve(f"node.{len(self.cluster.servers)}")
        if host.is_alive:
            host.do(self.calls(host).start)
        return host

    def calls(self, host: ServerHost) -> Calls:
        """The calls of a process."""
        return self._apps[host.name][0]

    def flusher(self) -> None:
        """Starts a flusher."""
        self.cluster.flush(f"flusher{next(self._flushers)}", 5_000)

    def kill(self, host: Host) -> None:
        """Kills a process at once."""
        host.kill()

    def kill_at(self, host: ServerHost, where: str, messages: int, *, after: bool) -> None:
        """Kills a process at one of its next messages to an engine."""
        quiet = [Mishap("none")] * messages
        self.cluster.mishap(host, where, [*quiet, Mishap("died_after" if after else "died")])

    # --- Time ----------------------------------------------------------------------------

    async def advance(self, ms: int) -> None:
        """Lets time pass, with the webhooks that arrive meanwhile."""
        until = self.now + ms
        while True:
            self.fake.now_ms = self.now
            self.collect()
            while self._post and self._post[0][0] <= self.now:
                _, _, attempt, sent = heapq.heappop(self._post)
                self._deliver(sent, attempt)
            if self.now >= until:
                break
            due = self._post[0][0] if self._post else until
            await self.cluster.advance(max(0, min(until, due, self.now + LOOK_MS) - self.now))
        self.fake.now_ms = self.now
        await self.cluster.settle()

    def collect(self) -> None:
        """Takes what the provider has sent."""
        for sent in self.fake.take():
            if not self.lost(sent):
                for late_ms in self.late_ms():
                    self._send_at(sent.at_ms + late_ms, sent, 1)

    def _send_at(self, at_ms: int, sent: SentWebhook, attempt: int) -> None:
        heapq.heappush(self._post, (at_ms, next(self._numbers), attempt, sent))

    def _deliver(self, sent: SentWebhook, attempt: int) -> None:
        """Sends a webhook, and again where it is not taken."""
        nodes = self.cluster.nodes
        if not nodes:
            self._answered(sent, attempt, 0)
            return
        host = self.chance.choice(nodes)
        headers = dict(sent.headers)
        if "x-webhook-attempt" in headers:
            headers["x-webhook-attempt"] = str(attempt)
        task = host.act(post(self._apps[host.name][1], sent.path, headers, sent.body))
        self._tasks.add(task)

        def done(task: "asyncio.Task[int]") -> None:
            self._tasks.discard(task)
            is_none = task.cancelled() or task.exception() is not None or not host.is_alive
            self._answered(sent, attempt, 0 if is_none else task.result())

        task.add_done_callback(done)

    def _answered(self, sent: SentWebhook, attempt: int, status: int) -> None:
        self.answers[status] += 1
        if 200 <= status < 300:
            return
        if attempt >= ATTEMPTS_MAX:
            self.given_up += 1
            return
        pause_ms = RETRIES_MS[min(attempt, len(RETRIES_MS)) - 1]
        self._send_at(self.now + pause_ms, sent, attempt + 1)

    async def settled(self, within_ms: int = 3_600_000) -> None:
        """Waits until everything is applied, swept and recorded."""
        until = self.now + within_ms
        while True:
            await self.advance(LOOK_MS)
            waiting = self.fetch(
                "SELECT (SELECT count(*) FROM call_facts WHERE state = 'waiting')"
                " + (SELECT count(*) FROM call_sessions WHERE sweep_at IS NOT NULL) AS waiting"
            )[0]["waiting"]
            if not waiting and not self._post and not self._tasks:
                break
            assert self.now < until, self.fetch("SELECT * FROM call_sessions")
        await self.advance(30_000)
        for host in self.cluster.flushers:
            if host.is_alive:
                await self.cluster.finished(host.act(host.flush()))

    def fetch(self, query: str, *arguments: Any) -> list[Any]:
        """Rows of Postgres."""
        return self.cluster.postgres.fetch(query, *arguments)


async def post(app: Application, path: str, headers: dict[str, str], body: bytes) -> int:
    """The status of a request to an application."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "client": ("192.0.2.1", 443), "server": ("127.0.0.1", 80),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status
