"""A replica without the last writes takes over; no connection breaks.

So nothing shows the change. Mostly no process serves a session: only the record has what was lost.
"""

from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from protocol.metering.states import Event, Phase
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.counters.plans import apply_member, apply_organization
from server.credits.outcomes import Limited, Spent
from storage import limits as storage_limits
from storage.postgres.records import Records
from storage.redis.cluster import ClusterRedis
from storage.redis.keys import Keys
from storage.redis.live import connect
from storage.redis.spending import AccountName
from tests.simulation.cluster import PARTITIONS, Browser, Cluster, Node
from tests.simulation.people import CREDIT, terms
from tests.simulation.test_recovery import LESSON, Copy, audited
from tests.simulation.test_recovery_races import ANN, CHAT, phase_of

KEYS = Keys(PARTITIONS)
ACME = "org:acme"
OPERATION = "script_generation"
"""Its monthly limit is three."""


@pytest.fixture(autouse=True)
async def one_redis(redis: Redis) -> None:
    if isinstance(redis, ClusterRedis):
        pytest.skip("a node of a cluster is not told whose replica it is")


async def begin_anew(redis: Redis) -> None:
    """Gives Redis a new replication history, as after restart or failover.

    Connected clients stay connected.
    """
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    await redis.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]


async def take_over(cluster: Cluster, replica: Copy) -> None:
    """The replica takes over; every process checks for a loss twice.

    The second check is a while later.
    """
    await replica.promote()
    await begin_anew(cluster.redis)
    await cluster.beat()


async def spend(node: Node, entry_id: str, micros: int = 0, account: AccountName = ANN) -> Any:
    return await node.ledger.spend(account, entry_id=entry_id, micros=micros, operation=OPERATION)


async def student(cluster: Cluster, node: Node) -> Browser:
    """Ann takes a lesson that counts for her and the organisation.

    The minutes count in the month of each.
    """
    await cluster.grant(1_000 * CREDIT, "ann", "acme")
    browser = node.browser()
    await browser.start("s1", LESSON, org_id="acme")
    return browser


class Questions:
    """Counts what recovery asks of Redis and Postgres."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asserted: list[str] = []
        self.read = 0
        put_back, entries_since = node.recovery.restoring.put_back, Records.entries_since

        async def counted(assertion: Any) -> Any:
            self.asserted.append(assertion.session.identity.session_id)
            return await put_back(assertion)

        async def read(*given: Any) -> Any:
            self.read += 1
            return await entries_since(*given)

        monkeypatch.setattr(node.recovery.restoring, "put_back", counted)
        monkeypatch.setattr(Records, "entries_since", read)


# --- The failover is noticed -----------------------------------------------------------------


async def test_failover_without_sessions_or_broken_connections(
    cluster: Cluster, node: Node
) -> None:
    await cluster.grant(10 * CREDIT)
    await node.ledger.figures(ANN)
    await cluster.beat()
    replica = await Copy.of(cluster.redis)
    assert isinstance(await spend(node, "e1", 7 * CREDIT), Spent)
    await node.ledger.hold(ANN, hold_id="h1", micros=2 * CREDIT, ttl_ms=3_600_000)
    await cluster.flush()
    await take_over(cluster, replica)
    account = await cluster.account()
    assert (account["balance"], account["held"]) == (3 * CREDIT, 2 * CREDIT)
    assert not isinstance(await spend(node, "e2", 2 * CREDIT), Spent)
    await audited(cluster)


async def test_ended_session_is_put_back_by_its_process(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    await cluster.advance(30_000)
    await cluster.beat()
    replica = await Copy.of(cluster.redis)
    await browser.request("s1", Event.STOP)
    await cluster.flush()
    await take_over(cluster, replica)
    assert await phase_of(cluster.redis, "s1") is Phase.ENDED
    await audited(cluster)


async def test_sessions_of_lost_process_are_ended(cluster: Cluster, node: Node) -> None:
    second = await cluster.node()
    await cluster.grant(10 * CREDIT)
    await cluster.beat()
    await cluster.advance(storage_limits.LOST_SESSIONS_AFTER_MS)
    await cluster.beat()
    replica = await Copy.of(cluster.redis)
    await second.browser().start("s1", CHAT)
    await cluster.advance(30_000)
    await cluster.flush()
    second.is_alive = False
    await second.stop()
    await take_over(cluster, replica)
    await cluster.advance(storage_limits.LOST_SESSIONS_AFTER_MS)
    await cluster.beat()
    row = await cluster.records.session("user:ann", "s1")
    assert row is not None
    assert row.state == "ended"


async def test_starting_process_finds_earlier_loss(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    await node.ledger.figures(ANN)
    replica = await Copy.of(cluster.redis)
    assert isinstance(await spend(node, "e1", 7 * CREDIT), Spent)
    await cluster.flush()
    node.is_alive = False
    await node.stop()
    await replica.promote()
    late = await cluster.node()
    await late.recovery.begin()
    await cluster.beat()
    assert (await cluster.account())["balance"] == 3 * CREDIT


async def test_restart_without_loss_changes_nothing(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.grant(10 * CREDIT)
    browser = node.browser()
    await browser.start("s1", CHAT)
    await browser.start("s2", CHAT)
    assert isinstance(await spend(node, "e1", CREDIT), Spent)
    await cluster.beat()
    before = {key: await cluster.redis.dump(key) for key in await cluster.redis.keys("*")}
    questions = Questions(node, monkeypatch)
    await begin_anew(cluster.redis)
    for _ in range(30):
        await cluster.beat()
    after = {key: await cluster.redis.dump(key) for key in await cluster.redis.keys("*")}
    assert after == before
    assert node.recovery.recovered + node.recovery._record_catch_up.learnt == 0
    # Everything was asked for once, and no request had to wait.
    assert (sorted(questions.asserted), questions.read) == (["s1", "s2"], 1)
    assert isinstance(await spend(node, "e2", CREDIT), Spent)
    await audited(cluster)


async def test_redis_without_replication_info_is_believed(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes' Redis user may have no right to ask."""
    await cluster.redis.acl_setuser(
        "bound", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-info"]
    )
    bound = connect(cluster.redis_url)
    try:
        monkeypatch.setattr(bound.connection_pool, "connection_kwargs", {
            **bound.connection_pool.connection_kwargs, "username": "bound", "password": "x",
        })  # fmt: skip
        with pytest.raises(NoPermissionError):
            await bound.info("replication")
        monkeypatch.setattr(node.live, "redis", bound)
        questions = Questions(node, monkeypatch)
        await cluster.beat()
        await begin_anew(cluster.redis)
        await cluster.beat()
        assert questions.read == 0
    finally:
        await bound.aclose()
        await cluster.redis.acl_deluser("bound")


# --- What the record restores ----------------------------------------------------------------


@pytest.mark.parametrize("served", [False, True])
async def test_limits_are_restored_from_record(
    cluster: Cluster, node: Node, *, served: bool
) -> None:
    records, redis = cluster.records, cluster.redis
    await records.put_organization(ACME, "acme", monthly_hours_limit=10, allow_overage=True)
    await records.put_member(ACME, "ann", monthly_hours_limit=5)
    browser = await student(cluster, node)
    if not served:
        await browser.request("s1", Event.STOP)
    await cluster.flush()
    await cluster.beat()
    replica = await Copy.of(redis)
    await records.put_organization(ACME, "acme", monthly_hours_limit=2, allow_overage=False)
    await apply_organization(node.live, records, ACME)
    await records.put_member(ACME, "ann", monthly_hours_limit=None)
    await apply_member(node.live, records, ACME, "ann")
    await take_over(cluster, replica)
    names = ["limit", "overage"]
    assert await redis.hmget(KEYS.organization(ACME), names) == [b"120", b"0"]
    assert await redis.hmget(KEYS.member(ACME, "ann"), names) == [b"", b"0"]
    if served:
        await cluster.recovered()
        await cluster.advance(3 * 3_600_000)
        stopped = browser.last("stopped")
        assert stopped["receipt"]["elapsed_ms"] == 2 * 3_600_000


async def test_assertion_during_takeover_holds_no_minutes_twice(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process asserts before the session is put back.

    With the copy's counters in place and its session not yet, its held minutes counted twice.
    """
    await cluster.records.put_organization(ACME, "acme", monthly_hours_limit=2)
    browser = await student(cluster, node)
    await cluster.flush()
    await cluster.beat()
    replica = await Copy.of(cluster.redis)
    session = KEYS.session(ACME, "s1").encode()
    replica.keys = dict(sorted(replica.keys.items(), key=lambda entry: entry[0] == session))
    execute: Any = cluster.redis.execute_command

    async def assert_first(*args: Any, **options: Any) -> Any:
        if args[:2] == ("RESTORE", session):
            node.recovery.suspect_loss()
            await cluster.settle()
        return await execute(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(cluster.redis, "execute_command", assert_first)
        await replica.promote()
    await begin_anew(cluster.redis)
    await cluster.beat()
    await cluster.recovered()
    await cluster.advance(3 * 3_600_000)
    assert browser.last("stopped")["receipt"]["elapsed_ms"] == 2 * 3_600_000


async def test_known_limits_are_not_published(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.records.put_organization(ACME, "acme", monthly_hours_limit=10)
    await student(cluster, node)
    await cluster.beat()

    async def told(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(node.live, "change_limit", told)
    await begin_anew(cluster.redis)
    await cluster.beat()
    assert node.recovery.recovered + node.recovery._record_catch_up.learnt == 0


async def test_operation_counts_are_restored(cluster: Cluster, node: Node) -> None:
    """That includes operations that cost nothing, which no ledger has."""
    await cluster.grant(10 * CREDIT)
    assert isinstance(await spend(node, "e1"), Spent)
    await cluster.beat()
    replica = await Copy.of(cluster.redis)
    assert isinstance(await spend(node, "e2"), Spent)
    await node.ledger.hold(ANN, hold_id="h1", micros=CREDIT, ttl_ms=60_000, operation=OPERATION)
    await cluster.flush()
    await take_over(cluster, replica)
    assert await spend(node, "e3") == Limited(limit=3, used=3)
    for _ in range(3):  # however often it is restored
        node.recovery.suspect_loss()
        await cluster.settle()
    await node.ledger.void(ANN.tenant, "h1")
    assert isinstance(await spend(node, "e4"), Spent)
    assert await spend(node, "e5") == Limited(limit=3, used=3)
    await audited(cluster)


async def test_voided_operation_is_not_counted(cluster: Cluster, node: Node) -> None:
    await cluster.grant(10 * CREDIT)
    assert isinstance(await spend(node, "e1"), Spent)
    for hold_id in ("h1", "h2"):
        await node.ledger.hold(
            ANN, hold_id=hold_id, micros=CREDIT, ttl_ms=3_600_000, operation=OPERATION
        )
    await cluster.flush()
    await cluster.beat()
    replica = await Copy.of(cluster.redis)
    await cluster.advance(1)
    await node.ledger.void(ANN.tenant, "h1")
    await node.ledger.post(ANN.tenant, "h2", CREDIT)
    await cluster.flush()
    await take_over(cluster, replica)
    assert isinstance(await spend(node, "e2"), Spent)
    assert await spend(node, "e3") == Limited(limit=3, used=3)
    await audited(cluster)


async def test_operation_of_expired_hold_is_not_counted(cluster: Cluster, node: Node) -> None:
    """An operation of an expired hold is not counted.

    Postgres still has the hold as open; Redis, which lost nothing, has its end.
    """
    await cluster.grant(10 * CREDIT)
    for hold_id, ttl_ms in (("h1", 1_000), ("h2", 60_000)):
        await node.ledger.hold(
            ANN, hold_id=hold_id, micros=CREDIT, ttl_ms=ttl_ms, operation=OPERATION
        )
    assert isinstance(await spend(node, "e1"), Spent)
    await cluster.flush()
    await cluster.beat()
    await cluster.advance(1_000)
    await node.ledger.expire_hold(ANN.tenant, "h1")
    (done,) = await cluster.records.operations_since(0, 10)
    assert sorted(done.holds) == ["h1", "h2"]
    await begin_anew(cluster.redis)
    await cluster.beat()
    assert isinstance(await spend(node, "e2"), Spent)
    assert await spend(node, "e3") == Limited(limit=3, used=3)
    await cluster.flush()
    await audited(cluster)


async def test_month_is_corrected_once(cluster: Cluster, node: Node) -> None:
    await cluster.records.put_organization(ACME, "acme", monthly_hours_limit=10)
    browser = await student(cluster, node)
    await cluster.advance(600_000)
    await browser.request("s1", Event.STOP)
    await cluster.flush()
    await cluster.beat()
    replica = await Copy.of(cluster.redis)
    await node.ledger.adjust_minutes(ACME, "ann", entry_id="a1", minutes=-4, reason="a fault")
    await take_over(cluster, replica)
    for _ in range(2):
        node.recovery.suspect_loss()
        await cluster.settle()
    used = await node.live.month(ACME, "ann", "2026-05-01")
    assert [counter.used_minutes for counter in used] == [6, 6]
    await audited(cluster)


# --- What cannot be put back -----------------------------------------------------------------


async def test_failing_assertion_backs_off_and_blocks_nothing(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing assertion backs off and blocks nothing.

    The account of one session cannot be loaded, however often a process tries.
    """
    names = {KEYS.partition(f"user:{name}"): name for name in ("ann", "bob", "cleo", "dora")}
    poor, rich = names[0], names[1]
    for name in (poor, rich):
        await cluster.grant(10 * CREDIT, name)
        await node.browser(name).start(f"of-{name}", terms("second"), user_id=name)
    await cluster.advance(1_000)
    await cluster.beat()
    load = node.loader.account

    async def refused(tenant: str, account_id: str, **options: Any) -> None:
        if account_id == poor:
            raise ServiceError("the record is too far behind to load from")
        await load(tenant, account_id, **options)

    questions = Questions(node, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(node.loader, "account", refused)
        await cluster.lose()
        for _ in range(80):  # including claims of the session, which load the account too
            await cluster.beat()
            await cluster.advance(1_000)
    assert 40 <= questions.asserted.count(f"of-{poor}") <= 60
    # The other session is there at once, and put back once more after all have come back.
    assert questions.asserted.count(f"of-{rich}") <= 5
    assert questions.read <= 3
    await cluster.advance(server_limits.CLAIM_RETRY_MS_MAX)
    await cluster.beat()
    key = KEYS.session(f"user:{poor}", f"of-{poor}")
    assert await cluster.redis.exists(key)
    await audited(cluster)
