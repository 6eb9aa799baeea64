"""What the triggers count, and what the functions answer."""

import itertools
from datetime import date
from typing import Any, TypeAlias

import asyncpg
import pytest

from storage.postgres.records import Records
from storage.rows.months import MonthUsed, UsageDay, UsageLimit
from tests.storage.examples import START, TENANT, at, minute, month

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

NOVEMBER = at("UTC", 2026, 11, 15)
DECEMBER = at("UTC", 2026, 12, 15)


async def cache_of(connection: Connection) -> list[tuple[Any, ...]]:
    rows = await connection.fetch(
        "SELECT tenant, user_id, month, total_minutes, total_seconds"
        " FROM monthly_usage_cache ORDER BY 1, 2, 3"
    )
    return [tuple(row) for row in rows]


async def member_of(connection: Connection, user_id: str = "ann") -> tuple[Any, ...] | None:
    row = await connection.fetchrow(
        "SELECT current_month_minutes_used, current_month_start"
        " FROM organization_members WHERE tenant = $1 AND user_id = $2",
        TENANT,
        user_id,
    )
    return None if row is None else tuple(row)


# What the trigger counts


async def test_a_recording_of_61_seconds_is_two_minutes(
    records: Records, connection: Connection
) -> None:
    await records.write([minute(0), minute(1, seconds=1)])
    rows = await connection.fetch("SELECT minute, seconds FROM usage_tracking ORDER BY minute")
    assert [tuple(row) for row in rows] == [(0, 60), (1, 1)]
    assert await cache_of(connection) == [(TENANT, "ann", month(2026, 11), 2, 61)]
    assert await member_of(connection) == (2, month(2026, 11))


async def test_a_minute_that_is_there_already_is_counted_once(
    records: Records, connection: Connection
) -> None:
    await records.write([minute(0), minute(0)])
    await records.write([minute(0), minute(1)])
    assert await cache_of(connection) == [(TENANT, "ann", month(2026, 11), 2, 120)]
    assert await member_of(connection) == (2, month(2026, 11))


async def test_kinds_that_do_not_count_are_in_no_month(
    records: Records, connection: Connection
) -> None:
    await records.write([minute(0, kind="chat", counts=False)])
    assert await connection.fetchval("SELECT count(*) FROM usage_tracking") == 1
    assert await cache_of(connection) == []
    assert await member_of(connection) is None


async def test_a_user_without_an_organisation_counts_too(
    records: Records, connection: Connection
) -> None:
    await records.write([minute(0, tenant="user:bob", user_id="bob")])
    assert await cache_of(connection) == [("user:bob", "bob", month(2026, 11), 1, 60)]
    assert await connection.fetchval("SELECT count(*) FROM organization_members") == 0


async def test_one_update_a_member_and_batch(fresh_database: str) -> None:
    records = await Records.connect(fresh_database)
    connection = await asyncpg.connect(fresh_database)
    try:
        await records.write([minute(0), minute(0, user_id="ben", session_id="s2")])
        await connection.execute(
            """
            CREATE TABLE updates (name text);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO updates VALUES (TG_TABLE_NAME); RETURN NULL; END';
            CREATE TRIGGER note AFTER UPDATE ON organization_members
                FOR EACH ROW EXECUTE FUNCTION note();
            CREATE TRIGGER note AFTER UPDATE ON monthly_usage_cache
                FOR EACH ROW EXECUTE FUNCTION note();
            """
        )
        numbers = range(1, 31)
        await records.write(
            [minute(number) for number in numbers]
            + [minute(number, user_id="ben", session_id="s2") for number in numbers]
        )
        rows = await connection.fetch("SELECT name, count(*) FROM updates GROUP BY 1 ORDER BY 1")
        assert [tuple(row) for row in rows] == [
            ("monthly_usage_cache", 2),
            ("organization_members", 2),
        ]
        assert await member_of(connection) == (31, month(2026, 11))
    finally:
        await connection.close()
        await records.close()


async def test_a_newer_month_begins_the_members_month_anew(
    records: Records, connection: Connection
) -> None:
    await records.write([minute(0), minute(1)])
    december = at("UTC", 2026, 12, 1)
    await records.write([minute(2, started_at=december)])
    assert await member_of(connection) == (1, month(2026, 12))


async def test_a_late_minute_leaves_the_members_present_month_unchanged(
    records: Records, connection: Connection
) -> None:
    await records.write([minute(1, started_at=DECEMBER)])
    await records.write([minute(0)])
    assert await member_of(connection) == (1, month(2026, 12))
    assert await cache_of(connection) == [
        (TENANT, "ann", month(2026, 11), 1, 60),
        (TENANT, "ann", month(2026, 12), 1, 60),
    ]


async def test_the_members_month_does_not_depend_on_the_order(
    records: Records, connection: Connection
) -> None:
    batches = [[minute(0), minute(1)], [minute(2), minute(3, started_at=DECEMBER)], [minute(4)]]
    seen = set()
    for number, order in enumerate(itertools.permutations(batches)):
        user_id = f"user{number}"
        for batch in order:
            await records.write(
                [
                    minute(
                        one.minute, session_id=user_id, user_id=user_id, started_at=one.started_at
                    )
                    for one in batch
                ]
            )
        seen.add(await member_of(connection, user_id))
    assert seen == {(1, month(2026, 12))}


async def test_a_month_rolls_over_in_the_organisations_time_zone(
    records: Records, connection: Connection
) -> None:
    zone = "Pacific/Auckland"
    await records.put_organization(TENANT, "acme", timezone=zone, monthly_hours_limit=1)
    before = at(zone, 2026, 11, 30, 23, 59)
    after = at(zone, 2026, 12, 1, 0, 0)
    assert after - before == 60_000
    await records.write(
        [minute(0, started_at=before, zone=zone), minute(1, started_at=after, zone=zone)]
    )
    assert await member_of(connection) == (1, month(2026, 12))
    # Both instants are in November in UTC.
    answer = await records.check_usage_limit("ann", "acme", before)
    assert (answer.minutes_used, answer.minutes_remaining) == (1, 59)
    assert (await records.check_usage_limit("ann", "acme", after)).minutes_used == 1
    later = at(zone, 2027, 1, 1)
    assert (await records.check_usage_limit("ann", "acme", later)).minutes_used == 0
    member = await records.load_member(TENANT, "ann", [month(2026, 11), month(2026, 12)])
    assert member.timezone == zone
    assert member.months == (
        MonthUsed(month(2026, 11), 1, 1),
        MonthUsed(month(2026, 12), 1, 1),
    )


# Limits


def limit(
    can_record: bool,
    used: int,
    minutes_limit: int | None,
    remaining: int | None,
    percentage: float,
    binding: Any,
) -> UsageLimit:
    return UsageLimit(can_record, used, minutes_limit, remaining, percentage, binding)


@pytest.mark.parametrize(
    ("member_hours", "org_hours", "overage", "member_used", "others_used", "expected"),
    [
        # No limit at all.
        (None, None, False, 5, 7, limit(True, 5, None, None, 0, None)),
        # One limit.
        (1, None, False, 15, 45, limit(True, 15, 60, 45, 25, "member_minutes")),
        (None, 1, False, 15, 30, limit(True, 45, 60, 15, 75, "org_minutes")),
        # The last minute, and the one after it.
        (1, None, False, 59, 0, limit(True, 59, 60, 1, 98.33, "member_minutes")),
        (1, None, False, 60, 0, limit(False, 60, 60, 0, 100, "member_minutes")),
        (1, None, False, 66, 0, limit(False, 66, 60, 0, 110, "member_minutes")),
        # The more restrictive limit is the one with less left, not the lower number.
        (1, 2, False, 10, 0, limit(True, 10, 60, 50, 16.67, "member_minutes")),
        (1, 2, False, 10, 90, limit(True, 100, 120, 20, 83.33, "org_minutes")),
        (2, 1, False, 10, 0, limit(True, 10, 60, 50, 16.67, "org_minutes")),
        (1, 1, False, 10, 0, limit(True, 10, 60, 50, 16.67, "member_minutes")),
        # Hours become whole minutes, the nearest; 0 hours are a limit.
        (0.99, None, False, 0, 0, limit(True, 0, 59, 59, 0, "member_minutes")),
        (0.1, None, False, 6, 0, limit(False, 6, 6, 0, 100, "member_minutes")),
        (0, None, False, 0, 0, limit(False, 0, 0, 0, 100, "member_minutes")),
        # Overage lifts the organisation's limit, not the limit it set for a member.
        (None, 1, True, 30, 36, limit(True, 66, 60, 0, 110, None)),
        (1, 1, True, 15, 60, limit(True, 15, 60, 45, 25, "member_minutes")),
        (1, 1, True, 60, 60, limit(False, 60, 60, 0, 100, "member_minutes")),
    ],
)
async def test_the_more_restrictive_limit_decides(
    records: Records,
    member_hours: float | None,
    org_hours: float | None,
    overage: bool,
    member_used: int,
    others_used: int,
    expected: UsageLimit,
) -> None:
    await records.put_organization(
        TENANT, "acme", monthly_hours_limit=org_hours, allow_overage=overage
    )
    await records.put_member(TENANT, "ann", monthly_hours_limit=member_hours)
    await records.write(
        [minute(number) for number in range(member_used)]
        + [minute(number, session_id="s2", user_id="ben") for number in range(others_used)]
    )
    assert await records.check_usage_limit("ann", "acme", NOVEMBER) == expected


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        # An operator means a number of minutes, however a float represents it.
        *((minutes / 60, minutes) for minutes in (0, 1, 7, 10, 20, 35, 59, 61, 599, 59_999_999)),
        # Any number of decimals is accepted.
        (0.1667, 10),
        (0.1666, 10),
        (0.17, 10),
        (0.33, 20),
        (0.3, 18),
        # A fraction becomes the nearest whole minute, and half a minute is not given away.
        (0.99, 59),
        (0.16, 10),
        (0.15, 9),
        (0.025, 1),
        (0.0251, 2),
        (0.175, 10),
        (0.008, 0),
        (1_000_000, 60_000_000),
    ],
)
async def test_hours_are_the_nearest_minutes(records: Records, hours: float, expected: int) -> None:
    await records.put_organization(TENANT, "acme", monthly_hours_limit=hours)
    await records.put_member(TENANT, "ann", monthly_hours_limit=hours)
    found = await records.load_member(TENANT, "ann", [])
    assert (found.org_limit_minutes, found.member_limit_minutes) == (expected, expected)
    assert (await records.check_usage_limit("ann", "acme", NOVEMBER)).minutes_limit == expected
    assert expected - hours * 60 < 0.5


async def test_without_rows_there_is_no_limit(records: Records) -> None:
    expected = limit(True, 0, None, None, 0, None)
    assert await records.check_usage_limit("ann", "acme", NOVEMBER) == expected
    assert await records.check_usage_limit("ann", None, NOVEMBER) == expected


async def test_a_user_without_an_organisation_is_told_the_minutes_used(records: Records) -> None:
    await records.write(
        [minute(0, tenant="user:ann"), minute(0), minute(1, session_id="s2", counts=False)]
    )
    answer = await records.check_usage_limit("ann", None, NOVEMBER)
    assert answer == limit(True, 1, None, None, 0, None)


async def test_a_limit_is_of_the_month_that_is_asked_for(
    records: Records, connection: Connection
) -> None:
    await records.put_member(TENANT, "ann", monthly_hours_limit=1)
    await records.write([minute(number) for number in range(60)])
    assert not (await records.check_usage_limit("ann", "acme", NOVEMBER)).can_record
    assert (await records.check_usage_limit("ann", "acme", DECEMBER)).can_record


async def test_a_check_without_an_instant_uses_the_present_month(
    records: Records, connection: Connection
) -> None:
    await records.put_member(TENANT, "ann", monthly_hours_limit=1)
    present_at = await connection.fetchval("SELECT epoch_ms(now())")
    await records.write([minute(0, started_at=present_at), minute(1, started_at=0)])
    row = await connection.fetchrow("SELECT * FROM check_usage_limit('ann', 'acme')")
    assert row is not None
    assert (row["can_record"], row["minutes_used"], row["minutes_limit"]) == (True, 1, 60)


# Usage by day


async def test_days_are_the_organisations(records: Records) -> None:
    zone = "America/New_York"
    await records.put_organization(TENANT, "acme", timezone=zone)
    # The night in which its summer time ends: 1 November 2026 has 25 hours.
    first = at(zone, 2026, 10, 31, 23, 59)
    instants = [first + 60_000 * offset for offset in (0, 1, 25 * 60, 25 * 60 + 1)]
    await records.write(
        [
            minute(number, started_at=instant, zone=zone, seconds=30 + number)
            for number, instant in enumerate(instants)
        ]
    )
    assert await records.usage_details("ann", "acme", date(2026, 10, 31), date(2026, 11, 3)) == (
        UsageDay(date(2026, 10, 31), 1, 30, 1, 1_000_000),
        UsageDay(date(2026, 11, 1), 2, 31 + 32, 1, 2_000_000),
        UsageDay(date(2026, 11, 2), 1, 33, 1, 1_000_000),
    )
    assert await records.usage_details("ann", "acme", date(2026, 11, 1), date(2026, 11, 2)) == (
        UsageDay(date(2026, 11, 1), 2, 31 + 32, 1, 2_000_000),
    )


async def test_a_day_has_counted_minutes_and_all_credits(
    records: Records,
) -> None:
    await records.write(
        [
            minute(0),
            minute(0, session_id="chat", kind="chat", counts=False, credits_micros=250_000),
            minute(0, session_id="other", user_id="ben"),
            minute(0, session_id="own", tenant="user:ann"),
        ]
    )
    days = (date(2026, 11, 10), date(2026, 11, 11))
    assert await records.usage_details("ann", "acme", *days) == (
        UsageDay(days[0], 1, 60, 2, 1_250_000),
    )
    assert await records.usage_details(None, "acme", *days) == (
        UsageDay(days[0], 2, 120, 3, 2_250_000),
    )
    assert await records.usage_details("ann", None, *days) == (
        UsageDay(days[0], 1, 60, 1, 1_000_000),
    )
    assert await records.usage_details("ann", "acme", days[1], date(2026, 11, 12)) == ()


async def test_instants_survive_to_the_millisecond(connection: Connection) -> None:
    instants = [0, 1, 999, START, START + 1, START + 333, START + 999, 4_102_444_799_999, -1]
    for instant_at in instants:
        assert await connection.fetchval("SELECT epoch_ms(instant($1))", instant_at) == instant_at
