"""The steps that take and hold credits: each of their answers, and what each leaves."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import orjson
import pytest
from redis.asyncio import Redis

from protocol import limits
from protocol.metering.records import EntryPosted, HoldChanged, Record
from storage import limits as storage_limits
from storage.redis.channels import channels_of
from storage.redis.cluster import client_of
from storage.redis.encoding import decode_records
from storage.redis.keys import Keys
from storage.redis.live import Live
from storage.redis.spending import Spending, SpendingReply, posted_records
from storage.rows.accounts import AccountRecord, HoldRow
from storage.rows.months import AdjustmentRow

CREDIT = 1_000_000
NOW = 1_780_000_000_000
TENANT, ANN = "user:ann", "ann"
KEYS = Keys(2)
ACCOUNT = KEYS.account(TENANT, ANN)
OUTBOX = KEYS.outbox(KEYS.partition(TENANT))
HOLDS = KEYS.holds(KEYS.partition(TENANT))
MONTH = "2026-05-01"
HUGE = limits.BALANCE_MICROS_MAX


@pytest.fixture
def spending(live: Live) -> Spending:
    return Spending(live)


async def have(live: Live, micros: int, **fields: int) -> None:
    """An account with so much, of which sessions hold ``held``."""
    await live.load_account(TENANT, ANN, AccountRecord(micros, False, ()))
    if fields:
        for name, value in fields.items():
            await live.redis.hset(ACCOUNT, name, str(value))


def a_spend(entry_id: str = "s1", micros: int = CREDIT, **changes: Any) -> EntryPosted:
    return msgspec.structs.replace(
        EntryPosted(TENANT, ANN, entry_id, "spend", -micros, NOW), **changes
    )


def a_hold(hold_id: str = "h1", micros: int = 5 * CREDIT, **changes: Any) -> HoldChanged:
    change = HoldChanged(
        tenant=TENANT,
        account_id=ANN,
        hold_id=hold_id,
        state="open",
        amount_micros=micros,
        posted_micros=0,
        operation=None,
        user_id="ann",
        month=MONTH,
        created_at=NOW,
        expires_at=NOW + 60_000,
        changed_at=NOW,
        metadata={"job": "j"},
    )
    return msgspec.structs.replace(change, **changes)


def a_post(micros: int, at: int = NOW + 1) -> EntryPosted:
    return EntryPosted(TENANT, ANN, "post:h1", "post", -micros, at, metadata={"tokens_used": 7})


async def opened(spending: Spending, change: HoldChanged | None = None) -> HoldRow:
    answer = await spending.hold(change or a_hold())
    assert answer.status == "ok"
    assert answer.hold is not None
    return answer.hold


async def account(redis: Redis) -> dict[str, int]:
    """The account's figures, without what it was loaded from."""
    found: dict[Any, Any] = await redis.hgetall(ACCOUNT)
    figures = {name.decode(): int(value) for name, value in found.items()}
    del figures["position"]
    return figures


async def outbox(redis: Redis) -> list[Record]:
    entries: list[Any] = await redis.xrange(OUTBOX) or []
    return [record for _, fields in entries for record in decode_records(fields[b"r"])]


class ChannelListener:
    """Hears what is told on the account's channel."""

    def __init__(self, live: Live) -> None:
        self._pubsub = channels_of(live.redis)

    async def listen(self) -> "ChannelListener":
        for channel in (KEYS.channel(TENANT, ANN), KEYS.limits_channel(TENANT)):
            await self._pubsub.subscribe(channel)
            await self._pubsub.get_message(timeout=5)
        return self

    async def heard(self, count: int) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        while len(messages) < count:
            message = await self._pubsub.get_message(timeout=5)
            assert message is not None, "nothing more was told"
            messages.append(orjson.loads(message["data"]))
        return messages

    async def close(self) -> None:
        await self._pubsub.aclose()


@pytest.fixture
async def listener(live: Live) -> AsyncIterator[ChannelListener]:
    made = await ChannelListener(live).listen()
    yield made
    await made.close()


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
    # The price has changed since: what was taken has not.
    again = await spending.spend(a_spend("s1", 2 * CREDIT))
    assert (again.status, again.records) == ("repeated", (first,))
    assert (await account(redis))["balance"] == 2 * CREDIT - 5
    await redis.delete(OUTBOX)
    flushed = await spending.spend(first)
    assert (flushed.status, flushed.records) == ("repeated", ())
    assert await outbox(redis) == []


async def test_a_spend_and_all_that_may_be_in_its_way(
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
    await spending.load_operations(TENANT, ANN, MONTH, {"script": 9})  # somebody was faster
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
    # The oldest record that waits holds back whatever came with it or after it.
    await redis.xadd(OUTBOX, {"r": b"[]"}, id="500-0")
    assert (await spending.spend(a_spend())).status == "ok"
    remembered = await redis.zrange(spends, 0, -1)
    assert remembered[0] == b"old-500"
    assert remembered[-1] == b"s1"
    await redis.xdel(OUTBOX, "500-0")
    assert (await spending.spend(a_spend("s2"))).status == "ok"
    # However old they look: the clock of Redis may have leapt.
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


# --- Holds -----------------------------------------------------------------------------


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


async def test_a_hold_and_all_that_may_be_in_its_way(
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
    assert (await spending.post(hold, a_post(CREDIT))).status == "ok"
    await spending.restore_hold(hold)
    assert (await spending.void(hold, NOW)).status == "closed"
    figures = await account(redis)
    assert (figures["balance"], figures["held"], figures["live"]) == (7 * CREDIT, 0, 0)


async def test_an_account_whose_last_hold_had_ended_is_forgotten_some_day(
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


# --- Adjustments -----------------------------------------------------------------------


async def test_an_adjustment_is_applied_once_where_the_month_is(
    live: Live, spending: Spending, redis: Redis, listener: ChannelListener
) -> None:
    member, org = KEYS.member(TENANT, ANN), KEYS.organization(TENANT)
    adjustment = AdjustmentRow(TENANT, ANN, "a1", MONTH, -7, "measured twice", NOW)
    await spending.adjust(adjustment)
    assert not await redis.exists(member, org)
    await live.load_month(TENANT, member, {f"used:{MONTH}": 20})
    # The organisation's was loaded after the entry was written.
    await live.load_month(TENANT, org, {f"used:{MONTH}": 33, "a:ann/a1": 1})
    for _ in range(2):
        await spending.adjust(adjustment)
    assert await redis.hget(member, f"used:{MONTH}") == b"13"
    assert await redis.hget(org, f"used:{MONTH}") == b"33"
    assert await listener.heard(1) == [{"adjusted": True}]
