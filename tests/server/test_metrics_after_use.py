"""After use, exactly the documented metrics exist."""

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus

from protocol import limits
from server.calls.providers import CallProviders
from server.runtime.metrics import Metrics, OpenClosed
from tests.fixtures.server import API_KEY, TestServer
from tests.server.api import advance, ask
from tests.server.peers import until
from tests.server.test_api_calls import SETTINGS
from tests.test_docs import OPERATING, section, table

ROOT = Path(__file__).parents[2]
OF_TROUBLE = {
    "taximeter_uncovered_seconds_total",
    "taximeter_recalls_total",
    "taximeter_ticks_skipped_total",
    "taximeter_redis_clock_step_seconds",
    "taximeter_postgres_retries_total",
    "taximeter_unflushed_dropped_total",
    "taximeter_outbox_entries",
    "taximeter_flush_lag_seconds",
    "taximeter_claims_waiting",
    "taximeter_unproven_service_seconds_total",
    "taximeter_call_drift_seconds",
    "taximeter_call_ends_total",
}
"""Metrics that stay at 0 while nothing is amiss, or without calls; they exist all the same."""


async def used(server: TestServer) -> None:
    """A server that users, backends and strangers have used."""
    headers = {"Idempotency-Key": "k1"}
    await server.grant(1_000_000)
    for amount in ("0.5", "100"):
        path = "/v1/accounts/ann/spend"
        await ask(
            server, "POST", path, headers={"Idempotency-Key": amount}, json={"amount": amount}
        )
    await ask(server, "POST", "/v1/accounts/ann/holds", headers=headers, json={"amount": "0.1"})
    with pytest.raises(InvalidStatus):
        await server.connect(origin="https://elsewhere.example")
    server.process.limiter.cut("silent")
    client = await server.login()
    await client.ask("pause", session_id="nothing")
    await client.ask("start", kind="chat", session_id="s1", tick_ms=limits.TICK_MS_MIN)
    await client.until("tick")
    # Free time and credits run out.
    advance(server, 120_000)
    await client.until("limit_reached")
    advance(server, 60_000)
    await client.until("stopped")
    await client.close()
    other = await server.login("ben")
    await other.ask("start", kind="chat", session_id="s2")
    stream = await server.stream(server.token("eve"))
    await stream.close()
    await server.stream(server.token("dan"))
    settings = server.process.settings.model_copy(update=SETTINGS)
    providers = CallProviders(settings, server.process.clock.now)
    server.app.state.calls.adapters = providers.adapters
    await ask(server, "POST", "/api/webhooks/stream-call-events", json={"type": "forged"})


async def test_every_documented_metric_is_in_a_scrape_after_use(server: TestServer) -> None:
    await used(server)
    async with asyncio.timeout(10):
        await until(lambda: len(server.process.sockets.connections) == 2)  # ann and eve are gone
    body = (await ask(server, "GET", "/metrics", API_KEY)).text
    found = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(body)
        if family.name.startswith("taximeter_") and not family.name.endswith("_created")
    }
    documented = {row[0] for row in table(section(OPERATING, "Metrics"))}
    assert documented == found.keys()
    still = {name for name, one in found.items() if not any(part.value for part in one.samples)}
    assert still <= OF_TROUBLE


@pytest.mark.parametrize("kind", ["counter", "gauge", "histogram"])
def test_every_metric_is_fed(kind: str) -> None:
    source = (ROOT / "server" / "runtime" / "metrics.py").read_text()
    code = "\n".join(
        path.read_text() for path in (ROOT / "server").rglob("*.py") if path.name != "metrics.py"
    )
    names = re.findall(rf"self\.([a-z_]+) = self\._{kind}\(", source)
    assert names
    # Sockets and streams are counted by one code.
    of_carriers = re.findall(r"OpenClosed\(self\.(\w+), self\.(\w+), self\.(\w+)\)", source)
    shared = {name for three in of_carriers for name in three}
    for part in OpenClosed._fields:
        assert re.search(rf"(of_carrier\[.*\]|opened)\.{part}\.", code), part
    for name in names:
        if name in shared:
            continue
        assert re.search(rf"metrics\.{name}\.(labels|inc|dec|set|observe|time)\(", code), name


def test_every_count_of_the_hot_path_is_fed() -> None:
    code = "\n".join(
        path.read_text() for path in (ROOT / "server").rglob("*.py") if path.name != "metrics.py"
    )
    for name in type(Metrics(with_process=False).tally).__slots__:
        assert re.search(rf"tally\.{name} \+?= ", code), name
