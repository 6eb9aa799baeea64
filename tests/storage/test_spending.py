"""The steps that take and hold credits: their answers and their effects."""

from typing import Any

from redis.asyncio import Redis

from storage import limits as storage_limits
from storage.redis.cluster import client_of
from storage.redis.live import Live
from storage.redis.spending import Spending, SpendingReply
from storage.rows.months import AdjustmentRow
from tests.storage.spending_steps import (
    ACCOUNT,
    ANN,
    CREDIT,
    HUGE,
    KEYS,
    MONTH,
    NOW,
    OUTBOX,
    TENANT,
    ChannelListener,
    a_spend,
    account,
    have,
    outbox,
)

# --- Spends ----------------------------------------------------------------------------


async def test_a_spend_takes_and_tells_and_appends(
    live: Live, spending: Spending, redis: Redis, listener: ChannelListener
) -> None:
    await have(live, 3 * CREDIT, charged_live=7)
    entry = a_spend()
    answer = await spending.spend(entry)
    assert (answer.status, answer.records) == ("ok", (entry,))
    assert answer.figures is not None
    assert answer.figures.available_micros == 2 * CREDIT
    assert await account(redis) == {"balance": 2 * CREDIT, "charged_live": 7, "version": 1}
    assert await outbox(redis) == [entry]
    (told,) = await listener.heard(1)
    assert told == {
        "account": ["2000007", "0", "1"],
        "bumped": True,
        "credit": {"delta": "-1000000", "reason": "spend", "entry_id": "s1"},
    }


async def test_a_spend_that_is_repeated_is_told_what_was_done(
    live: Live, spending: Spending, redis: Redis
) -> None:
    await have(live, 3 * CREDIT)
    first, other = a_spend(), a_spend("s2", 5)
    await spending.spend(first)
    await spending.spend(other)
    # The price has changed since; the amount that was taken has not.
    again = await spending.spend(a_spend("s1", 2 * CREDIT))
    assert (again.status, again.records) == ("repeated", (first,))
    assert (await account(redis))["balance"] == 2 * CREDIT - 5
    await redis.delete(OUTBOX)
    flushed = await spending.spend(first)
    assert (flushed.status, flushed.records) == ("repeated", ())
    assert await outbox(redis) == []


async def test_every_outcome_of_a_spend(
    live: Live, spending: Spending, redis: Redis, listener: ChannelListener
) -> None:
    cold = await spending.spend(a_spend())
    assert (cold.status, cold.cold, cold.figures) == ("cold", "account", None)
    await have(live, 10 * CREDIT, held=6 * CREDIT, reserved=CREDIT)
    held = await spending.spend(a_spend(micros=9 * CREDIT), recall=False)
    assert held.status == "held"
    short = await spending.spend(a_spend(micros=9 * CREDIT + 1))
    assert short.status == "short"
    recalled = await spending.spend(a_spend(micros=4 * CREDIT + 1), recall=True)
    assert recalled.status == "held"
    assert await outbox(redis) == []
    done = await spending.spend(a_spend(micros=4 * CREDIT))
    assert done.status == "ok"
    told = await listener.heard(2)
    assert told[0] == {"recall": True}
    assert told[1]["account"] == ["6000000", "1000000", "1"]


async def test_a_spend_of_nothing_moves_nothing_and_is_kept(
    live: Live, spending: Spending, redis: Redis
) -> None:
    await have(live, -CREDIT)
    entry = a_spend(micros=0, operation="free", month=MONTH)
    assert (await spending.spend(entry)).cold == "operations"
    await spending.load_operations(TENANT, ANN, MONTH, {})
    assert (await spending.spend(entry)).status == "ok"
    assert await account(redis) == {"balance": -CREDIT, "version": 0}
    assert await outbox(redis) == [entry]


async def test_an_operation_is_counted_in_its_month(
    live: Live, spending: Spending, redis: Redis
) -> None:
    await have(live, 100 * CREDIT)
    assert await spending.operations(TENANT, ANN, MONTH, "script") is None

    async def ask(entry_id: str, month: str = MONTH, **options: Any) -> SpendingReply:
        entry = a_spend(entry_id, operation="script", month=month)
        return await spending.spend(entry, **options)

    assert (await ask("s1", monthly_limit=2)).cold == "operations"
    await spending.load_operations(TENANT, ANN, MONTH, {"script": 1})
    await spending.load_operations(TENANT, ANN, MONTH, {"script": 9})  # another caller was faster
    assert (await ask("s1", monthly_limit=2)).status == "ok"
    limited = await ask("s2", monthly_limit=2)
    assert (limited.status, limited.times) == ("limit", 2)
    assert (await ask("s1", monthly_limit=2)).status == "repeated"
    assert (await ask("s3", monthly_limit=None)).status == "ok"
    assert (await ask("failed", counts=False, monthly_limit=2)).status == "ok"
    assert await spending.operations(TENANT, ANN, MONTH, "script") == 3
    june = "2026-06-01"
    await spending.load_operations(TENANT, ANN, june, {})
    assert (await ask("s4", june, monthly_limit=1)).status == "ok"
    assert await spending.operations(TENANT, ANN, june, "script") == 1


async def test_a_limit_is_said_before_a_lack_of_credits(live: Live, spending: Spending) -> None:
    await have(live, 0)
    await spending.load_operations(TENANT, ANN, MONTH, {"script": 3})
    answer = await spending.spend(
        a_spend(operation="script", month=MONTH), monthly_limit=3, recall=True
    )
    assert answer.status == "limit"


async def test_amounts_are_exact_up_to_the_bound(
    live: Live, spending: Spending, redis: Redis, listener: ChannelListener
) -> None:
    await have(live, HUGE, charged_live=HUGE)
    assert (await spending.spend(a_spend(micros=HUGE - 1))).status == "ok"
    assert (await account(redis))["balance"] == 1
    assert (await spending.spend(a_spend("s2", 2))).status == "short"
    (told,) = await listener.heard(1)
    assert told["account"][0] == str(HUGE + 1)
    assert told["credit"]["delta"] == str(1 - HUGE)


async def test_spends_are_forgotten_when_they_are_old_and_written_down(
    live: Live, spending: Spending, redis: Redis
) -> None:
    await have(live, 10_000 * CREDIT)
    spends = KEYS.spends(TENANT, ANN)
    kept = storage_limits.SPENDS_REMEMBERED_MIN
    await redis.zadd(spends, {f"old-{number}": number for number in range(2 * kept)})
    # The oldest waiting record holds back all records that came with it or after it.
    await redis.xadd(OUTBOX, {"r": b"[]"}, id="500-0")
    assert (await spending.spend(a_spend())).status == "ok"
    remembered = await redis.zrange(spends, 0, -1)
    assert remembered[0] == b"old-500"
    assert remembered[-1] == b"s1"
    await redis.xdel(OUTBOX, "500-0")
    assert (await spending.spend(a_spend("s2"))).status == "ok"
    # Their age does not matter: the clock of Redis may have leapt.
    remembered = await redis.zrange(spends, 0, -1)
    assert len(remembered) == kept
    assert remembered[0] == f"old-{kept + 2}".encode()
    assert remembered[-2:] == [b"s1", b"s2"]


async def test_young_spends_are_remembered_however_many_they_are(
    live: Live, spending: Spending, redis: Redis
) -> None:
    await have(live, 10_000 * CREDIT)
    spends = KEYS.spends(TENANT, ANN)
    seconds, _ = await (await client_of(redis, spends)).time()
    count = storage_limits.SPENDS_REMEMBERED_MIN + 5
    await redis.zadd(spends, {f"young-{number}": int(seconds) * 1000 for number in range(count)})
    assert (await spending.spend(a_spend())).status == "ok"
    assert await redis.zcard(spends) == count + 1
    assert (await spending.spend(a_spend())).status == "repeated"
    assert (await account(redis))["balance"] == 9_999 * CREDIT


async def test_an_account_that_is_spent_from_stays_for_a_day(
    live: Live, spending: Spending, redis: Redis
) -> None:
    await have(live, CREDIT)
    await redis.pexpire(ACCOUNT, 1_000)
    await spending.spend(a_spend(micros=1))
    assert await redis.pttl(ACCOUNT) > storage_limits.ACCOUNT_IDLE_MS - 60_000
    await redis.hset(ACCOUNT, "live", 1)
    await redis.persist(ACCOUNT)
    await spending.spend(a_spend("s2", micros=1))
    assert await redis.pttl(ACCOUNT) == -1


# --- Adjustments -----------------------------------------------------------------------


async def test_an_adjustment_is_applied_once_where_the_month_is(
    live: Live, spending: Spending, redis: Redis, listener: ChannelListener
) -> None:
    member, org = KEYS.member(TENANT, ANN), KEYS.organization(TENANT)
    adjustment = AdjustmentRow(TENANT, ANN, "a1", MONTH, -7, "measured twice", NOW)
    await spending.adjust(adjustment)
    assert not await redis.exists(member, org)
    await live.load_month(TENANT, member, {f"used:{MONTH}": 20})
    # The organisation's counter was loaded after the entry was written.
    await live.load_month(TENANT, org, {f"used:{MONTH}": 33, "a:ann/a1": 1})
    for _ in range(2):
        await spending.adjust(adjustment)
    assert await redis.hget(member, f"used:{MONTH}") == b"13"
    assert await redis.hget(org, f"used:{MONTH}") == b"33"
    assert await listener.heard(1) == [{"adjusted": True}]
