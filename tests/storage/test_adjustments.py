"""Corrections of a month, and minutes beyond a limit without a stop."""

import asyncio
from typing import Any, TypeAlias

import asyncpg
import pytest

from storage.postgres.records import Records, RejectedError
from storage.rows.months import AdjustmentRow
from tests.storage.examples import START, TENANT, minute, month

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
NOVEMBER = "2026-11-01"


def adjustment(
    entry_id: str, minutes: int, user_id: str = "ann", tenant: str = TENANT, month: str = NOVEMBER
) -> AdjustmentRow:
    return AdjustmentRow(tenant, user_id, entry_id, month, minutes, "measured twice", START)


async def months(connection: Connection) -> dict[str, tuple[int, int, int]]:
    """Minutes, seconds and overage of every user's month."""
    rows = await connection.fetch("SELECT * FROM monthly_usage_cache")
    return {
        row["user_id"]: (row["total_minutes"], row["total_seconds"], row["overage_minutes"])
        for row in rows
    }


async def test_an_adjustment_is_an_entry_and_changes_the_month_once(
    records: Records, connection: Connection
) -> None:
    await records.write([minute(number) for number in range(5)])
    assert await records.adjust_minutes(adjustment("a1", -2))
    assert not await records.adjust_minutes(adjustment("a1", -3))
    assert await records.adjustment(TENANT, "ann", "a1") == adjustment("a1", -2)
    assert await records.adjustment(TENANT, "ann", "a2") is None
    # The measured seconds stay: five minutes of them.
    assert await months(connection) == {"ann": (3, 300, 0)}
    member = await records.member(TENANT, "ann")
    assert member is not None
    assert member.current_month_minutes_used == 3
    limit = await records.check_usage_limit("ann", "acme", START)
    assert limit.minutes_used == 3
    assert await records.audit() == ()


async def test_an_adjustment_of_somebody_who_used_nothing(
    records: Records, connection: Connection
) -> None:
    await records.adjust_minutes(adjustment("a1", 7))
    await records.adjust_minutes(adjustment("a1", 3, tenant="user:bob", user_id="bob"))
    assert await months(connection) == {"ann": (7, 0, 0), "bob": (3, 0, 0)}
    member = await records.member(TENANT, "ann")
    assert member is not None
    assert (member.current_month_minutes_used, member.current_month_start) == (7, month(2026, 11))
    assert await records.member("user:bob", "bob") is None
    with pytest.raises(RejectedError, match="monthly_usage_cache"):
        await records.adjust_minutes(adjustment("a2", -8))
    assert await records.adjustment(TENANT, "ann", "a2") is None
    assert await records.audit() == ()


async def test_an_adjustment_of_an_earlier_month_leaves_the_present_one(records: Records) -> None:
    await records.write([minute(0)])
    await records.adjust_minutes(adjustment("a1", 7, month="2026-10-01"))
    member = await records.member(TENANT, "ann")
    assert member is not None
    assert (member.current_month_minutes_used, member.current_month_start) == (1, month(2026, 11))
    found = await records.load_member(TENANT, "ann", [month(2026, 10), month(2026, 11)])
    assert [used.member_minutes for used in found.months] == [7, 1]


async def test_adjustments_wait_until_redis_has_them(records: Records) -> None:
    await records.adjust_minutes(adjustment("a1", 7))
    await records.adjust_minutes(adjustment("a2", 1, user_id="ben"))
    assert [one.entry_id for one in await records.adjustments_waiting(9)] == ["a1", "a2"]
    found = await records.load_member(TENANT, "cleo", [])
    assert found.adjustment_ids == ("ann/a1", "ben/a2")
    await records.adjustment_applied(TENANT, "ann", "a1")
    assert await records.adjustments_waiting(9) == (adjustment("a2", 1, user_id="ben"),)
    assert (await records.load_member(TENANT, "cleo", [])).adjustment_ids == ("ben/a2",)


async def test_minutes_beyond_a_soft_limit_are_counted_apart(
    records: Records, connection: Connection
) -> None:
    await records.put_organization(TENANT, "acme", monthly_hours_limit=0.1, allow_overage=True)
    await records.write([minute(number) for number in range(4)])
    # Six are within the limit; of the batch, the last minutes to begin are beyond.
    await records.write(
        [
            minute(0, session_id="s2", user_id="ben", started_at=START + 5_000),
            minute(1, session_id="s2", user_id="ben", started_at=START + 65_000),
            minute(4, started_at=START + 70_000),
            minute(0, session_id="s3", user_id="cleo", started_at=START + 80_000, counts=False),
        ]
    )
    assert await months(connection) == {"ann": (5, 300, 1), "ben": (2, 120, 0)}
    await records.write([minute(0, session_id="s4", user_id="ben")])
    assert (await months(connection))["ben"] == (3, 180, 1)
    # Minutes that are written again are not counted again.
    await records.write([minute(0, session_id="s4", user_id="ben")])
    assert (await months(connection))["ben"] == (3, 180, 1)
    # A correction moves the organisation's month over its limit, or back.
    await records.adjust_minutes(adjustment("a1", -1))
    assert (await months(connection))["ann"] == (4, 300, 0)
    await records.adjust_minutes(adjustment("a2", 3))
    assert (await months(connection))["ann"] == (7, 300, 3)
    assert await records.audit() == ()


@pytest.mark.parametrize(
    "plan",
    [
        {"monthly_hours_limit": 0.05, "allow_overage": False},
        {"monthly_hours_limit": None, "allow_overage": True},
    ],
)
async def test_without_overage_or_limit_nothing_is_beyond(
    records: Records, connection: Connection, plan: dict[str, Any]
) -> None:
    await records.put_organization(TENANT, "acme", **plan)
    await records.write([minute(number) for number in range(5)])
    assert await months(connection) == {"ann": (5, 300, 0)}


async def test_batches_at_once_count_what_is_beyond_once(
    records: Records, connection: Connection
) -> None:
    await records.put_organization(TENANT, "acme", monthly_hours_limit=0.5, allow_overage=True)
    batches = [
        [
            minute(number, session_id=f"s{batch}", user_id=f"user-{batch % 4}")
            for number in range(10)
        ]
        for batch in range(12)
    ]
    await asyncio.gather(*(records.write(batch) for batch in batches + batches))
    found = await months(connection)
    assert sum(minutes for minutes, _, _ in found.values()) == 120
    assert sum(beyond for _, _, beyond in found.values()) == 90
