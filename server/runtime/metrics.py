"""The metrics of a process, for Prometheus.

Names follow Prometheus: base units in the name (seconds), ``_total`` for counters. One
:class:`Metrics` belongs to one process and has its own registry, so tests can have several. Counts
of each push are plain integers in :class:`Tally`, read at the scrape, because a counter of
prometheus-client takes a lock each time.
"""

from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from server.runtime.request_times import RequestTimes

# The promise is 10 ms at p99: the buckets are dense around it, and end where it is broken.
STOP_LATENESS_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05)
# A claim takes half a millisecond; its deadline is limits.REDIS_TIMEOUT_MS.
CALL_DRIFT_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 3600)
CLAIM_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.5)


class Tally:
    """Counts of the hot path.

    Only the event loop adds to them: ``tally.ticks_pushed += 1``.
    """

    __slots__ = (
        "bytes_pushed", "messages_pushed", "postgres_retries", "ticks_pushed", "ticks_skipped",
        "unflushed_dropped",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ticks_pushed = 0
        self.ticks_skipped = 0
        self.messages_pushed = 0
        self.bytes_pushed = 0
        self.postgres_retries = 0
        self.unflushed_dropped = 0

    def collect(self) -> Iterable[Metric]:
        """The counts as Prometheus wants them (the interface of a collector)."""
        for name, text, value in (
            ("ticks_pushed", "Ticks written to a socket", self.ticks_pushed),
            ("ticks_skipped", "Ticks skipped for a slow socket", self.ticks_skipped),
            ("messages_pushed", "Messages other than ticks", self.messages_pushed),
            ("pushed_bytes", "Bytes of frames written to sockets", self.bytes_pushed),
            (
                "postgres_retries",
                "Statements that were sent to Postgres again",
                self.postgres_retries,
            ),
            (
                "unflushed_dropped",
                "Entries on their way to Postgres that only Redis keeps",
                self.unflushed_dropped,
            ),
        ):
            yield CounterMetricFamily(f"taximeter_{name}", text, value=value)


class OpenClosed(NamedTuple):
    """The metrics of sockets of one kind of carrier."""

    open: Gauge
    opened: Counter
    closed: Counter


class AllMetrics:
    """All metrics of a process, for readers that do not render them."""

    def __init__(self, *collectors: Collector) -> None:
        self.collectors = collectors

    def collect(self) -> Iterable[Metric]:
        """Every family, as prometheus-client has it."""
        for collector in self.collectors:
            yield from collector.collect()


class Metrics:
    """Every metric of one process.

    Counters and gauges are attributes, updated at their source.
    """

    def __init__(self, *, with_process: bool = True) -> None:
        """``with_process`` adds memory, descriptors, processor time and garbage collection."""
        self._rendered = CollectorRegistry(auto_describe=False)
        if with_process:
            ProcessCollector(registry=self._rendered)
            PlatformCollector(registry=self._rendered)
            GCCollector(registry=self._rendered)
        self.requests = RequestTimes()
        self.registry = AllMetrics(self._rendered, self.requests)
        self.tally = Tally()
        self._rendered.register(self.tally)
        self._add_connections()
        self._add_sessions()
        self._add_claims()
        self._add_record()
        self.call_events = self._counter(
            "call_events_total", "Events of call providers received", "provider", "outcome"
        )

    def render(self) -> tuple[bytes, str]:
        """The answer to ``GET /metrics``: the body and its content type."""
        return generate_latest(self._rendered) + self.requests.render(), CONTENT_TYPE_LATEST

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"taximeter_{name}", text, labels, registry=self._rendered)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"taximeter_{name}", text, labels, registry=self._rendered)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"taximeter_{name}", text, labels, buckets=buckets, registry=self._rendered
        )

    def _add_connections(self) -> None:
        self.sockets = self._gauge("sockets", "Open WebSockets")
        self.sockets_opened = self._counter("sockets_opened_total", "WebSockets accepted")
        self.sockets_closed = self._counter("sockets_closed_total", "WebSockets closed", "code")
        self.streams = self._gauge("streams", "Open event streams")
        self.streams_opened = self._counter("streams_opened_total", "Event streams begun")
        self.streams_closed = self._counter(
            "streams_closed_total", "Event streams ended, by the code of their close event", "code"
        )
        self.of_carrier = {
            "websocket": OpenClosed(self.sockets, self.sockets_opened, self.sockets_closed),
            "stream": OpenClosed(self.streams, self.streams_opened, self.streams_closed),
        }
        self.connections = self._gauge("connections", "Open connections, WebSockets included")
        self.connections_cut = self._counter(
            "connections_cut_total", "Connections refused or cut, by the reason", "why"
        )
        self.origins_refused = self._counter(
            "origins_refused_total", "Refused handshakes and preflights of pages of other origins"
        )
        self.messages_received = self._counter(
            "messages_received_total", "Requests read from sockets", "type"
        )
        self.errors = self._counter("errors_total", "Requests answered with an error", "code")

    def _add_sessions(self) -> None:
        self.sessions = self._gauge("sessions", "Sessions served here", "state", "kind")
        self.notices = self._counter("notices_total", "Notices recorded")
        self.sessions_ended = self._counter("sessions_ended_total", "Sessions ended", "reason")
        self.stop_lateness = self._histogram(
            "stop_lateness_seconds",
            "From the instant a limit was reached to its limit_reached in the socket",
            STOP_LATENESS_BUCKETS,
        )
        self.uncovered = self._counter(
            "uncovered_seconds_total", "Time counted without a grant while Redis was away"
        )
        self.call_drift = self._histogram(
            "call_drift_seconds",
            "Difference of a provider's and our figure for a participant's time, either way",
            CALL_DRIFT_BUCKETS,
            "provider",
        )
        self.call_ends = self._counter(
            "call_ends_total", "Requests to providers to end a call at a limit", "outcome"
        )
        self.unproven = self._counter(
            "unproven_service_seconds_total",
            "Time for which ticks went out after the last proof of life of a client that was lost",
        )

    def _add_claims(self) -> None:
        self.claims = self._counter("claims_total", "Claims answered", "outcome")
        self.claim_latency = self._histogram(
            "claim_seconds", "From a claim's sending to its answer", CLAIM_BUCKETS
        )
        self.claims_waiting = self._gauge("claims_waiting", "Claims not answered yet")
        self.grants_refused = self._counter(
            "grants_refused_total", "Grants refused or cut short, by what bound", "limit"
        )
        self.recalls = self._counter("recalls_total", "Recalls that freed something")
        self.spends = self._counter("spends_total", "Spends and holds decided", "outcome")
        self.redis_up = self._gauge("redis_up", "1 while Redis answers")
        self.redis_step = self._gauge(
            "redis_clock_step_seconds", "How far Redis's clock was stepped away from cluster time"
        )

    def _add_record(self) -> None:
        self.outbox_entries = self._gauge("outbox_entries", "Entries that wait for Postgres")
        self.flush_lag = self._gauge("flush_lag_seconds", "Age of the oldest entry that waits")
        self.postgres_up = self._gauge("postgres_up", "1 while Postgres answers")
