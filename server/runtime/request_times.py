"""How long requests take, by the pattern of their path, for Prometheus.

The histogram of prometheus-client takes 10 microseconds a line to render, and each route, method
and status has fifteen lines: a scrape would hold the loop for tens of milliseconds. This histogram
keeps the text of lines that did not change.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from prometheus_client.metrics_core import HistogramMetricFamily, Metric

NAME: Final = "taximeter_http_request_seconds"
TEXT: Final = "HTTP requests by the pattern of their path"
LABELS: Final = ("method", "route", "status")
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_BOUNDS: Final = (*(repr(bound) for bound in BUCKETS), "+Inf")

Key = tuple[str, str, str]


class _Series:
    __slots__ = ("counts", "sum_s", "text")

    def __init__(self) -> None:
        self.counts = [0] * len(_BOUNDS)
        self.sum_s = 0.0
        self.text = ""
        """The rendered lines; empty when a request was counted since."""


class RequestTimes:
    """A histogram with labels; only the event loop adds to it."""

    def __init__(self) -> None:
        self._series: dict[Key, _Series] = {}

    def observe(self, method: str, route: str, status: str, seconds: float) -> None:
        """Counts a request. The caller bounds the number of labels."""
        key = (method, route, status)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series()
        series.counts[bisect_left(BUCKETS, seconds)] += 1
        series.sum_s += seconds
        series.text = ""

    def collect(self) -> Iterable[Metric]:
        """The histogram as prometheus-client has it (the interface of a collector)."""
        family = HistogramMetricFamily(NAME, TEXT, labels=LABELS)
        for key, series in self._series.items():
            family.add_metric(key, list(_cumulated(series)), series.sum_s)
        yield family

    def render(self) -> bytes:
        """The histogram in Prometheus's text format."""
        lines = [f"# HELP {NAME} {TEXT}\n# TYPE {NAME} histogram\n"]
        for key, series in self._series.items():
            if not series.text:
                series.text = _text(key, series)
            lines.append(series.text)
        return "".join(lines).encode()


def _cumulated(series: _Series) -> Iterable[tuple[str, float]]:
    total = 0
    for bound, count in zip(_BOUNDS, series.counts, strict=True):
        total += count
        yield bound, float(total)


def _text(key: Key, series: _Series) -> str:
    labels = ",".join(
        f'{name}="{_escaped(value)}"' for name, value in zip(LABELS, key, strict=True)
    )
    lines = [
        f'{NAME}_bucket{{le="{bound}",{labels}}} {count}\n' for bound, count in _cumulated(series)
    ]
    lines.append(f"{NAME}_count{{{labels}}} {float(sum(series.counts))}\n")
    lines.append(f"{NAME}_sum{{{labels}}} {series.sum_s!r}\n")
    return "".join(lines)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
