"""Receipts of calls show both clocks, and what was corrected."""

import pytest

from server.calls.receipts import receipt_of
from storage.postgres.call_clocks import CallClocks
from storage.postgres.records import UnavailableError
from tests.server.call_desk import CallDesk
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT


async def test_receipt_has_the_providers_figure_and_the_entries(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(100 * CREDIT)
    desk = CallDesk(cluster)
    await desk.joined(node)
    await cluster.advance(60_000)
    await desk.left(node, duration_ms=90_000)
    await desk.ended(node)
    end = (await desk.row()).end
    found = await receipt_of(cluster.records, end)
    assert (found.elapsed_ms, found.credits) == (60_000, "1")
    assert (found.provider_ms, found.difference_ms) == (90_000, 30_000)
    assert found.corrections is not None
    (made,) = found.corrections
    assert (made.entry_id, made.credits, made.minutes) == (f"clock:{desk.session_id()}:0", "0.5", 0)
    (figures,) = await desk.meter(node).figures("fake", "run-1")
    assert (figures.session_id, figures.difference_ms) == (desk.session_id(), 30_000)
    assert [one.entry_id for one in figures.corrections] == [made.entry_id]

    async def away(*_: object) -> None:
        raise UnavailableError

    monkeypatch.setattr(CallClocks, "durations", away)
    found = await receipt_of(cluster.records, end)
    assert (found.credits, found.provider_ms, found.corrections) == ("1", None, None)
