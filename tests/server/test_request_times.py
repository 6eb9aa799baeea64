"""The histogram of requests, as Prometheus reads it."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from server.runtime.metrics import Metrics
from server.runtime.request_times import RequestTimes


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
