"""The audit finds nothing in a correct record, and finds each deviation."""

from typing import Any, TypeAlias

import asyncpg
import msgspec
import pytest

from protocol.metering.records import EntryPosted, HoldChanged
from storage import limits as storage_limits
from storage.audit import Audit, audit_live, audit_record
from storage.postgres.records import Records
from storage.redis.live import Live
from storage.redis.spending import Spending
from storage.rows.accounts import HoldRow
from storage.rows.months import AdjustmentRow
from tests.simulation.cluster import Cluster, Node
from tests.simulation.test_promises import chat
from tests.storage.examples import START, TENANT, ended, entry, minute, started

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
CREDIT = 1_000_000


def hold(hold_id: str = "h1", **changes: Any) -> HoldChanged:
    change = HoldChanged(
        tenant=TENANT,
        account_id="ann",
        hold_id=hold_id,
        state="open",
        amount_micros=3 * CREDIT,
        posted_micros=0,
        operation="voice_creation",
        user_id="ann",
        month="2026-11-01",
        created_at=START,
        expires_at=START + 60_000,
        changed_at=START,
    )
    return msgspec.structs.replace(change, **changes)


async def fill(records: Records) -> None:
    """A record of everything, in which all adds up."""
    await records.post_entry(entry("g1", 20 * CREDIT), 5, START + 1)
    await records.post_entry(entry("g2", 10 * CREDIT))
    name = "allotment:pro:2026-11"
    await records.post_entry(entry(name, CREDIT, metadata={"name": name}), 100, START + 60_000)
    await records.post_entry(entry("a1", -CREDIT, entry_kind="adjust"))
    await records.write(
        [
            started(),
            minute(0, credits_micros=0, free_ms=60_000),
            minute(1),
            ended(),
            minute(0, session_id="s2", user_id="ben", credits_micros=0),
            # A client's metadata may contain anything.
            entry(
                "s1",
                -2 * CREDIT,
                entry_kind="spend",
                operation="x",
                month="2026-11-01",
                metadata={"name": name, "grant": "g1", "tracked": True},
            ),
            hold(),
            hold("h2", state="voided"),
            hold("h3", state="posted", posted_micros=CREDIT),
            entry("post:h3", -CREDIT, entry_kind="post", operation="x", month="2026-11-01"),
            hold("h4", state="posted"),
            entry("post:h4", 0, entry_kind="post", operation="x", month="2026-11-01"),
            entry("e1", -4 * CREDIT, entry_kind="expire", metadata={"grant": "g1"}),
        ]
    )
    await records.adjust_minutes(
        AdjustmentRow(TENANT, "ann", "a1", "2026-11-01", -1, "measured twice", START)
    )


async def test_a_record_in_which_all_adds_up(records: Records) -> None:
    assert await audit_record(records) == ()
    await fill(records)
    assert await audit_record(records) == ()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("UPDATE credit_accounts SET balance_micros = balance_micros + 1", "conservation"),
        ("DELETE FROM credit_accounts WHERE account_id = 'ann'", "conservation"),
        ("UPDATE credit_ledger SET amount_micros = amount_micros - 1 WHERE entry_id = 's1'",
         "conservation"),
        ("UPDATE credit_accounts SET debt_allowed = true", "debt"),
        ("UPDATE credit_grants SET used_micros = used_micros + 1 WHERE entry_id = 'g2'",
         "attribution"),
        ("UPDATE credit_accounts SET unattributed_micros = 1", "attribution"),
        ("DELETE FROM credit_grants WHERE entry_id = 'g2'", "attribution"),
        ("UPDATE credit_ledger SET expires_at = NULL WHERE entry_id LIKE 'allotment:%'",
         "allotment"),
        ("UPDATE credit_ledger SET entry_id = 'x' WHERE entry_id LIKE 'allotment:%'", "allotment"),
        ("UPDATE credit_ledger SET minute = 7 WHERE entry_kind = 'burn'", "burn"),
        ("UPDATE usage_tracking SET charged_micros = 5 WHERE session_id = 's2'", "burn"),
        ("UPDATE sessions SET charged_micros = charged_micros + 1", "session"),
        ("UPDATE sessions SET minutes = 3", "session"),
        ("UPDATE usage_tracking SET minute = 2 WHERE session_id = 's1' AND minute = 0",
         "session"),
        ("UPDATE usage_tracking SET minute = 1 WHERE session_id = 's2'", "minutes"),
        ("UPDATE credit_holds SET posted_micros = 7 WHERE hold_id = 'h3'", "hold"),
        ("UPDATE credit_holds SET state = 'voided', posted_micros = 0 WHERE hold_id = 'h3'",
         "hold"),
        ("DELETE FROM credit_holds WHERE hold_id = 'h3'", "hold"),
        ("UPDATE operations_usage SET amount_micros = 7 WHERE entry_id = 's1'", "operation"),
        ("UPDATE monthly_usage_cache SET total_minutes = 7 WHERE user_id = 'ann'", "month"),
        ("UPDATE monthly_usage_cache SET total_seconds = 7 WHERE user_id = 'ben'", "month"),
        ("DELETE FROM monthly_usage_cache", "month"),
        ("DELETE FROM minute_adjustments", "month"),
    ],
)  # fmt: skip
async def test_each_thing_that_does_not_add_up(
    records: Records, connection: Connection, change: str, rule: str
) -> None:
    await fill(records)
    # As a replica: behind the back of every trigger.
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(change)
    found = await audit_record(records)
    assert rule in {finding.rule for finding in found}
    assert all(finding.tenant == TENANT and finding.detail for finding in found)


async def test_what_is_on_its_way_is_not_wrong(records: Records) -> None:
    await records.write([ended()])
    assert [finding.rule for finding in await records.audit()] == ["session"]

    class Arriving(Records):
        """A record whose minutes arrive between the audit's two reads."""

        async def audit(self) -> Any:
            found = await super().audit()
            await self.write([minute(0, credits_micros=0), minute(1)])
            return found

    arriving = Arriving(records._pool, 10)
    assert await audit_record(arriving) == ()


# --- Redis -----------------------------------------------------------------------------


@pytest.fixture
async def live(cluster: Cluster, node: Node) -> Live:
    """Live state of a cluster where everything happened and some is flushed."""
    await cluster.grant(50 * CREDIT)
    browser = node.browser()
    await browser.start("chat-1", chat(free_ms=0))
    await node.browser("other").start("chat-2", chat(free_ms=0))
    await cluster.advance(150_000)
    spending = Spending(node.live)
    spend = EntryPosted("user:ann", "ann", "s1", "spend", -CREDIT, cluster.clock.now())
    assert (await spending.spend(spend)).status == "ok"
    await cluster.flush()
    await cluster.advance(65_000)
    for hold_id in ("h1", "h2"):
        change = hold(hold_id, tenant="user:ann", operation=None)
        assert (await spending.hold(change)).status == "ok"
    await spending.void(HoldRow(**msgspec.structs.asdict(hold("h2", tenant="user:ann"))), START)
    assert (await spending.spend(msgspec.structs.replace(spend, entry_id="s2"))).status == "ok"
    return node.live


async def test_redis_agrees_with_the_record(cluster: Cluster, live: Live, records: Records) -> None:
    found = await audit_live(live, records)
    assert (found.findings, found.accounts, found.restless) == ((), 1, 0)
    # In the ledger and in the inbox, but not in Redis yet; and then in all three.
    await records.post_entry(entry("late", CREDIT, tenant="user:ann"))
    assert (await audit_live(live, records)).findings == ()
    await live.credit("user:ann", "ann", "late", CREDIT, "grant", START)
    assert (await audit_live(live, records)).findings == ()
    await records.inbox_done([("user:ann", "ann", "late")])
    assert (await audit_live(live, records)).findings == ()
    # What a process wrote itself is in the outbox all the same.
    spend = EntryPosted("user:ann", "ann", "s2", "spend", -CREDIT, START)
    await records.write([spend])
    assert (await audit_live(live, records)).findings == ()
    await cluster.flush()
    assert (await audit_live(live, records)).findings == ()


@pytest.mark.parametrize(
    ("field", "rules"),
    [
        ("balance", {"redis balance"}),
        ("held", {"redis holds"}),
        ("reserved", {"redis holds"}),
        ("charged_live", {"redis sessions"}),
        ("live", {"redis live"}),
    ],
)
async def test_redis_that_does_not_agree(
    cluster: Cluster, live: Live, records: Records, field: str, rules: set[str]
) -> None:
    await cluster.redis.hincrby(live.keys.account("user:ann", "ann"), field, 1)
    found = await audit_live(live, records)
    assert {finding.rule for finding in found.findings} == rules
    assert {(finding.tenant, finding.subject) for finding in found.findings} == {
        ("user:ann", "ann")
    }


async def test_a_record_that_was_lost_is_missed(
    cluster: Cluster, live: Live, records: Records
) -> None:
    outbox = live.keys.outbox(live.keys.partition("user:ann"))
    await cluster.redis.delete(outbox)
    (finding,) = (await audit_live(live, records)).findings
    assert finding.rule == "redis balance"


async def test_an_account_that_never_stands_still_is_not_judged(
    cluster: Cluster, live: Live, records: Records
) -> None:
    key = live.keys.account("user:ann", "ann")

    class Moving(Records):
        """A record whose account changes at every comparison."""

        async def audit_account(self, *arguments: Any) -> Any:
            await cluster.redis.hincrby(key, "balance", 1)
            return await super().audit_account(*arguments)

    found = await audit_live(live, Moving(records._pool, 10))
    assert (found.findings, found.restless) == ((), 1)


async def test_an_account_with_too_much_on_its_way_is_not_judged(
    live: Live, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "OUTBOX_ENTRIES_AUDITED_MAX", 1)
    assert await audit_live(live, records) == Audit((), accounts=1, restless=1)
