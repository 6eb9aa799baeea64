"""Losses of Redis together with a further fault.

The fault is another loss, a slow process, or a late command.
"""

from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from protocol import limits
from protocol.metering.records import EntryPosted
from protocol.metering.states import Event, Phase
from server import limits as server_limits
from server.access.principals import Principal
from server.sessions.pending_requests import PendingRequest
from storage import limits as storage_limits
from storage.postgres.database import UnavailableError
from storage.redis.encoding import session_of
from storage.redis.keys import Keys
from storage.redis.live import LiveError
from storage.redis.spending import AccountName
from tests.simulation.cluster import PARTITIONS, Browser, Cluster, Node
from tests.simulation.people import CREDIT, terms
from tests.simulation.test_recovery import LESSON, Copy, audited, minutes

ANN = AccountName("user:ann", "ann")
KEYS = Keys(PARTITIONS)
PARTITION = KEYS.partition(ANN.tenant)
CHAT = terms("second")


@pytest.fixture
async def second(cluster: Cluster, node: Node) -> Node:
    return await cluster.node()


async def phase_of(redis: Redis, session_id: str) -> Phase | None:
    """The phase of Ann's session in Redis, or None without it."""
    key = KEYS.session(ANN.tenant, session_id)
    fields: list[Any] = await redis.hmget(key, ["identity", "standing", "grant", "final"])
    return session_of(fields).standing.phase if fields[0] else None


async def watch(node: Node, session_id: str) -> Browser:
    """An observer of Ann's session, which does not keep it alive."""
    observer = node.browser("observer")
    principal = Principal("user", "ann", None, "ann", ANN.tenant)
    local = await node.registry.watch(observer, principal, session_id, PendingRequest(observer, 1))
    assert local is not None
    observer.local_sessions[session_id] = local
    return observer


async def away(*_: Any, **__: Any) -> Any:
    raise UnavailableError("Postgres is away")


def spend_entry(cluster: Cluster, entry_id: str, micros: int) -> EntryPosted:
    return EntryPosted(
        tenant=ANN.tenant,
        account_id=ANN.account_id,
        entry_id=entry_id,
        entry_kind="spend",
        amount_micros=-micros,
        at=cluster.clock.now(),
    )


# --- What a process keeps until Postgres has it ------------------------------------------


async def test_slow_process_keeps_entries_lost_before_new_flush(
    cluster: Cluster, node: Node, second: Node
) -> None:
    """A slow process keeps lost entries after others recover and flush.

    The watermark is ahead of entries that were lost.
    """
    await cluster.grant(100 * CREDIT)
    slow = node.browser("slow")
    await slow.start("s1", CHAT)
    await second.browser("quick").start("s2", CHAT)
    await cluster.beat()
    await cluster.advance(90_000)
    await cluster.lose()
    await second.recovery.look()
    await cluster.settle()
    await cluster.redis.set(KEYS.watermark(PARTITION), "9999999999999-0")
    await node.recovery.look()
    await cluster.settle()
    await cluster.recovered()
    await slow.request("s1", Event.STOP)
    await audited(cluster)
    assert await minutes(cluster, "s1") == [60, 30]


async def test_end_is_kept_until_postgres_has_it(cluster: Cluster, node: Node) -> None:
    """A process keeps an end until Postgres has it.

    Postgres is away for longer than Redis keeps an ended session after it was recorded.
    """
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    await cluster.beat()
    await cluster.advance(90_000)
    await browser.request("s1", Event.STOP)
    await cluster.beat()
    await cluster.advance(storage_limits.ENDED_SESSION_KEPT_MS + 1)
    left_ms = await cluster.redis.pttl(KEYS.session(ANN.tenant, "s1"))
    assert left_ms > 2 * storage_limits.ENDED_SESSION_KEPT_MS
    node.recovery.suspect_loss()  # the connection was down for a moment
    await cluster.settle()
    assert (await cluster.account())["balance"] == 8_500_000
    await audited(cluster)
    for _ in range(6):
        await cluster.advance(server_limits.RECOVERED_ENTRIES_MS // 2)
        await cluster.beat()
    assert len(node.registry.unflushed) == 0
    left_ms = await cluster.redis.pttl(KEYS.session(ANN.tenant, "s1"))
    assert 0 < left_ms <= storage_limits.ENDED_SESSION_KEPT_MS


async def test_end_is_put_back_once_without_flush(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    await cluster.advance(90_000)
    await browser.request("s1", Event.STOP)
    await cluster.lose()
    await cluster.beat()
    await cluster.recovered()
    for _ in range(2):
        await cluster.beat()
    for _ in range(2):
        await cluster.advance(storage_limits.ENDED_SESSION_KEPT_MS + 1)
        node.recovery.suspect_loss()
        await cluster.settle()
    await cluster.beat()
    assert (await cluster.account())["balance"] == 8_500_000
    assert len(node.registry.unflushed) == 0  # Postgres has the end, so no process keeps it
    await audited(cluster)


async def test_entry_of_step_with_lost_answer_is_kept(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    commit = node.live.commit

    async def unheard(*asked: Any) -> Any:
        await commit(*asked)
        raise LiveError("the answer was lost")

    with monkeypatch.context() as patched:
        patched.setattr(node.live, "commit", unheard)
        await cluster.advance(60_050)
    await cluster.advance(20_000)
    await cluster.lose()
    await cluster.beat()
    await cluster.recovered()
    await cluster.advance(9_950)
    await browser.request("s1", Event.STOP)
    await audited(cluster)
    assert await minutes(cluster, "s1") == [60, 30]


# --- Finding a loss, again and again --------------------------------------------------


async def test_repeated_loss_is_found_twice_by_all(
    cluster: Cluster, node: Node, second: Node
) -> None:
    """All processes find a repeated loss twice, even with paused sessions.

    A replica takes over, then another one that lags as much. Paused sessions claim nothing.
    """
    await cluster.grant(10 * CREDIT)
    one, other = node.browser("one"), second.browser("other")
    await one.start("s1", CHAT)
    await other.start("s2", CHAT)
    await cluster.beat()
    replica = await Copy.of(cluster.redis)
    for browser, session_id in ((one, "s1"), (other, "s2")):
        await browser.request(session_id, Event.PAUSE)
    for _ in range(2):
        await replica.promote()
        node.recovery.suspect_loss()
        await cluster.settle()
        await second.recovery.look()
        await cluster.settle()
        assert await phase_of(cluster.redis, "s2") is Phase.PAUSED


async def test_redis_is_emptied_again_during_recovery(
    cluster: Cluster, node: Node, second: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    await browser.request("s1", Event.PAUSE)
    await cluster.beat()
    apply_entries = node.recovery._record_catch_up._bring_entries
    again = [True]

    async def emptied(*asked: Any) -> None:
        await apply_entries(*asked)
        if again.pop():
            again.append(False)
            await cluster.redis.flushall()
            await second.recovery.restoring.is_settled(ANN.tenant)  # finds the loss first

    monkeypatch.setattr(node.recovery._record_catch_up, "_bring_entries", emptied)
    await cluster.lose()
    for _ in range(3):
        await cluster.beat()
    assert await phase_of(cluster.redis, "s1") is Phase.PAUSED


async def test_starting_process_hides_loss_from_no_other(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    await browser.request("s1", Event.PAUSE)
    await cluster.beat()
    await cluster.lose()
    late = await cluster.node()
    await late.recovery.begin()  # nothing of the session is in Postgres yet
    await cluster.beat()
    assert await phase_of(cluster.redis, "s1") is Phase.PAUSED


# --- Sessions ---------------------------------------------------------------------------


async def test_observer_puts_nothing_back(cluster: Cluster, node: Node, second: Node) -> None:
    """An observer puts nothing back.

    The process with the sockets is lost together with Redis: no process runs the session.
    """
    await cluster.grant(10 * CREDIT)
    await second.browser().start("s1", CHAT)
    await watch(node, "s1")
    await cluster.advance(90_000)
    await cluster.flush()
    second.is_alive = False
    await second.stop()
    await cluster.lose()
    await cluster.beat()
    await cluster.recovered()
    assert await phase_of(cluster.redis, "s1") is None


async def test_observer_continues_after_loss(cluster: Cluster, node: Node, second: Node) -> None:
    await cluster.grant(10 * CREDIT)
    owner = second.browser()
    await owner.start("s1", CHAT)
    observer = await watch(node, "s1")
    await cluster.lose()
    await cluster.beat()
    await cluster.recovered()
    await cluster.advance(5_000)
    await owner.request("s1", Event.STOP)
    assert observer.all("stopped")


async def test_recorded_minute_with_lost_answer_counts_once(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded minute with a lost answer counts once.

    A claim was made, recorded, and lost with its answer: the process makes it again.
    """
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", LESSON)
    await cluster.advance(30_000)
    commit = node.live.commit

    async def unheard(*asked: Any) -> Any:
        await commit(*asked)
        raise LiveError("the answer was lost")

    with monkeypatch.context() as patched:
        patched.setattr(node.live, "commit", unheard)
        await cluster.advance(30_050)
        await cluster.flush()
        await cluster.lose()
    await cluster.beat()
    await cluster.recovered()
    await cluster.advance(29_950)
    await browser.request("s1", Event.STOP)
    await audited(cluster)
    used: Any = await cluster.redis.hgetall(KEYS.member(ANN.tenant, "ann"))
    assert used[b"used:2026-05-01"] == b"2"


async def test_claims_continue_after_read_only_redis(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica is promoted late: for a moment it refuses every write."""
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    await cluster.advance(55_000)
    await cluster.lose()

    async def refused(*_: Any) -> Any:
        raise ResponseError("READONLY You can't write against a read only replica.")

    with monkeypatch.context() as patched:
        patched.setattr(node.recovery.restoring, "put_back", refused)
        await cluster.advance(7_000)
    await cluster.beat()
    await cluster.recovered()
    await cluster.advance(28_000)
    stopped = await browser.request("s1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 90_000
    await audited(cluster)


# --- Sessions without a process ---------------------------------------------------------


async def test_lost_sessions_are_found_by_other_process(
    cluster: Cluster, node: Node, second: Node
) -> None:
    await cluster.grant(10 * CREDIT)
    await cluster.advance(storage_limits.LOST_SESSIONS_AFTER_MS)
    await cluster.beat()  # the search at the start has found nothing
    await second.browser().start("s1", CHAT)
    await cluster.advance(90_000)
    await cluster.flush()
    await cluster.beat()
    second.is_alive = False
    await second.stop()
    await cluster.lose()
    for _ in range(3):
        await cluster.beat()
        await cluster.advance(storage_limits.LOST_SESSIONS_AFTER_MS)
        for partition in range(PARTITIONS):
            await cluster.redis.delete(KEYS.unsettled(partition))
    await cluster.beat()
    row = await cluster.records.session(ANN.tenant, "s1")
    assert row is not None
    assert (row.state, row.reason) == ("ended", "node_lost")


async def test_lost_sessions_of_tenant_end_together(
    cluster: Cluster, node: Node, second: Node
) -> None:
    """Lost sessions of a tenant end together.

    Ending one session from the record begins no recovery for which the next would wait.
    """
    await cluster.grant(10 * CREDIT)
    for number in range(3):
        await second.browser().start(f"s{number}", CHAT)
    await cluster.advance(60_500)
    await cluster.flush()
    second.is_alive = False
    await second.stop()
    await cluster.lose()
    await node.recovery.restoring.begin_epochs()
    assert await node.recovery._lost_sessions.end() == 3


async def test_process_back_late_overrides_end_as_lost(
    cluster: Cluster, node: Node, second: Node
) -> None:
    """A process that returns late overrides an end as lost.

    A paused session uses no grant, so its process may be cut off for any time.
    """
    await cluster.grant(10 * CREDIT)
    browser = second.browser()
    await browser.start("s1", CHAT)
    await cluster.advance(60_500)
    await browser.request("s1", Event.PAUSE)
    await cluster.flush()
    await cluster.lose()
    await node.recovery.restoring.begin_epochs()
    assert await node.recovery._lost_sessions.end() == 1
    await second.recovery.look()
    await cluster.settle()
    await cluster.recovered()
    await browser.request("s1", Event.RESUME)
    await cluster.advance(30_000)
    stopped = await browser.request("s1", Event.STOP)
    await cluster.flush()
    row = await cluster.records.session(ANN.tenant, "s1")
    assert row is not None
    assert (row.reason, row.elapsed_ms) == ("client", stopped["receipt"]["elapsed_ms"])
    await audited(cluster)


# --- Ends that count ----------------------------------------------------------------------


async def test_end_is_final_after_other_process_went_on(
    cluster: Cluster, node: Node, second: Node
) -> None:
    """A client joins another process on a replica without the end.

    The replica has taken over. That process makes a step before it learns of the end from the
    process that has sent the end to the client.
    """
    await cluster.grant(100 * CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    await cluster.beat()
    await cluster.advance(30_000)
    replica = await Copy.of(cluster.redis)
    await browser.request("s1", Event.STOP)
    await replica.promote()
    await cluster.advance(5_000)
    again = second.browser("again")
    await again.start("s1", CHAT)
    # The process that the client left is asked for the client's proof.
    await cluster.advance(limits.DOUBT_WAIT_MS)
    await again.request("s1", Event.PAUSE)
    assert await phase_of(cluster.redis, "s1") is Phase.PAUSED
    node.recovery.suspect_loss()
    await cluster.settle()
    assert await phase_of(cluster.redis, "s1") is Phase.ENDED
    await cluster.recovered()
    assert "s1" not in again.local_sessions  # the process is notified, and need not ask
    await audited(cluster)
    assert await minutes(cluster, "s1") == [30]
