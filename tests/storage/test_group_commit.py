"""Callers that wait for Postgres share transactions; each gets its own results."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from protocol.metering.records import Record
from storage import limits as storage_limits
from storage.postgres.group_commit import GroupCommitWriter
from storage.postgres.records import Records, RejectedError, UnavailableError
from tests.storage.examples import TENANT, entry, minute
from tests.storage.outboxes import Faulty


class Counting(Records):
    """Counts its transactions, and lets the first one wait for ``go``."""

    sizes: list[int]
    begun: asyncio.Event
    go: asyncio.Event

    async def write(self, records: Sequence[Record]) -> None:
        self.sizes.append(len(records))
        self.begun.set()
        await self.go.wait()
        await super().write(records)


@pytest.fixture
def counting(records: Records) -> Counting:
    made = Counting(records._pool, 10)
    made.sizes, made.begun, made.go = [], asyncio.Event(), asyncio.Event()
    return made


def spends(count: int, first: int = 0) -> list[Record]:
    return [entry(f"s{first + number}", -1, entry_kind="spend") for number in range(count)]


async def test_who_comes_meanwhile_shares_the_next_transaction(counting: Counting) -> None:
    writer = GroupCommitWriter(counting)
    writing = [asyncio.create_task(writer.write(spends(1)))]
    await counting.begun.wait()
    writing += [asyncio.create_task(writer.write(spends(1, number))) for number in range(1, 50)]
    await asyncio.sleep(0)
    counting.go.set()
    await asyncio.gather(*writing)
    assert counting.sizes == [1, 49]
    account = await counting.load_account(TENANT, "ann")
    assert account.balance_micros == -50
    # The loop goes on after a pause.
    await writer.write(spends(1, 50))
    assert counting.sizes == [1, 49, 1]


async def test_a_transaction_is_bounded(counting: Counting) -> None:
    writer = GroupCommitWriter(counting)
    half = storage_limits.FLUSH_BATCH_RECORDS // 2 + 1
    writing = [asyncio.create_task(writer.write(spends(1)))]
    await counting.begun.wait()
    for number in range(3):
        writing.append(asyncio.create_task(writer.write(spends(half, 1 + number * half))))
    await asyncio.sleep(0)
    counting.go.set()
    await asyncio.gather(*writing)
    assert counting.sizes == [1, half, half, half]


async def test_one_that_is_refused_is_the_only_one(counting: Counting) -> None:
    writer = GroupCommitWriter(counting)
    counting.go.set()
    bad: list[Record] = [minute(0, seconds=61)]
    answers = await asyncio.gather(
        writer.write(spends(1)),
        writer.write(bad),
        writer.write(spends(1, 1)),
        writer.write(spends(1, 2)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [
        type(None),
        RejectedError,
        type(None),
        type(None),
    ]
    assert len(await counting.ledger(TENANT, "ann", None, 10)) == 3


async def test_all_hear_that_postgres_is_away(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = GroupCommitWriter(counting)

    async def away(records: Sequence[Record]) -> None:
        raise UnavailableError("no answer")

    monkeypatch.setattr(counting, "write", away)
    answers = await asyncio.gather(
        *(writer.write(spends(1, number)) for number in range(5)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {UnavailableError}
    monkeypatch.undo()
    counting.go.set()
    await writer.write(spends(1))
    assert counting.sizes == [1]


async def test_one_who_goes_is_written_all_the_same(counting: Counting) -> None:
    writer = GroupCommitWriter(counting)
    gone = asyncio.create_task(writer.write(spends(1)))
    await counting.begun.wait()
    gone.cancel()
    waits = asyncio.create_task(writer.write(spends(1, 1)))
    await asyncio.sleep(0)
    counting.go.set()
    await waits
    assert gone.cancelled()
    assert len(await counting.ledger(TENANT, "ann", None, 10)) == 2


async def test_no_more_wait_than_may(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_limits, "WRITES_WAITING_MAX", 2)
    writer = GroupCommitWriter(counting)
    first = asyncio.create_task(writer.write(spends(1)))
    await counting.begun.wait()
    waiting = [asyncio.create_task(writer.write(spends(1, number))) for number in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="too many"):
        await writer.write(spends(1, 3))
    counting.go.set()
    await asyncio.gather(first, *waiting)
    assert len(await counting.ledger(TENANT, "ann", None, 10)) == 3


async def test_one_of_many_who_wait_for_the_record_fails_alone(records: Records) -> None:
    postgres = Faulty(records, lambda record: getattr(record, "minute", None) == 2)
    writer = GroupCommitWriter(cast(Any, postgres))
    done = await asyncio.gather(
        *(writer.write([minute(number)]) for number in range(5)), return_exceptions=True
    )
    assert [isinstance(one, MemoryError) for one in done] == [False, False, True, False, False]
