"""Redis has each ledger entry of credits once after a loss."""

import asyncio
from typing import Any

import msgspec
import pytest

from protocol.metering.records import EntryPosted
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.credits.outcomes import HoldGone, Posted, Spent
from storage import limits as storage_limits
from storage.postgres.database import UnavailableError
from storage.postgres.records import Records
from storage.redis.spending import posted_records
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import CREDIT, terms
from tests.simulation.test_recovery import Copy, audited
from tests.simulation.test_recovery_races import ANN, CHAT, KEYS, away, spend_entry


@pytest.fixture
async def second(cluster: Cluster, node: Node) -> Node:
    return await cluster.node()


async def test_ledger_is_read_again_after_loss(cluster: Cluster, node: Node) -> None:
    """The ledger is read again after a loss.

    A spend that Redis made and lost reaches Postgres after the account was loaded.
    """
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", CHAT)
    await cluster.lose()
    await cluster.beat()
    await cluster.recovered()
    node.recovery.suspect_loss()
    await cluster.settle()
    await cluster.records.write([spend_entry(cluster, "late", CREDIT)])
    await cluster.advance(2 * storage_limits.RECOVERY_MS + 1)
    await cluster.beat()
    await cluster.settle()
    await audited(cluster)


async def test_ledger_is_read_when_postgres_is_back(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", terms("second", price_micros=0))
    await cluster.beat()
    replica = await Copy.of(cluster.redis)
    await cluster.advance(1)
    assert isinstance(await node.ledger.spend(ANN, entry_id="e1", micros=CREDIT), Spent)
    await replica.promote()
    with monkeypatch.context() as patched:
        patched.setattr(Records, "_run", away)
        node.recovery.suspect_loss()
        await cluster.settle()
    await cluster.beat()
    assert (await cluster.account())["balance"] == 9 * CREDIT


async def test_many_grants_are_applied_once(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "ENTRIES_REMEMBERED_MIN", 4)
    await node.browser().start("s1", terms("second", price_micros=0))
    for _ in range(9):
        await cluster.grant(CREDIT)
    node.recovery.suspect_loss()
    await cluster.settle()
    assert (await cluster.account())["balance"] == 9 * CREDIT


async def test_applied_entries_are_kept_like_the_account(cluster: Cluster, node: Node) -> None:
    await cluster.grant(CREDIT)
    await node.browser().start("s1", CHAT)
    applied = KEYS.applied(*ANN)
    await cluster.redis.pexpire(applied, 60_000)  # the account was loaded a day ago
    await cluster.grant(CREDIT)
    ttl_ms = await cluster.redis.pttl(applied)
    assert not 0 <= ttl_ms <= server_limits.RECOVERED_ENTRIES_MS


async def test_spend_loaded_from_ledger_is_not_repeated(cluster: Cluster, node: Node) -> None:
    """The repeating process read the ledger a moment too early."""
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", terms("second", price_micros=0))
    entry = spend_entry(cluster, "twice", CREDIT)
    await cluster.advance(1)
    await cluster.records.write([entry])
    node.recovery.suspect_loss()
    await cluster.settle()
    assert (await cluster.account())["balance"] == 9 * CREDIT
    answer = await node.ledger.spending.spend(entry)
    assert answer.status == "repeated"
    assert (await cluster.account())["balance"] == 9 * CREDIT
    assert isinstance(await node.ledger.spend(ANN, entry_id="twice", micros=CREDIT), Spent)


async def test_hold_open_on_replica_is_charged_once(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", terms("second", price_micros=0))
    await node.ledger.hold(ANN, hold_id="h1", micros=4 * CREDIT, ttl_ms=3_600_000)
    await cluster.flush()
    replica = await Copy.of(cluster.redis)
    await cluster.advance(1)
    await node.ledger.post(ANN.tenant, "h1", 3 * CREDIT)
    await replica.promote()
    node.recovery.suspect_loss()
    await cluster.settle()
    posted = await node.ledger.post(ANN.tenant, "h1", 3 * CREDIT)
    assert isinstance(posted, Posted)
    account = await cluster.account()
    assert (account["balance"], account["held"]) == (7 * CREDIT, 0)
    await audited(cluster)


async def test_hold_charged_during_loss_is_given_back(cluster: Cluster, node: Node) -> None:
    """A hold charged during a loss is given back.

    The account is loaded before the end of the hold, made by the lost Redis, is recorded.
    """
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", terms("second", price_micros=0))
    await cluster.beat()
    await node.ledger.hold(ANN, hold_id="h1", micros=4 * CREDIT, ttl_ms=3_600_000)
    await cluster.flush()
    hold = await node.ledger.hold_of(ANN.tenant, "h1")
    assert hold is not None
    await cluster.lose()
    await cluster.beat()
    await cluster.recovered()
    now_ms = cluster.clock.now()
    entry = msgspec.structs.replace(
        spend_entry(cluster, "post:h1", 3 * CREDIT), entry_kind="post", at=now_ms
    )
    ended = msgspec.structs.replace(hold, state="posted", posted_micros=3 * CREDIT)
    await cluster.records.write(posted_records(ended, entry))
    await cluster.advance(2 * storage_limits.RECOVERY_MS + 1)
    await cluster.beat()
    account = await cluster.account()
    assert (account["balance"], account["held"]) == (7 * CREDIT, 0)
    await audited(cluster)


async def _ended(node: Node, end: str, micros: int) -> object:
    if end == "void":
        return await node.ledger.void(ANN.tenant, "h1")
    return await node.ledger.post(ANN.tenant, "h1", micros)


@pytest.mark.parametrize("operation", [None, "film"])
@pytest.mark.parametrize(
    ("first", "second"),
    [(("post", 0), ("post", 3)), (("post", 3), ("post", 1)), (("void", 0), ("post", 3)),
     (("post", 3), ("void", 0)), (("post", 2), ("post", 2))],
)  # fmt: skip
async def test_recorded_end_of_hold_counts(
    cluster: Cluster,
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
    first: tuple[str, int],
    second: tuple[str, int],
    operation: str | None,
) -> None:
    """A hold's second end overlapped the first one's record.

    The second end was under way, and had read the record, when the first one was recorded. Redis
    had lost the first end.
    """
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", terms("second", price_micros=0))
    more: dict[str, Any] = {"operation": operation, "user_id": "ann", "monthly_limit": 2}
    await node.ledger.hold(ANN, hold_id="h1", micros=4 * CREDIT, ttl_ms=3_600_000, **more)
    await cluster.flush()
    replica = await Copy.of(cluster.redis)
    await cluster.advance(1)
    await _ended(node, first[0], first[1] * CREDIT)
    recorded = await cluster.records.hold(ANN.tenant, "h1")
    assert recorded is not None
    await replica.promote()
    with monkeypatch.context() as patched:

        async def early(*_: Any) -> None:
            return None

        patched.setattr(type(node.ledger), "_recorded_end", early)
        answer = await _ended(node, second[0], second[1] * CREDIT)
    if first == second or first[0] == second[0] == "post":
        assert isinstance(answer, Posted)
        assert (answer.posted_micros, answer.repeated) == (first[1] * CREDIT, first != second)
    else:
        assert isinstance(answer, HoldGone)
        assert answer.state == recorded.state
    node.recovery.suspect_loss()
    await cluster.settle()
    await cluster.flush()
    account = await cluster.account()
    assert (account["balance"], account["held"]) == ((10 - first[1]) * CREDIT, 0)
    assert await cluster.records.hold(ANN.tenant, "h1") == recorded
    assert await node.ledger.hold_of(ANN.tenant, "h1") == recorded
    if operation is not None:
        times = await node.ledger.spending.operations(*ANN, recorded.month, operation)
        assert times == (first[0] == "post")
    await audited(cluster)


async def test_second_end_of_hold_without_postgres_is_undone(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold's second end without Postgres is undone.

    Redis's second decision is not confirmed, and is undone when Postgres is back.
    """
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", terms("second", price_micros=0))
    await node.ledger.hold(ANN, hold_id="h1", micros=4 * CREDIT, ttl_ms=3_600_000)
    await cluster.flush()
    replica = await Copy.of(cluster.redis)
    await cluster.advance(1)
    await node.ledger.post(ANN.tenant, "h1", 0)
    await replica.promote()
    with monkeypatch.context() as patched:
        patched.setattr(Records, "_run", away)
        with pytest.raises(ServiceError):
            await node.ledger.post(ANN.tenant, "h1", 3 * CREDIT)
        node.recovery.suspect_loss()
        await cluster.settle()
    assert (await cluster.account())["balance"] == 7 * CREDIT
    await cluster.flush()
    await cluster.advance(2 * storage_limits.RECOVERY_MS + 1)
    await cluster.beat()
    await cluster.settle()
    assert (await cluster.account())["balance"] == 10 * CREDIT
    await audited(cluster)
    posted = await node.ledger.post(ANN.tenant, "h1", 3 * CREDIT)
    assert isinstance(posted, Posted)
    assert (posted.posted_micros, posted.repeated) == (0, True)


async def test_credits_held_before_loss_are_not_spent(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", terms("second", price_micros=0))
    replica = await Copy.of(cluster.redis)
    await node.ledger.hold(ANN, hold_id="h1", micros=9 * CREDIT, ttl_ms=3_600_000)
    await replica.promote()
    node.recovery.suspect_loss()
    await cluster.settle()
    spent = await node.ledger.spend(ANN, entry_id="e1", micros=2 * CREDIT)
    assert not isinstance(spent, Spent)
    await audited(cluster)


def top_up(cluster: Cluster) -> EntryPosted:
    """Five credits for ann."""
    return EntryPosted(
        tenant=ANN.tenant,
        account_id=ANN.account_id,
        entry_id="top-up",
        entry_kind="grant",
        amount_micros=5 * CREDIT,
        at=cluster.clock.now(),
    )


@pytest.fixture
def in_between(cluster: Cluster, second: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process enters a top-up while an account is loaded.

    The top-up comes after the first reading of the account and before the account is in Redis, so
    it does not find the account there.
    """
    load_account = Records.load_account

    async def slow(*asked: Any, **named: Any) -> Any:
        found = await load_account(*asked, **named)
        monkeypatch.setattr(Records, "load_account", load_account)
        await second.ledger.enter(top_up(cluster))
        return found

    monkeypatch.setattr(Records, "load_account", slow)


@pytest.mark.usefixtures("in_between")
async def test_grant_during_load_is_applied(cluster: Cluster, node: Node) -> None:
    await node.browser().start("s1", CHAT)
    assert (await cluster.account())["balance"] == 5 * CREDIT


@pytest.mark.usefixtures("in_between")
async def test_half_loaded_account_is_completed(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half loaded account is completed.

    The account is in Redis, and Postgres went away before it could return what came in since.
    """
    entries_after = Records.entries_after

    async def gone(*_: Any) -> Any:
        monkeypatch.setattr(Records, "entries_after", entries_after)
        raise UnavailableError("away")

    monkeypatch.setattr(Records, "entries_after", gone)
    with pytest.raises(ServiceError):
        await node.loader.account(*ANN)
    assert (await cluster.account())["balance"] == 0
    await cluster.beat()
    assert (await cluster.account())["balance"] == 5 * CREDIT


@pytest.mark.usefixtures("in_between")
async def test_load_is_finished_after_its_caller_has_gone(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries_after, is_there, go_on = Records.entries_after, asyncio.Event(), asyncio.Event()

    async def slow(*asked: Any) -> Any:
        is_there.set()
        await go_on.wait()
        return await entries_after(*asked)

    monkeypatch.setattr(Records, "entries_after", slow)
    first = asyncio.create_task(node.loader.account(*ANN))
    await is_there.wait()
    other = asyncio.create_task(node.loader.account(*ANN))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    go_on.set()
    await other
    assert (await cluster.account())["balance"] == 5 * CREDIT


async def test_old_spends_are_not_charged_again(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while Redis forgets its charges, however long Postgres is away."""
    await cluster.grant(100 * CREDIT)
    for number in range(6):
        assert isinstance(await node.ledger.spend(ANN, entry_id=f"e{number}", micros=CREDIT), Spent)
    await cluster.flush()
    holds_since = Records.holds_since

    async def gone(*_: Any) -> Any:
        raise UnavailableError("away")

    monkeypatch.setattr(Records, "holds_since", gone)
    node.recovery.suspect_loss()
    await cluster.settle()
    await cluster.advance(storage_limits.SPENDS_REMEMBERED_MS)
    assert await cluster.redis.delete(KEYS.spends(*ANN)) == 1
    monkeypatch.setattr(Records, "holds_since", holds_since)
    await cluster.beat()
    assert (await cluster.account())["balance"] == 94 * CREDIT
    await audited(cluster)


async def test_hold_is_restored_once_record_has_caught_up(cluster: Cluster, node: Node) -> None:
    """A forgotten old outbox may contain the end of a hold.

    Redis has forgotten the outbox. The hold is not put back before that end is recorded.
    """
    await cluster.grant(10 * CREDIT)
    await node.browser().start("s1", terms("second", price_micros=0))
    await cluster.flush()
    outbox = KEYS.outbox(KEYS.partition(ANN.tenant))
    await cluster.redis.delete(outbox)
    await cluster.redis.xadd(outbox, {"r": "[]"}, id="1-1")
    replica = await Copy.of(cluster.redis)
    await node.ledger.hold(ANN, hold_id="h1", micros=9 * CREDIT, ttl_ms=3_600_000)
    await replica.promote()
    node.recovery.suspect_loss()
    await cluster.settle()
    assert (await cluster.account())["held"] == 0

    # That holds however long it takes, and when nothing else waits for recovery.
    await cluster.advance(2 * server_limits.RECOVERED_ENTRIES_MS_MAX)
    await cluster.beat()
    assert (await cluster.account())["held"] == 0
    await cluster.redis.xdel(outbox, "1-1")
    await cluster.advance(server_limits.RECORD_BEHIND_INTERVAL_MS)
    await cluster.beat()
    assert (await cluster.account())["held"] == 9 * CREDIT
    await audited(cluster)
