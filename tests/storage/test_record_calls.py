"""The record's answers about organisations and members, and its idempotency keys."""

import asyncio
from typing import TypeAlias

import asyncpg
import pytest

from storage.postgres.records import Records, RejectedError
from storage.rows.idempotency import Fresh, Mismatch, StoredAnswer, UnderWay
from storage.rows.months import MemberRecord, MonthUsed
from tests.storage.examples import TENANT, at, minute, month

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


# Organisations and members


async def test_an_organisation_keeps_what_is_not_given(records: Records) -> None:
    row = await records.put_organization(TENANT, "acme")
    assert (row.tier, row.timezone, row.monthly_hours_limit, row.allow_overage) == (
        "free", "UTC", None, False,
    )  # fmt: skip
    await records.put_organization(TENANT, "acme", timezone="Europe/Berlin", monthly_hours_limit=9)
    row = await records.put_organization(TENANT, "acme", tier="pro", allow_overage=True)
    assert (row.tier, row.timezone, row.monthly_hours_limit, row.allow_overage) == (
        "pro", "Europe/Berlin", 9, True,
    )  # fmt: skip
    row = await records.put_organization(TENANT, "acme", monthly_hours_limit=None)
    assert (row.tier, row.monthly_hours_limit) == ("pro", None)


async def test_a_member_keeps_the_minutes_used(records: Records) -> None:
    await records.write([minute(0)])
    row = await records.put_member(TENANT, "ann", monthly_hours_limit=0.5)
    assert (row.monthly_hours_limit, row.current_month_minutes_used) == (0.5, 1)
    assert row.current_month_start == month(2026, 11)
    assert (await records.put_member(TENANT, "ann")).monthly_hours_limit == 0.5
    assert (await records.put_member(TENANT, "ann", monthly_hours_limit=None)) == (
        await records.put_member(TENANT, "ann")
    )


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "UTC\0"])
async def test_a_time_zone_that_is_none_is_refused(records: Records, zone: str) -> None:
    with pytest.raises(RejectedError):
        await records.put_organization(TENANT, "acme", timezone=zone)


@pytest.mark.parametrize("hours", [-1, 1_000_001, float("nan"), float("inf")])
async def test_a_limit_that_is_none_is_refused(records: Records, hours: float) -> None:
    with pytest.raises(RejectedError):
        await records.put_organization(TENANT, "acme", monthly_hours_limit=hours)
    with pytest.raises(RejectedError):
        await records.put_member(TENANT, "ann", monthly_hours_limit=hours)


async def test_a_member_is_loaded_with_the_months_of_both(records: Records) -> None:
    november, december = month(2026, 11), month(2026, 12)
    assert await records.load_member(TENANT, "ann", [november]) == MemberRecord(
        "UTC", "free", False, None, None, (MonthUsed(november, 0, 0),)
    )
    await records.put_organization(
        TENANT, "acme", timezone="Asia/Tokyo", tier="pro", monthly_hours_limit=2, allow_overage=True
    )
    await records.put_member(TENANT, "ann", monthly_hours_limit=0.99)
    await records.write(
        [
            minute(0),
            minute(1, started_at=at("Asia/Tokyo", 2026, 12, 1), zone="Asia/Tokyo"),
            minute(0, session_id="s2", user_id="ben"),
            minute(0, session_id="s3", tenant="user:ann"),
        ]
    )
    assert await records.load_member(TENANT, "ann", [november, december]) == MemberRecord(
        "Asia/Tokyo", "pro", True, 59, 120, (MonthUsed(november, 1, 2), MonthUsed(december, 1, 1))
    )
    own = await records.load_member("user:ann", "ann", [november])
    assert own.months == (MonthUsed(november, 1, 1),)


# Idempotency


async def begun(records: Records, *asked: str) -> Fresh:
    """The right to work under a key."""
    mine = await records.begin_idempotent(*asked)
    assert isinstance(mine, Fresh)
    return mine


async def test_a_key_is_answered_as_it_was_the_first_time(records: Records) -> None:
    key = (TENANT, "POST /v1/accounts/ann/grants", "k1")
    mine = await begun(records, *key, "body")
    assert await records.begin_idempotent(*key, "body") == UnderWay()
    assert await records.begin_idempotent(*key, "another") == Mismatch()
    assert await records.finish_idempotent(*key, mine, 201, b'{"credits":"1"}')
    assert not await records.finish_idempotent(*key, mine, 500, b"later")
    assert await records.begin_idempotent(*key, "body") == StoredAnswer(201, b'{"credits":"1"}')
    assert await records.begin_idempotent(*key, "another") == Mismatch()
    await begun(records, "org:other", *key[1:], "another")


async def test_work_whose_process_died_is_taken_over(
    records: Records, connection: Connection
) -> None:
    key = (TENANT, "grants", "k1")
    first = await begun(records, *key, "body")
    await connection.execute(
        "UPDATE idempotency_keys SET created_at = created_at - interval '59 seconds'"
    )
    assert await records.begin_idempotent(*key, "body") == UnderWay()
    await connection.execute(
        "UPDATE idempotency_keys SET created_at = created_at - interval '1 second'"
    )
    assert await records.begin_idempotent(*key, "another") == Mismatch()
    second = await begun(records, *key, "body")
    assert await records.begin_idempotent(*key, "body") == UnderWay()
    # The overtaken request neither answers for the other nor frees the key.
    await records.release_idempotent(*key, first)
    assert not await records.finish_idempotent(*key, first, 402, b"no")
    assert await records.finish_idempotent(*key, second, 200, b"{}")
    assert await records.begin_idempotent(*key, "body", takeover_ms=0) == StoredAnswer(200, b"{}")


async def test_work_without_an_answer_may_be_tried_again(records: Records) -> None:
    key = (TENANT, "grants", "k1")
    await records.release_idempotent(*key, await begun(records, *key, "body"))
    mine = await begun(records, *key, "another")
    await records.finish_idempotent(*key, mine, 402, b"no")
    await records.release_idempotent(*key, mine)
    assert await records.begin_idempotent(*key, "another") == StoredAnswer(402, b"no")


async def test_one_of_many_gets_the_key(records: Records) -> None:
    answers = await asyncio.gather(
        *(records.begin_idempotent(TENANT, "grants", "k1", "body") for _ in range(10))
    )
    assert sum(isinstance(answer, Fresh) for answer in answers) == 1
    assert answers.count(UnderWay()) == 9


async def test_old_keys_are_forgotten_a_bounded_number_at_a_time(
    records: Records, connection: Connection
) -> None:
    for number in range(3):
        await records.begin_idempotent(TENANT, "grants", f"k{number}", "body")
    now_at = await connection.fetchval("SELECT epoch_ms(now()) + 1")
    assert await records.prune_idempotent(now_at - 60_000) == 0
    assert await records.prune_idempotent(now_at, limit=2) == 2
    assert await records.prune_idempotent(now_at, limit=2) == 1
