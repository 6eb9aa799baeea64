"""The metrics, as Prometheus reads them."""

import re

from prometheus_client.parser import text_string_to_metric_families

from protocol import limits
from server import limits as server_limits
from server.runtime.metrics import CLAIM_BUCKETS, STOP_LATENESS_BUCKETS, Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {
        sample.name
        + "".join(f"/{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_what_is_counted_is_rendered() -> None:
    metrics = Metrics(with_process=False)
    metrics.sockets.set(3)
    metrics.sessions.labels(state="active", kind="chat").inc()
    metrics.errors.labels(code="bad_message").inc()
    metrics.grants_refused.labels(limit="credits").inc(2)
    metrics.stop_lateness.observe(0.004)
    metrics.claim_latency.observe(0.0004)
    metrics.uncovered.inc(1.5)
    metrics.redis_up.set(1)
    found = samples(metrics)
    assert found["taximeter_sockets"] == 3
    assert found["taximeter_sessions/chat/active"] == 1
    assert found["taximeter_errors_total/bad_message"] == 1
    assert found["taximeter_grants_refused_total/credits"] == 2
    assert found["taximeter_stop_lateness_seconds_bucket/0.003"] == 0
    assert found["taximeter_stop_lateness_seconds_bucket/0.005"] == 1
    assert found["taximeter_claim_seconds_count"] == 1
    assert found["taximeter_uncovered_seconds_total"] == 1.5
    assert found["taximeter_redis_up"] == 1


def test_the_hot_path_counts_with_plain_integers() -> None:
    metrics = Metrics(with_process=False)
    metrics.tally.ticks_pushed += 5
    metrics.tally.ticks_skipped += 1
    metrics.tally.bytes_pushed += 600
    metrics.tally.messages_pushed += 2
    found = samples(metrics)
    assert found["taximeter_ticks_pushed_total"] == 5
    assert found["taximeter_ticks_skipped_total"] == 1
    assert found["taximeter_pushed_bytes_total"] == 600
    assert found["taximeter_messages_pushed_total"] == 2


def test_processes_do_not_share_their_metrics() -> None:
    first, second = Metrics(with_process=False), Metrics(with_process=False)
    first.sockets.set(1)
    assert samples(second)["taximeter_sockets"] == 0


def test_the_process_itself_is_measured() -> None:
    assert samples(Metrics())["process_resident_memory_bytes"] > 0


def test_names_follow_prometheus() -> None:
    metrics = Metrics(with_process=False)
    families = list(metrics.registry.collect())
    assert len(families) >= 25
    for family in families:
        assert re.fullmatch(r"taximeter_[a-z_]+", family.name), family.name
        assert family.documentation
        # Base units only.
        assert not re.search(r"_(ms|millis|minutes|percent|kb)(_|$)", family.name), family.name


def test_buckets_stand_around_what_is_promised() -> None:
    assert server_limits.STOP_LATENESS_MS_P99 / 1000 in STOP_LATENESS_BUCKETS
    assert STOP_LATENESS_BUCKETS[-1] == 0.05
    assert CLAIM_BUCKETS[-1] == limits.REDIS_TIMEOUT_MS / 1000
