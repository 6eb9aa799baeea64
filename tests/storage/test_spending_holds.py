"""Holds of credits: opened, posted, given back, expired and restored, each once."""

from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from protocol.metering.records import HoldChanged
from storage import limits as storage_limits
from storage.redis.live import Live
from storage.redis.spending import Spending, SpendingReply, posted_records
from storage.rows.accounts import AccountRecord, HoldRow
from tests.storage.spending_steps import (
    ACCOUNT,
    ANN,
    CREDIT,
    HOLDS,
    KEYS,
    MONTH,
    NOW,
    TENANT,
    ChannelListener,
    a_hold,
    a_post,
    account,
    have,
    opened,
    outbox,
)


async def test_a_hold_reserves_and_takes_nothing(
    live: Live, spending: Spending, redis: Redis, listener: ChannelListener
) -> None:
    await have(live, 8 * CREDIT, held=CREDIT)
    change = a_hold()
    answer = await spending.hold(change)
    assert (answer.status, answer.records) == ("ok", (change,))
    assert answer.hold == HoldRow(**msgspec.structs.asdict(change))
    assert await spending.find_hold(TENANT, "h1") == answer.hold
    assert await spending.find_hold(TENANT, "h2") is None
    assert await account(redis) == {
        "balance": 8 * CREDIT,
        "held": 6 * CREDIT,
        "reserved": 5 * CREDIT,
        "holds": 1,
        "live": 1,
        "version": 1,
    }
    assert await redis.pttl(ACCOUNT) == -1
    assert await outbox(redis) == [change]
    (told,) = await listener.heard(1)
    assert told["account"] == ["8000000", "5000000", "1"]
    assert told["credit"] == {"delta": "0", "reason": "hold", "entry_id": "h1"}


async def test_every_outcome_of_a_hold(
    live: Live, spending: Spending, redis: Redis, listener: ChannelListener
) -> None:
    assert (await spending.hold(a_hold())).cold == "account"
    await have(live, 10 * CREDIT, held=7 * CREDIT, reserved=CREDIT)
    assert (await spending.hold(a_hold(), recall=True)).status == "held"
    assert (await spending.hold(a_hold(micros=10 * CREDIT))).status == "short"
    counted = a_hold(micros=CREDIT, operation="voice")
    assert (await spending.hold(counted)).cold == "operations"
    await spending.load_operations(TENANT, ANN, MONTH, {"voice": 1})
    limited = await spending.hold(counted, monthly_limit=1)
    assert (limited.status, limited.times) == ("limit", 1)
    assert (await spending.hold(counted, monthly_limit=2)).status == "ok"
    assert await spending.operations(TENANT, ANN, MONTH, "voice") == 2
    repeated = await spending.hold(a_hold(micros=3))
    assert repeated.status == "repeated"
    assert repeated.hold is not None
    assert repeated.hold.amount_micros == CREDIT
    assert len(await outbox(redis)) == 1
    assert (await listener.heard(1))[0] == {"recall": True}
    await redis.hset(ACCOUNT, "holds", storage_limits.HOLDS_PER_ACCOUNT_MAX)
    assert (await spending.hold(a_hold("h2", 1))).status == "full"


async def test_a_post_charges_part_and_gives_back_the_rest(
    live: Live, spending: Spending, redis: Redis, listener: ChannelListener
) -> None:
    await have(live, 8 * CREDIT)
    hold = await opened(spending)
    assert (await spending.post(hold, a_post(5 * CREDIT + 1))).status == "exceeds"
    entry = a_post(2 * CREDIT)
    answer = await spending.post(hold, entry)
    assert answer.status == "ok"
    assert answer.records == posted_records(hold, entry)
    assert answer.hold is not None
    assert (answer.hold.state, answer.hold.posted_micros) == ("posted", 2 * CREDIT)
    assert answer.hold.metadata == {"tokens_used": 7}
    assert await account(redis) == {
        "balance": 6 * CREDIT,
        "held": 0,
        "reserved": 0,
        "holds": 0,
        "live": 0,
        "version": 2,
    }
    assert 0 < await redis.pttl(ACCOUNT) <= storage_limits.ACCOUNT_IDLE_MS
    assert 0 < await redis.pttl(KEYS.hold(TENANT, "h1")) <= storage_limits.HOLD_KEPT_MS
    assert await redis.zcard(HOLDS) == 0
    assert (await outbox(redis))[1:] == list(posted_records(hold, entry))
    told = (await listener.heard(2))[1]
    assert told["account"] == ["6000000", "0", "2"]
    assert told["credit"] == {"delta": "-2000000", "reason": "post", "entry_id": "post:h1"}


async def test_a_post_of_nothing_is_in_no_ledger(
    live: Live, spending: Spending, redis: Redis
) -> None:
    await have(live, 8 * CREDIT)
    hold = await opened(spending)
    assert (await spending.post(hold, a_post(0))).status == "ok"
    assert (await account(redis))["balance"] == 8 * CREDIT
    kinds = [type(record) for record in await outbox(redis)]
    assert kinds == [HoldChanged, HoldChanged]


async def test_a_hold_of_nothing_is_opened_and_ended(live: Live, spending: Spending) -> None:
    await have(live, 0)
    for number, step in enumerate(("post", "void")):
        hold = await opened(spending, a_hold(f"h{number}", 0))
        if step == "post":
            answer = await spending.post(hold, a_post(0))
        else:
            answer = await spending.void(hold, NOW)
        assert answer.status == "ok"
        assert answer.figures is not None
        assert (answer.figures.held_micros, answer.figures.available_micros) == (0, 0)


@pytest.mark.parametrize("state", ["voided", "expired"])
async def test_a_hold_is_given_back(
    live: Live, spending: Spending, redis: Redis, listener: ChannelListener, state: Any
) -> None:
    await have(live, 8 * CREDIT)
    await spending.load_operations(TENANT, ANN, MONTH, {})
    hold = await opened(spending, a_hold(operation="voice"))
    at = NOW + 60_000 if state == "expired" else NOW + 59_999
    answer = await spending.void(hold, at, state)
    assert answer.status == "ok"
    assert answer.hold is not None
    assert (answer.hold.state, answer.hold.changed_at) == (state, at)
    assert await account(redis) == {
        "balance": 8 * CREDIT,
        "held": 0,
        "reserved": 0,
        "holds": 0,
        "live": 0,
        "version": 2,
    }
    # An operation that was not done does not count.
    assert await spending.operations(TENANT, ANN, MONTH, "voice") == 0
    assert [record.state for record in await outbox(redis) if isinstance(record, HoldChanged)] == [
        "open",
        state,
    ]
    told = (await listener.heard(2))[1]
    reason = "void" if state == "voided" else "expire"
    assert told["credit"] == {
        "delta": "0",
        "reason": reason,
        "entry_id": "h1",
        "operation": "voice",
    }


async def test_the_end_of_a_hold_parts_what_may_be_done(live: Live, spending: Spending) -> None:
    await have(live, 8 * CREDIT)
    hold = await opened(spending)
    end = hold.expires_at
    assert (await spending.void(hold, end - 1, "expired")).status == "early"
    assert (await spending.post(hold, a_post(1, end))).status == "due"
    assert (await spending.void(hold, end)).status == "due"
    assert (await spending.void(hold, end, "expired")).status == "ok"


@pytest.mark.parametrize("first", ["post", "void", "expire"])
async def test_a_hold_leaves_open_once(
    live: Live, spending: Spending, redis: Redis, first: str
) -> None:
    await have(live, 8 * CREDIT)
    hold = await opened(spending)

    async def step(name: str, at: int) -> SpendingReply:
        if name == "post":
            return await spending.post(hold, a_post(CREDIT, at))
        return await spending.void(hold, at, "voided" if name == "void" else "expired")

    at = hold.expires_at if first == "expire" else hold.expires_at - 1
    assert (await step(first, at)).status == "ok"
    after = await account(redis)
    for name in ("post", "void", "expire"):
        answer = await step(name, hold.expires_at)
        assert answer.status == "closed"
        assert answer.hold is not None
        assert answer.hold.state == {"post": "posted", "void": "voided", "expire": "expired"}[first]
    assert await account(redis) == after


async def test_a_hold_that_redis_lost_is_restored_once(
    live: Live, spending: Spending, redis: Redis
) -> None:
    hold = HoldRow(**msgspec.structs.asdict(a_hold()))
    assert (await spending.post(hold, a_post(CREDIT))).status == "absent"
    assert (await spending.void(hold, NOW)).status == "absent"
    await spending.restore_hold(hold)
    assert (await spending.post(hold, a_post(CREDIT))).status == "cold"
    open_hold = f"{hold.hold_id}/{hold.amount_micros}"
    await live.load_account(TENANT, ANN, AccountRecord(8 * CREDIT, False, (), holds=(open_hold,)))
    assert (await spending.post(hold, a_post(CREDIT))).status == "absent"
    assert await spending.restore_hold(hold)
    assert (await spending.post(hold, a_post(CREDIT))).status == "ok"
    assert not await spending.restore_hold(hold)
    assert (await spending.void(hold, NOW)).status == "closed"
    figures = await account(redis)
    assert (figures["balance"], figures["held"], figures["live"]) == (7 * CREDIT, 0, 0)


async def test_an_account_without_open_holds_expires(
    live: Live, spending: Spending, redis: Redis
) -> None:
    await have(live, 8 * CREDIT)
    hold = await opened(spending)
    assert await redis.pttl(ACCOUNT) == -1
    ended = msgspec.structs.replace(hold, state="voided")
    assert await spending.restore_hold(ended)
    assert (await account(redis))["live"] == 0
    assert 0 < await redis.pttl(ACCOUNT) <= storage_limits.ACCOUNT_IDLE_MS


async def test_holds_that_are_due(live: Live, spending: Spending, redis: Redis) -> None:
    await have(live, 8 * CREDIT)
    for number in range(3):
        await opened(spending, a_hold(f"h{number}", 1, expires_at=NOW + number))
    assert await spending.holds_due(NOW - 1) == []
    assert await spending.holds_due(NOW + 1) == [(TENANT, "h0"), (TENANT, "h1")]
    await spending.forget_hold(TENANT, "h0")
    assert await spending.holds_due(NOW + 1) == [(TENANT, "h1")]


@pytest.mark.parametrize("step", ["post", "void"])
async def test_a_hold_that_no_account_reserves_is_not_given_back(
    live: Live, spending: Spending, redis: Redis, step: str
) -> None:
    """The account was loaded without the hold, which was restored before."""
    hold = HoldRow(**msgspec.structs.asdict(a_hold()))

    async def end() -> str:
        if step == "post":
            return (await spending.post(hold, a_post(CREDIT))).status
        return (await spending.void(hold, NOW)).status

    assert await spending.restore_hold(hold)
    assert not await spending.restore_hold(hold)
    await have(live, 8 * CREDIT)
    before = await account(redis)
    assert await end() == "absent"
    assert await account(redis) == before
    assert await outbox(redis) == []
    # The record has the hold as open, so it is reserved now.
    assert await spending.restore_hold(hold)
    assert not await spending.restore_hold(hold)
    figures = await account(redis)
    assert (figures["held"], figures["reserved"], figures["live"]) == (5 * CREDIT, 5 * CREDIT, 1)
    assert await end() == "ok"
    figures = await account(redis)
    assert (figures["held"], figures["reserved"], figures["live"]) == (0, 0, 0)


@pytest.mark.parametrize("state", ["posted", "voided", "expired"])
async def test_the_end_of_a_hold_that_no_account_reserves_changes_no_figure(
    live: Live, spending: Spending, redis: Redis, state: Any
) -> None:
    hold = HoldRow(**msgspec.structs.asdict(a_hold()))
    await spending.restore_hold(hold)
    await have(live, 8 * CREDIT)
    before = await account(redis)
    assert await spending.restore_hold(msgspec.structs.replace(hold, state=state))
    assert await account(redis) == before
    assert await spending.find_hold(TENANT, "h1") is None
    assert await redis.zcard(HOLDS) == 0


async def test_a_hold_that_ended_is_not_reserved_again(
    live: Live, spending: Spending, redis: Redis
) -> None:
    """It was restored before its account, which then reserved it."""
    hold = HoldRow(**msgspec.structs.asdict(a_hold()))
    await spending.restore_hold(hold)
    named = (f"{hold.hold_id}/{hold.amount_micros}",)
    await live.load_account(TENANT, ANN, AccountRecord(8 * CREDIT, False, (), holds=named))
    assert (await spending.void(hold, NOW)).status == "absent"
    assert await spending.restore_hold(hold)
    assert (await spending.void(hold, NOW)).status == "ok"
    after = await account(redis)
    assert (after["held"], after["live"]) == (0, 0)
    assert not await spending.restore_hold(hold)
    assert not await spending.restore_hold(msgspec.structs.replace(hold, state="voided"))
    assert await account(redis) == after
