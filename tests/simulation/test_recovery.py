"""Redis returns without some data, and processes put the data back.

Redis lacks all data or only its last writes.
"""

from typing import Any

import pytest
from redis.asyncio import Redis

from protocol.metering.states import Event
from protocol.metering.terms import Terms
from protocol.wire.errors import ServiceError
from server.credits.outcomes import Spent
from storage import limits as storage_limits
from storage.audit import audit_live, audit_record
from storage.postgres.database import UnavailableError
from storage.postgres.records import Records
from storage.redis.cluster import ClusterRedis
from storage.redis.keys import Keys
from storage.redis.spending import AccountName
from tests.simulation.cluster import PARTITIONS, Cluster, Node
from tests.simulation.people import CREDIT, terms

ANN = AccountName("user:ann", "ann")
KEYS = Keys(PARTITIONS)
MINUTE_MS = 60_000
LESSON = terms("lesson", counts_minutes=True)


async def audited(cluster: Cluster) -> None:
    """Everything is recorded, and adds up, in Postgres and in Redis."""
    await cluster.flush()
    assert await audit_record(cluster.records) == ()
    compared = await audit_live(cluster.nodes[0].live, cluster.records)
    assert (compared.findings, compared.restless) == ((), 0)


async def minutes(cluster: Cluster, session_id: str, tenant: str = "user:ann") -> list[int]:
    """The seconds of a session's minutes in Postgres."""
    rows = await cluster.records._run(
        lambda connection: connection.fetch(
            "SELECT seconds FROM usage_tracking WHERE tenant = $1 AND session_id = $2"
            " ORDER BY minute",
            tenant,
            session_id,
        )
    )
    return [row["seconds"] for row in rows]


class Copy:
    """Redis's data at an instant, as a lagging replica has it."""

    def __init__(self, redis: Redis, keys: dict[bytes, tuple[Any, int]]) -> None:
        self.redis = redis
        self.keys = keys

    @classmethod
    async def of(cls, redis: Redis) -> "Copy":
        """A copy of all data."""
        names: list[Any] = await redis.keys("*")
        return cls(
            redis, {name: (await redis.dump(name), await redis.pttl(name)) for name in names}
        )

    async def promote(self) -> None:
        """The replica takes over, and everything written after the copy is lost.

        It does so at once: a process sees all keys before, or all keys of the copy. A step between
        two keys would be half in the copy, as no replica has it.
        """
        if isinstance(self.redis, ClusterRedis):
            await self.redis.flushall()
            await self._restore(self.redis)  # a transaction concerns one master only
            return
        async with self.redis.pipeline(transaction=True) as transaction:
            transaction.flushall()
            await self._restore(transaction)
            await transaction.execute()

    async def _restore(self, redis: Redis) -> None:
        for name, (value, ttl_ms) in self.keys.items():
            # Writes during the failover are lost too.
            await redis.restore(name, max(0, ttl_ms), value, replace=True)


@pytest.fixture
async def second(cluster: Cluster, node: Node) -> Node:
    return await cluster.node()


@pytest.mark.parametrize("flushed", [True, False])
@pytest.mark.parametrize("kind", [terms("second"), LESSON], ids=["chat", "lesson"])
async def test_sessions_continue_on_empty_redis(
    cluster: Cluster, node: Node, second: Node, kind: Terms, *, flushed: bool
) -> None:
    await cluster.grant(100 * CREDIT)
    one, other = node.browser("one"), second.browser("other")
    await one.start("s1", kind)
    await other.start("s2", kind)
    await cluster.advance(150_000)
    if flushed:
        await cluster.flush()
    await cluster.advance(45_000)
    await cluster.lose()
    await cluster.beat()
    await audited(cluster)
    await cluster.recovered()
    await cluster.advance(45_000)
    for browser, session_id in ((one, "s1"), (other, "s2")):
        stopped = await browser.request(session_id, Event.STOP)
        assert stopped["receipt"]["elapsed_ms"] == 240_000
        assert stopped["receipt"]["credits"] == "4"
    await audited(cluster)
    for session_id in ("s1", "s2"):
        assert await minutes(cluster, session_id) == [60] * 4
    assert (await cluster.account())["balance"] == 92 * CREDIT


async def test_shared_records_are_read_once(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions of one organisation are read from the record once.

    Postgres reads a day's sessions of a whole organisation once, and not for each session.
    """
    await cluster.grant(100 * CREDIT, "acme", "acme")
    people = [f"student-{number}" for number in range(8)]
    for person in people:
        browser = node.browser(person)
        await browser.start(
            f"of-{person}", LESSON, user_id=person, org_id="acme", account_id="acme"
        )
    await cluster.advance(60_000)
    await cluster.flush()
    await cluster.lose()
    read: list[str] = []
    load_member, load_account = Records.load_member, Records.load_account

    async def count_members(*given: Any, **named: Any) -> Any:
        if named.get("everybody"):
            read.append("organization")
        return await load_member(*given, **named)

    async def count_accounts(*given: Any, **named: Any) -> Any:
        read.append("account")
        return await load_account(*given, **named)

    monkeypatch.setattr(Records, "load_member", count_members)
    monkeypatch.setattr(Records, "load_account", count_accounts)
    await cluster.beat()
    await cluster.recovered()
    assert sorted(read) == ["account", "organization"]
    used = await node.live.month("org:acme", people[0], "2026-05-01")
    assert [counter.used_minutes for counter in used] == [1, 8]
    await audited(cluster)


async def test_unused_partition_recovers_with_the_rest(cluster: Cluster, node: Node) -> None:
    """A partition recovers unused: its first request does not wait again.

    The request comes an hour later.
    """
    await cluster.beat()
    await cluster.lose()
    await cluster.beat()
    for partition in range(PARTITIONS):
        for key in (KEYS.epoch(partition), KEYS.recovering(partition)):
            assert await cluster.redis.exists(key) == 1


async def test_next_claim_finds_loss_before_heartbeat(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", terms("second"))
    await cluster.advance(90_000)
    await cluster.lose()
    await cluster.advance(31_000)  # the claim of the second minute
    await cluster.recovered()
    await cluster.advance(59_000)
    stopped = await browser.request("s1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 180_000
    await audited(cluster)
    assert await minutes(cluster, "s1") == [60, 60, 60]


async def test_unflushed_end_is_recorded(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", terms("second"))
    await cluster.advance(90_000)
    stopped = await browser.request("s1", Event.STOP)
    await cluster.lose()
    await cluster.beat()
    await cluster.recovered()
    row = await cluster.records.session("user:ann", "s1")
    assert row is not None
    assert (row.state, row.elapsed_ms) == ("ended", stopped["receipt"]["elapsed_ms"])
    assert (await cluster.account())["balance"] == 10 * CREDIT - 1_500_000
    await audited(cluster)


async def test_redis_is_lost_while_postgres_is_away(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", terms("second"))
    await browser.start("s0", terms("second"))
    await cluster.advance(90_000)
    await browser.request("s0", Event.STOP)

    async def away(*_: Any, **__: Any) -> Any:
        raise UnavailableError("Postgres is away")

    with monkeypatch.context() as patched:
        patched.setattr(Records, "_run", away)
        await cluster.lose()
        for _ in range(3):
            await cluster.beat()
        await cluster.recovered()
        await cluster.advance(10_000)
        assert browser.local_sessions["s1"].meter.counting
    await cluster.beat()
    await cluster.recovered()
    await cluster.advance(20_000)
    stopped = await browser.request("s1", Event.STOP)
    assert stopped["receipt"]["elapsed_ms"] == 120_000
    await audited(cluster)
    assert await minutes(cluster, "s1") == [60, 60]
    assert await minutes(cluster, "s0") == [60, 30]
    assert (await cluster.account())["balance"] == 10 * CREDIT - 3_500_000


async def test_no_spend_or_start_before_recovery(cluster: Cluster, node: Node) -> None:
    await cluster.grant(3 * CREDIT)
    browser = node.browser()
    await browser.start("s1", terms("second"))
    await cluster.advance(90_000)
    await cluster.lose()
    with pytest.raises(ServiceError):
        await node.ledger.spend(ANN, entry_id="e1", micros=2 * CREDIT)
    refused = await node.browser("late").start("s2", terms("second"))
    assert (refused["code"], refused["retryable"]) == ("unavailable", True)
    await cluster.beat()
    with pytest.raises(ServiceError):
        await node.ledger.spend(ANN, entry_id="e1", micros=2 * CREDIT)
    await cluster.recovered()
    short = await node.ledger.spend(ANN, entry_id="e1", micros=2 * CREDIT)
    assert not isinstance(short, Spent)
    assert isinstance(await node.ledger.spend(ANN, entry_id="e2", micros=CREDIT), Spent)
    await cluster.advance(40_000)
    assert browser.last("limit_reached")["limit"] == "credits"
    await cluster.advance(20_000)
    assert browser.last("stopped")["receipt"]["elapsed_ms"] == 120_000
    await audited(cluster)


async def test_replica_that_lacks_last_writes(cluster: Cluster, node: Node, second: Node) -> None:
    await cluster.grant(100 * CREDIT)
    one, other = node.browser("one"), second.browser("other")
    await one.start("s1", terms("second"))
    await cluster.advance(90_000)
    replica = await Copy.of(cluster.redis)
    await other.start("s2", LESSON)  # a session that the replica does not have
    await cluster.advance(60_000)
    await cluster.grant(5 * CREDIT)
    assert isinstance(await node.ledger.spend(ANN, entry_id="e1", micros=7 * CREDIT), Spent)
    await node.ledger.hold(ANN, hold_id="h1", micros=9 * CREDIT, ttl_ms=3_600_000)
    await node.ledger.hold(ANN, hold_id="h2", micros=4 * CREDIT, ttl_ms=3_600_000)
    await node.ledger.post(ANN.tenant, "h2", 3 * CREDIT)
    await cluster.flush()
    await replica.promote()
    for _ in range(2):
        await cluster.beat()
        node.recovery.suspect_loss()
        second.recovery.suspect_loss()
        await cluster.settle()
    await cluster.recovered()
    await cluster.advance(30_000)
    for browser, session_id, elapsed_ms in ((one, "s1", 180_000), (other, "s2", 90_000)):
        stopped = await browser.request(session_id, Event.STOP)
        assert stopped["receipt"]["elapsed_ms"] == elapsed_ms
    await node.ledger.post(ANN.tenant, "h1", 2 * CREDIT)
    await audited(cluster)
    spent = 3 * CREDIT + 1_500_000 + 7 * CREDIT + 3 * CREDIT + 2 * CREDIT
    assert (await cluster.account())["balance"] == 105 * CREDIT - spent


async def test_notices_are_not_lost_with_redis(cluster: Cluster, node: Node) -> None:
    await cluster.grant(2 * CREDIT)
    browser = node.browser()
    await browser.start("s1", terms("second"))
    await cluster.advance(70_000)
    warned = browser.all("limit_warning")
    assert warned
    await cluster.lose()
    await cluster.beat()
    await cluster.recovered()
    again = await node.browser("again").start("s1", terms("second"), last_seq=0)
    assert [notice["seq"] for notice in again["missed"]] == [notice["seq"] for notice in warned]


async def test_session_lost_with_its_process_is_ended(
    cluster: Cluster, node: Node, second: Node
) -> None:
    await cluster.grant(10 * CREDIT)
    await second.browser().start("s1", LESSON)
    await cluster.advance(150_000)
    await cluster.flush()
    second.is_alive = False
    await second.stop()
    await cluster.lose()
    await cluster.beat()
    await cluster.recovered()
    row = await cluster.records.session("user:ann", "s1")
    assert row is not None
    assert row.state == "live"
    for _ in range(2):  # first the loss is found, then sessions are ended once it has settled
        await cluster.advance(storage_limits.LOST_SESSIONS_AFTER_MS)
        for partition in range(PARTITIONS):
            await cluster.redis.delete(KEYS.unsettled(partition))
        await cluster.beat()
    row = await cluster.records.session("user:ann", "s1")
    assert row is not None
    assert (row.state, row.reason, row.elapsed_ms) == ("ended", "node_lost", 120_000)
    assert (row.minutes, row.charged_micros) == (2, 2 * CREDIT)
    await audited(cluster)
