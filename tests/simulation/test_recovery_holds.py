"""Unreserved holds are not given back after a loss of Redis."""

from typing import Any

import msgspec
import pytest

from server.credits.outcomes import HoldGone, Posted
from storage import limits as storage_limits
from storage.postgres.records import Records
from storage.redis.spending import posted_records
from storage.rows.accounts import HoldRow
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT
from tests.simulation.test_recovery import audited
from tests.simulation.test_recovery_races import ANN, spend_entry


@pytest.fixture
async def unreserved(cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch) -> HoldRow:
    """A hold's end is recorded after the catch-up read it open.

    Redis is empty. So the hold is restored while its account is cold, and the account is loaded
    after the end: it does not reserve the hold.
    """
    await cluster.grant(10 * CREDIT)
    await node.ledger.hold(ANN, hold_id="h1", micros=4 * CREDIT, ttl_ms=3_600_000)
    await cluster.flush()
    hold = await node.ledger.hold_of(ANN.tenant, "h1")
    assert hold is not None
    entry = msgspec.structs.replace(
        spend_entry(cluster, "post:h1", 3 * CREDIT), entry_kind="post", at=cluster.clock.now()
    )
    await cluster.lose()
    holds_since = Records.holds_since

    async def slow(self: Records, *asked: Any) -> tuple[HoldRow, ...]:
        found = await holds_since(self, *asked)
        monkeypatch.setattr(Records, "holds_since", holds_since)
        await cluster.records.write(posted_records(hold, entry))
        return found

    monkeypatch.setattr(Records, "holds_since", slow)
    node.recovery.suspect_loss()
    await cluster.beat()
    await cluster.settle()
    restored = await node.ledger.spending.find_hold(ANN.tenant, "h1")
    assert restored is not None
    assert restored.state == "open"
    await node.loader.account(*ANN, asserting=True)
    return hold


async def caught_up(cluster: Cluster) -> None:
    await cluster.advance(2 * storage_limits.RECOVERY_MS + 1)
    await cluster.beat()
    await cluster.settle()
    account = await cluster.account()
    assert (account["balance"], account.get("held", 0)) == (7 * CREDIT, 0)
    assert account.get("live", 0) == 0
    await audited(cluster)


@pytest.mark.usefixtures("unreserved")
async def test_catch_up_gives_back_only_what_is_reserved(cluster: Cluster) -> None:
    await caught_up(cluster)


@pytest.mark.usefixtures("unreserved")
@pytest.mark.parametrize("has_read_record", [True, False])
@pytest.mark.parametrize("end", ["post", "void", "expire"])
async def test_hold_without_reservation_ends_as_recorded(
    cluster: Cluster,
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    *,
    has_read_record: bool,
) -> None:
    """A hold without a reservation ends as recorded.

    This is so even where the process has read the record before the end was there.
    """
    with monkeypatch.context() as patched:
        if not has_read_record:

            async def early(*_: Any) -> None:
                return None

            patched.setattr(type(node.ledger), "_recorded_end", early)
        if end == "expire":
            await cluster.advance(3_600_000)
            assert not await node.ledger.expire_hold(ANN.tenant, "h1")
        elif end == "post":
            posted = await node.ledger.post(ANN.tenant, "h1", 2 * CREDIT)
            assert isinstance(posted, Posted)
            assert (posted.posted_micros, posted.repeated) == (3 * CREDIT, True)
        else:
            assert await node.ledger.void(ANN.tenant, "h1") == HoldGone("posted")
    assert await node.ledger.spending.find_hold(ANN.tenant, "h1") is None
    await caught_up(cluster)
