"""A presence: how long the provider's word counts."""

import pytest

from protocol.metering.states import Phase
from server.calls import limits as call_limits
from tests.server.call_desk import CallDesk
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT

MINUTE_MS = 60_000


@pytest.fixture
async def desk(cluster: Cluster, node: Node) -> CallDesk:
    await cluster.grant(100 * CREDIT)
    return CallDesk(cluster)


async def test_silence_of_the_provider_is_bounded(desk: CallDesk, node: Node) -> None:
    begin = desk.clock.now()
    await desk.joined(node)
    await desk.cluster.advance(call_limits.CALL_PROOF_MS + 60_000)
    assert await desk.standing(node) == (Phase.SUSPENDED, call_limits.CALL_PROOF_MS)
    # The next word covers the time since.
    await desk.confirm(node, desk.truth())
    await desk.cluster.advance(60_000)
    await desk.confirm(node, desk.truth())
    await desk.left(node)
    await desk.ended(node)
    row = await desk.row()
    assert row.elapsed_ms == desk.clock.now() - begin
    assert await desk.billed() == row.charged_micros


async def test_sweeps_word_renews_the_proof(desk: CallDesk, node: Node) -> None:
    await desk.joined(node)
    for _ in range(3):
        await desk.cluster.advance(call_limits.CALL_PROOF_MS - 1)
        await desk.confirm(node, desk.truth())
    assert (await desk.standing(node))[0] is Phase.ACTIVE
