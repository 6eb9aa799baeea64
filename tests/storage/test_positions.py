"""Positions of a ledger follow commits, and no account grows beyond its bound, however many
write at the same time."""

import asyncio
from typing import TypeAlias

import asyncpg
import pytest

from protocol import limits
from storage.postgres.ledgers import BALANCE_CHECK
from storage.postgres.records import Records, RefusedError
from tests.storage.examples import TENANT, entry
from tests.storage.test_record_calls import blocked

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def test_whoever_sees_an_entry_sees_every_one_before_it(
    records: Records, connection: Connection
) -> None:
    await records.write([entry("a0", 1, account_id="aaa"), entry("b0", 1, account_id="bob")])
    # Somebody is at work on one account, so a batch for both waits; the other goes on.
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "SELECT FROM credit_accounts WHERE account_id = 'aaa' FOR NO KEY UPDATE"
    )
    batch = [entry("a1", 2, account_id="aaa"), entry("b1", 4, account_id="bob")]
    writing = asyncio.create_task(records.write(batch))
    await blocked(connection, 1)
    await records.post_entry(entry("b2", 8, account_id="bob"))
    loaded = await records.load_account(TENANT, "bob")
    assert loaded.balance_micros == 9
    await transaction.rollback()
    await writing
    late = await records.entries_after(TENANT, "bob", loaded.position)
    assert [one.entry_id for one in late] == ["b1"]
    assert (await records.load_account(TENANT, "bob")).balance_micros == 13


async def test_two_that_make_the_same_accounts_wait_for_each_other(records: Records) -> None:
    """Whatever the order in a batch, and whether the accounts are there or not."""
    names = [f"acc{number}" for number in range(12)]
    await records.write([entry("g", 1, account_id=name) for name in names[::3]])
    await asyncio.gather(
        *(
            records.write([entry(f"e{batch}", 1, account_id=name) for name in turned])
            for batch in range(20)
            for turned in [names[batch % 12 :] + names[: batch % 12][::-1]]
        ),
        *(records.post_entry(entry("p", 1, account_id=name)) for name in names),
    )
    assert records.retries == 0
    for name in names:
        found = await records.ledger(TENANT, name, None, 100)
        assert len(found) == (22 if name in names[::3] else 21)


async def test_what_is_refused_leaves_no_account(records: Records) -> None:
    with pytest.raises(RefusedError) as refused:
        await records.post_entry(entry("g", limits.BALANCE_MICROS_MAX + 1))
    assert refused.value.constraint == BALANCE_CHECK
    assert await records.accounts(TENANT, None, 10) == ()
    assert await records.inbox(10) == ()


async def test_twelve_at_once_leave_no_more_than_an_account_may_have(records: Records) -> None:
    most = limits.BALANCE_MICROS_MAX
    answers = await asyncio.gather(
        *(records.post_entry(entry(f"g{number}", most // 2)) for number in range(12)),
        return_exceptions=True,
    )
    assert answers.count(True) == 2
    refused = [answer for answer in answers if isinstance(answer, RefusedError)]
    assert {error.constraint for error in refused} == {BALANCE_CHECK}
    assert len(refused) == 10
    assert (await records.load_account(TENANT, "ann")).balance_micros == most
    # What takes is never refused, not even where there is too much already.
    await records.write([entry("s1", -1, entry_kind="spend")])
    assert await records.post_entry(entry("g12", 1))
    with pytest.raises(RefusedError):
        await records.post_entry(entry("g13", 1))
    assert await records.post_entry(entry("a1", -1, entry_kind="adjust"))
