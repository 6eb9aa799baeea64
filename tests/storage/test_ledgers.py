"""The ledger: money in, its inbox, balances, pages, and positions after commits."""

import asyncio
from typing import TypeAlias

import asyncpg
import pytest

from protocol import limits
from storage.postgres.ledgers import BALANCE_CHECK
from storage.postgres.records import Records, RejectedError
from storage.rows.idempotency import Fresh, KeyClaim
from storage.rows.sessions import RecordedSession
from tests.storage.examples import START, TENANT, batch_of, ended, entry, minute, started
from tests.storage.test_database import blocked

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def test_whoever_sees_an_entry_sees_every_one_before_it(
    records: Records, connection: Connection
) -> None:
    await records.write([entry("a0", 1, account_id="aaa"), entry("b0", 1, account_id="bob")])
    # A transaction holds one account, so a batch for both accounts waits; the other batch goes on.
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
    """Writers of the same accounts wait for each other, without retries.

    This holds in any order of a batch, and whether the accounts exist or not.
    """
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
    with pytest.raises(RejectedError) as refused:
        await records.post_entry(entry("g", limits.BALANCE_MICROS_MAX + 1))
    assert refused.value.constraint == BALANCE_CHECK
    assert await records.accounts(TENANT, None, 10) == ()
    assert await records.inbox(10) == ()


async def test_twelve_concurrent_grants_do_not_exceed_the_largest_balance(records: Records) -> None:
    most = limits.BALANCE_MICROS_MAX
    answers = await asyncio.gather(
        *(records.post_entry(entry(f"g{number}", most // 2)) for number in range(12)),
        return_exceptions=True,
    )
    assert answers.count(True) == 2
    refused = [answer for answer in answers if isinstance(answer, RejectedError)]
    assert {error.constraint for error in refused} == {BALANCE_CHECK}
    assert len(refused) == 10
    assert (await records.load_account(TENANT, "ann")).balance_micros == most
    # What takes is never refused, not even where there is too much already.
    await records.write([entry("s1", -1, entry_kind="spend")])
    assert await records.post_entry(entry("g12", 1))
    with pytest.raises(RejectedError):
        await records.post_entry(entry("g13", 1))
    assert await records.post_entry(entry("a1", -1, entry_kind="adjust"))


async def test_money_in_is_in_the_ledger_and_in_the_inbox(records: Records) -> None:
    granted = entry("g1", 5_000_000, reason="bought")
    assert await records.post_entry(granted, priority=7, expires_at=START + 1)
    (waiting,) = await records.inbox(10)
    assert (waiting.tenant, waiting.account_id, waiting.entry_id) == (TENANT, "ann", "g1")
    assert (waiting.amount_micros, waiting.entry_kind, waiting.reason) == (
        5_000_000, "grant", "bought",
    )  # fmt: skip
    (written,) = await records.ledger(TENANT, "ann", None, 10)
    assert (written.priority, written.expires_at, written.created_at) == (7, START + 1, START)
    assert (await records.load_account(TENANT, "ann")).balance_micros == 5_000_000


async def test_money_in_comes_once(records: Records) -> None:
    assert await records.post_entry(entry())
    assert not await records.post_entry(entry())
    assert len(await records.inbox(10)) == 1
    await records.inbox_done([(TENANT, "ann", "g1")])
    await records.inbox_done([(TENANT, "ann", "g1")])
    assert not await records.post_entry(entry())
    assert await records.inbox(10) == ()
    assert (await records.load_account(TENANT, "ann")).balance_micros == 10_000_000


async def claimed(records: Records) -> tuple[Fresh, KeyClaim]:
    """Begins the work of a key."""
    fresh = await records.begin_idempotent(TENANT, "grants/key", "k", "print")
    assert isinstance(fresh, Fresh)
    return fresh, KeyClaim("grants/key", "k", fresh.began_at)


async def test_claim_lets_money_in_once(records: Records) -> None:
    _, claim = await claimed(records)
    assert await records.post_entry(entry(), claim=claim)
    assert not await records.post_entry(entry(), claim=claim)


@pytest.mark.parametrize("how", ["refused", "released", "taken over", "pruned"])
async def test_late_money_in_of_ended_claim_is_not_written(records: Records, how: str) -> None:
    """The first attempt's statement reaches Postgres after another attempt was answered."""
    fresh, late = await claimed(records)
    asked = (TENANT, "grants/key", "k")
    if how == "refused":
        assert await records.finish_idempotent(*asked, fresh, 422, b"{}")
    elif how == "released":
        await records.release_idempotent(*asked, fresh)
        fresh, claim = await claimed(records)
        assert claim != late
    elif how == "taken over":
        taken = await records.begin_idempotent(*asked, "print", takeover_ms=0)
        assert isinstance(taken, Fresh)
    else:
        await records.release_idempotent(*asked, fresh)
    assert not await records.post_entry(entry(), claim=late)
    assert (await records.load_account(TENANT, "ann")).balance_micros == 0
    assert await records.inbox(10) == ()


async def test_the_inbox_is_read_oldest_first_and_emptied_one_by_one(records: Records) -> None:
    for number in (3, 1, 2):
        await records.post_entry(entry(f"g{number}"))
    assert [one.entry_id for one in await records.inbox(2)] == ["g3", "g1"]
    await records.inbox_done([(TENANT, "ann", "g3"), (TENANT, "ann", "g2"), ("x", "y", "z")])
    assert [one.entry_id for one in await records.inbox(9)] == ["g1"]


async def test_what_is_decided_in_redis_is_no_money_in(records: Records) -> None:
    with pytest.raises(ValueError, match="spend is decided in Redis"):
        await records.post_entry(entry("s", -1, entry_kind="spend"))
    assert await records.inbox(10) == ()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE credit_ledger SET amount_micros = 0",
        "DELETE FROM credit_ledger",
        "TRUNCATE credit_ledger",
        "INSERT INTO credit_ledger (tenant, account_id, entry_id, entry_kind, amount_micros) "
        "VALUES ('org:acme', 'ann', 'g1', 'grant', 1) "
        "ON CONFLICT (tenant, account_id, entry_id) DO UPDATE SET amount_micros = 1",
    ],
)
async def test_the_ledger_is_append_only(
    records: Records, connection: Connection, change: str
) -> None:
    await records.write([entry()])
    with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
        await connection.execute(change)
    assert (await records.load_account(TENANT, "ann")).balance_micros == 10_000_000


async def test_debt_is_written_down_shown_and_paid_off(
    records: Records, connection: Connection
) -> None:
    await records.write([minute(0)])
    account = await records.load_account(TENANT, "ann")
    assert (account.balance_micros, account.debt_allowed) == (-1_000_000, True)
    await records.write([entry("g1", 999_999)])
    account = await records.load_account(TENANT, "ann")
    assert (account.balance_micros, account.debt_allowed) == (-1, True)
    await records.write([entry("g2", 1)])
    account = await records.load_account(TENANT, "ann")
    assert (account.balance_micros, account.debt_allowed) == (0, False)
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("UPDATE credit_accounts SET balance_micros = -1")


async def test_the_balance_is_the_sum_of_the_ledger(
    records: Records, connection: Connection
) -> None:
    for tenant in (TENANT, "org:other"):
        await records.write(batch_of(tenant))
    rows = await connection.fetch(
        "SELECT balance_micros, (SELECT sum(amount_micros) FROM credit_ledger AS entry"
        " WHERE (entry.tenant, entry.account_id) = (account.tenant, account.account_id)) AS total"
        " FROM credit_accounts AS account"
    )
    assert len(rows) == 4
    assert all(row["balance_micros"] == row["total"] for row in rows)


async def test_an_account_nobody_wrote_to_is_empty(records: Records) -> None:
    account = await records.load_account(TENANT, "nobody", START)
    assert (account.balance_micros, account.debt_allowed) == (0, False)
    assert (account.recent_entry_ids, account.recorded) == ((), ())


async def test_loading_includes_the_newest_money_in_and_the_inbox(
    records: Records,
) -> None:
    await records.post_entry(entry("oldest", 1))
    await records.write([entry(f"g{number}", 1) for number in range(300)])
    await records.write([entry("s", -1, entry_kind="spend"), minute(0)])
    ids = (await records.load_account(TENANT, "ann")).recent_entry_ids
    assert len(ids) == len(set(ids)) == 257
    assert ids[-1] == "oldest"
    assert all(one.startswith("g") for one in ids[:256])
    await records.inbox_done([(TENANT, "ann", "oldest")])
    assert len((await records.load_account(TENANT, "ann")).recent_entry_ids) == 256


async def test_loading_an_account_includes_charges_of_running_sessions(
    records: Records,
) -> None:
    await records.write([started(session_id=f"s{number}") for number in range(1, 5)])
    await records.write([minute(1), minute(0, credits_micros=0, free_ms=60_000)])
    await records.write([minute(0, session_id="s2"), minute(0, session_id="s4")])
    await records.write([ended(session_id="s2", ended_at=START), ended(session_id="s4")])
    account = await records.load_account(TENANT, "ann", START)
    assert account.recorded == (
        RecordedSession("s1", 2, 1_000_000, 60_000),
        RecordedSession("s4", 1, 1_000_000, 0),
    )
    assert (await records.load_account(TENANT, "ann")).recorded == ()


async def test_the_newest_entries_moved_money_and_are_no_minutes(
    records: Records,
) -> None:
    await records.write([entry("old", 5, at_ms=START), minute(0)])
    await records.write([entry("new", 7, at_ms=START + 1)])
    found = await records.entries_since(START, 10)
    assert [(one.entry_id, one.amount_micros) for one in found] == [("new", 7)]
    position = (await records.load_account(TENANT, "ann")).position
    assert position == found[0].position


async def test_ledger_and_accounts_are_paged(records: Records) -> None:
    await records.write([entry(f"g{number}", number) for number in range(5)])
    await records.write([entry("s", -3, entry_kind="spend", account_id="ben", at_ms=START + 1)])
    newest = await records.ledger(TENANT, "ann", None, 3)
    rest = await records.ledger(TENANT, "ann", newest[-1].position, 3)
    assert {one.entry_id for one in newest + rest} == {f"g{number}" for number in range(5)}
    positions = [one.position for one in newest + rest]
    assert positions == sorted(positions, reverse=True)
    assert await records.ledger("org:other", "ann", None, 3) == ()

    (ann,) = await records.accounts(TENANT, None, 1)
    assert (ann.account_id, ann.entries, ann.in_micros, ann.spent_micros) == ("ann", 5, 10, 0)
    (ben,) = await records.accounts(TENANT, "ann", 9)
    assert (ben.account_id, ben.balance_micros, ben.debt_allowed) == ("ben", -3, True)
    assert (ben.spent_micros, ben.burnt_micros) == (3, 0)
