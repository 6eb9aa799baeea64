"""Steps that take and hold credits of one account, and their messages."""

from typing import Any

import msgspec
import orjson
from redis.asyncio import Redis

from protocol import limits
from protocol.metering.records import EntryPosted, HoldChanged, Record
from storage.redis.channels import channels_of
from storage.redis.encoding import decode_records
from storage.redis.keys import Keys
from storage.redis.live import Live
from storage.redis.spending import Spending
from storage.rows.accounts import AccountRecord, HoldRow

CREDIT = 1_000_000
NOW = 1_780_000_000_000
TENANT, ANN = "user:ann", "ann"
KEYS = Keys(2)
ACCOUNT = KEYS.account(TENANT, ANN)
OUTBOX = KEYS.outbox(KEYS.partition(TENANT))
HOLDS = KEYS.holds(KEYS.partition(TENANT))
MONTH = "2026-05-01"
HUGE = limits.BALANCE_MICROS_MAX


async def have(live: Live, micros: int, **fields: int) -> None:
    """An account with this balance, of which sessions hold ``held``."""
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
    """Receives the messages on the account's channel."""

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
