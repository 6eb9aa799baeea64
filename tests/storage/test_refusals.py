"""Storage recognises refused records, and a run of them costs little.

Postgres refuses them.
"""

from collections.abc import Sequence

import msgspec
import pytest
from redis.asyncio import Redis

from protocol.metering.records import HoldChanged, Record
from storage.postgres.records import Records, RejectedError
from storage.postgres.refusals import refusal_of
from storage.redis.keys import outbox_key, rejected_key
from tests.storage.examples import START, TENANT, ended, entry, minute, started
from tests.storage.outboxes import MakeFlusher, pending

HOLD = HoldChanged(
    tenant=TENANT,
    account_id="ann",
    hold_id="h1",
    state="open",
    amount_micros=1_000_000,
    posted_micros=0,
    operation="film",
    user_id="ann",
    month="2026-11-01",
    created_at=START,
    expires_at=START + 60_000,
    changed_at=START,
)
SPEND = entry(
    entry_kind="spend", amount_micros=-1, operation="film", user_id="ann", month="2026-11-01"
)
NUL = [
    msgspec.structs.replace(one, **{name: "\0"})
    for one in (minute(), started(), ended(), SPEND, HOLD)
    for name, value in msgspec.structs.asdict(one).items()
    if isinstance(value, str) and name not in ("reason", "operation", "state")
]
REFUSED: list[Record] = [
    *NUL,
    minute(seconds=0),
    minute(seconds=61),
    minute(minute=-1),
    minute(credits_micros=-1),
    minute(credits_micros=1 << 63),
    minute(free_ms=-1),
    ended(elapsed_ms=-1),
    ended(minutes=-1),
    entry(amount_micros=-1),
    entry(entry_kind="spend", amount_micros=1),
    entry(entry_kind="expire", amount_micros=1),
    entry(amount_micros=1 << 63),
    msgspec.structs.replace(HOLD, amount_micros=-1),
    msgspec.structs.replace(HOLD, posted_micros=-1),
]
EACH = [minute(seconds=61), ended(elapsed_ms=-1), entry(amount_micros=1 << 63), *NUL[::9]]
TAKEN: list[Record] = [
    minute(),
    minute(seconds=1, free_ms=60_000, credits_micros=0, counterpart_id=None),
    started(metadata={"\0": [{"in": "\0"}]}),
    ended(),
    entry(),
    entry(entry_kind="adjust", amount_micros=-1, reason="\0"),
    entry(entry_kind="spend", amount_micros=-1),
    HOLD,
]


@pytest.mark.parametrize("record", REFUSED, ids=repr)
async def test_what_is_refused_at_sight_postgres_refuses(records: Records, record: Record) -> None:
    assert refusal_of(record)
    with pytest.raises(RejectedError):
        await records.write([record])


@pytest.mark.parametrize("record", TAKEN, ids=repr)
async def test_what_postgres_takes_is_not_refused_at_sight(
    records: Records, record: Record
) -> None:
    assert not refusal_of(record)
    await records.write([entry("opening"), record])


class CountedWrites:
    """The record, with a count of its transactions."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.transactions = 0

    async def write(self, records: Sequence[Record]) -> None:
        self.transactions += 1
        await self.records.write(records)


@pytest.mark.parametrize(
    "bad",
    [b"no json", b'[{"t":"unheard of"}]', *(msgspec.json.encode([one]) for one in EACH)],
    ids=lambda bad: bad[:40].decode(),
)
@pytest.mark.parametrize("is_mixed", [True, False], ids=["mixed", "one after the other"])
async def test_a_run_of_bad_entries_costs_one_entrys_transactions(
    redis: Redis, records: Records, make_flusher: MakeFlusher, bad: bytes, is_mixed: bool
) -> None:
    good = [msgspec.json.encode([minute(n, session_id="good")]) for n in range(100)]
    appended = [one for pair in zip(good, [bad] * 100, strict=True) for one in pair]
    async with redis.pipeline(transaction=False) as pipeline:
        for encoded in appended if is_mixed else sorted(appended, key=good.__contains__):
            pipeline.xadd(outbox_key(1), {"r": encoded})
        await pipeline.execute()
    counted = CountedWrites(records)
    flusher = make_flusher(records=counted)
    await flusher.prepare()
    await flusher.flush(await flusher.read())
    assert counted.transactions <= 2
    assert (flusher.flushed_records, flusher.rejected_entries) == (100, 100)
    assert await redis.xlen(rejected_key(1)) == 100
    assert await redis.xlen(outbox_key(1)) == await pending(redis) == 0
