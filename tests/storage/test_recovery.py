"""A new epoch reveals a loss of Redis's data.

The data are restored once.
"""

from typing import Any

import msgspec
import pytest

from protocol.metering.assertion import Assertion
from protocol.metering.session import Grant
from protocol.metering.states import Phase
from storage.redis.live import Live
from storage.redis.recovery import Restoring
from storage.redis.spending import AccountName
from storage.rows.accounts import AccountRecord, RecentEntry
from storage.rows.months import LimitChange
from tests.protocol.examples import CREDIT, NOW, TERMS, session_of, standing_of
from tests.storage.examples import minute
from tests.storage.outboxes import append

TENANT, ANN = "user:ann", "ann"


@pytest.fixture
def restoring(live: Live) -> Restoring:
    return Restoring(live)


def asserted(**standing: int) -> Assertion:
    """A session that has run for a minute, which was charged."""
    given = {
        "elapsed_ms": 60_000, "settled_ms": 60_000, "charged_micros": CREDIT, "minutes_kept": 1,
        "version": 3, **standing,
    }  # fmt: skip
    session = session_of(
        standing=standing_of(Phase.ACTIVE, **given),
        grant=Grant(125_000, TERMS.cost_micros(65_000, 0)),
    )
    session = msgspec.structs.replace(session, mark="node.1")
    return Assertion(session, (), (("2026-05-01", 0),), present=True)


async def test_a_redis_that_lost_everything_has_no_epoch(live: Live, restoring: Restoring) -> None:
    before = await restoring.look([0, 1])
    assert all(epoch for _, epoch in before.partitions.values())
    await live.redis.flushall()
    assert (await restoring.look([0, 1])).partitions == {0: (None, None), 1: (None, None)}
    assert not await restoring.is_settled(TENANT)
    assert await live.is_recovering(TENANT)
    await restoring.begin_lost_epochs(live.keys.partition(TENANT))
    after = await restoring.look([0, 1])
    epochs = {epoch for _, epoch in after.partitions.values()}
    assert None not in epochs
    assert not epochs & {epoch for _, epoch in before.partitions.values()}
    for partition in (0, 1):
        assert not await restoring.begin_epoch(partition)


async def test_a_session_is_put_back_once_with_what_it_holds(
    live: Live, restoring: Restoring
) -> None:
    status, missing = await restoring.put_back(asserted())
    assert (status, "account" in missing) == ("cold", True)
    await live.load_account(TENANT, ANN, AccountRecord(9 * CREDIT, False, ()), asserting=True)
    for expected in ("ok", "known"):
        status, missing = await restoring.put_back(asserted())
        assert (status, missing) == (expected, ())
        found = await live.account(TENANT, ANN)
        assert found is not None
        # The record lacked the minute: it is charged now, and only once.
        assert (found.balance_micros, found.held_micros) == (8 * CREDIT, 1_083_333)
        assert list(found.lines) == ["chat-1"]
    (session,) = await live.sessions(TENANT, ["chat-1"])
    assert session.standing == asserted().session.standing
    assert [one async for one in live.sessions_of_node("node")] == [(TENANT, "chat-1")]


async def test_an_older_copy_changes_nothing(live: Live, restoring: Restoring) -> None:
    await live.load_account(TENANT, ANN, AccountRecord(9 * CREDIT, False, ()), asserting=True)
    await restoring.put_back(asserted(version=5))
    status, _ = await restoring.put_back(asserted(version=4))
    assert status == "known"
    assert (await live.sessions(TENANT, ["chat-1"]))[0].standing.version == 5


async def test_entries_are_appended_to_an_outbox_that_lacks_them(
    live: Live, restoring: Restoring
) -> None:
    waiting = await append(live.redis, minute(0), partition=0, entry_id="5-0")
    entries = [(waiting, [minute(0)]), ("7-0", [minute(1)]), ("8-0", [minute(2)])]
    ids = await restoring.replay(0, entries)
    assert ids[0] == waiting
    assert await live.redis.xlen(live.keys.outbox(0)) == 3
    # Under their present ids none is missing.
    again = [(entry_id, records) for entry_id, (_, records) in zip(ids, entries, strict=True)]
    assert await restoring.replay(0, again) == ids


async def test_nothing_is_loaded_from_before_entries_were_appended_again(
    live: Live, restoring: Restoring
) -> None:
    partition = live.keys.partition(TENANT)
    account, key = AccountRecord(CREDIT, False, ()), live.keys.member(TENANT, ANN)
    before = await live.waiting(TENANT)
    (entry_id,) = await restoring.replay(partition, [("7-0", [minute(1)])])
    for replayed, loads in ((before.replayed, False), (entry_id, True)):
        how: dict[str, Any] = {"asserting": True, "replayed": replayed}
        assert await live.load_account(TENANT, ANN, account, **how) is loads
        assert await live.load_month(TENANT, key, {"limit": 5}, **how) is loads
    waiting = await live.waiting(TENANT)
    assert (waiting.replayed, waiting.is_replaying) == (entry_id, True)
    await live.redis.xdel(live.keys.outbox(partition), entry_id)
    assert not (await live.waiting(TENANT)).is_replaying


async def test_an_entry_that_waits_is_not_appended_again(live: Live, restoring: Restoring) -> None:
    entry_id = await append(live.redis, minute(0), partition=0, entry_id="5-0")
    assert await restoring.replay(0, [(entry_id, [minute(0)])]) == [entry_id]
    assert not (await live.waiting_in(0)).is_replaying


async def test_entries_of_the_ledger_are_applied_once(live: Live, restoring: Restoring) -> None:
    await live.load_account(TENANT, ANN, AccountRecord(CREDIT, False, ("g1",), position=1))
    entries = [RecentEntry(TENANT, ANN, "g1", CREDIT, 1), RecentEntry(TENANT, ANN, "g2", CREDIT, 2)]
    assert await restoring.apply_entries(AccountName(TENANT, ANN), entries, NOW) == 1
    assert await restoring.apply_entries(AccountName(TENANT, ANN), entries, NOW) == 0
    found = await live.account(TENANT, ANN)
    assert found is not None
    assert found.balance_micros == 2 * CREDIT


async def test_a_limit_that_redis_has_otherwise_is_found(live: Live, restoring: Restoring) -> None:
    changed = LimitChange("org:acme", ANN, 60, allow_overage=False)
    assert await restoring.has_limit(changed)  # its counter is not here
    await live.load_month("org:acme", live.keys.member("org:acme", ANN), {"limit": 5, "overage": 0})
    assert not await restoring.has_limit(changed)
    await live.change_limit("org:acme", ANN, 60, overage=False)
    assert await restoring.has_limit(changed)
    assert not await restoring.has_limit(msgspec.structs.replace(changed, allow_overage=True))
