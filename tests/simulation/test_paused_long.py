"""The outbox entry of a long pause's end counts as young."""

import pytest

from protocol.metering.states import Event
from protocol.wire.errors import ServiceError
from storage import limits as storage_limits
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT, terms

HALF_MS = storage_limits.ACCOUNT_IDLE_MS // 2


async def test_end_of_long_pause_blocks_no_account_load(cluster: Cluster, node: Node) -> None:
    """The end of a long pause blocks no load of an account.

    The entry contains the pause's begin, and was taken for an outbox too far behind to load from.
    """
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", terms("second"))
    await cluster.advance(5_000)
    await browser.request("s1", Event.PAUSE)
    await cluster.flush()
    await cluster.advance(HALF_MS + 60_000)
    await browser.request("s1", Event.STOP)
    await node.loader.refuse_behind("user:ann")
    # The outbox is too far behind once the entry itself has waited for that long.
    await cluster.advance(HALF_MS + 60_000)
    with pytest.raises(ServiceError):
        await node.loader.refuse_behind("user:ann")
