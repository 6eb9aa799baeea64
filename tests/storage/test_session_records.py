"""A session's end and minutes agree, whichever record comes first."""

import asyncio
from collections.abc import Sequence
from itertools import count, pairwise
from typing import Any, cast

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.metering.records import MinuteUsed, Record, SessionEnded
from storage.postgres import columns
from storage.postgres.records import Records
from storage.postgres.session_records import write_sessions
from storage.postgres.usage import Usage
from tests.fixtures.database import Connection
from tests.storage.examples import START, TENANT, ended, minute, started

_tenants = count()
HALF = 500_000
RESUMED_AT = START + 70_000


def lost_minutes(tenant: str = TENANT, **changes: Any) -> list[MinuteUsed]:
    """Four whole minutes of lost steps; the first minute is free."""
    return [
        minute(0, tenant=tenant, credits_micros=0, free_ms=60_000, **changes),
        *(
            minute(number, tenant=tenant, started_at=RESUMED_AT + (number - 1) * 60_000, **changes)
            for number in (1, 2, 3)
        ),
    ]


def end_at(seconds: int, tenant: str = TENANT, **changes: Any) -> list[Record]:
    """The end of an older copy, with its last minute."""
    minutes = -(-seconds // 60)
    last_s = seconds - 60 * (minutes - 1)
    credits_micros = (seconds - 60) * 1_000_000 // 60
    fields = {
        "ended_at": RESUMED_AT + (seconds - 60) * 1_000,
        "elapsed_ms": seconds * 1_000,
        "billed_ms": (seconds - 60) * 1_000,
        "minutes": minutes,
        "credits_micros": credits_micros,
        "segments": [
            (START, START + 60_000),
            (RESUMED_AT, RESUMED_AT + (seconds - 60) * 1_000),
        ],
        **changes,
    }
    last = minute(
        minutes - 1,
        tenant=tenant,
        started_at=RESUMED_AT + (minutes - 2) * 60_000,
        seconds=last_s,
        credits_micros=last_s * 1_000_000 // 60,
    )
    return [last, ended(tenant=tenant, **fields)]


def lost_end(minutes: int, tenant: str = TENANT) -> SessionEnded:
    """The end of a session that was taken for lost."""
    found = end_at(60 * minutes, tenant, reason="node_lost")[1]
    assert isinstance(found, SessionEnded)
    return found


async def agrees(records: Records, connection: Connection, tenant: str, seconds: int) -> None:
    """Checks the record of the session, which ended after ``seconds``."""
    minutes, micros = -(-seconds // 60), (seconds - 60) * 1_000_000 // 60
    row = await records.session(tenant, "s1")
    assert row is not None
    assert (row.state, row.elapsed_ms, row.minutes) == ("ended", seconds * 1_000, minutes)
    assert row.charged_micros == micros
    found = await Usage.over(records).session(tenant, "s1")
    assert [one.minute for one in found] == list(range(minutes))
    assert [one.seconds for one in found] == [60] * (minutes - 1) + [seconds - 60 * (minutes - 1)]
    assert sum(one.charged_micros for one in found) == micros
    assert sum(one.free_ms for one in found) == 60_000
    begins = [START, *(RESUMED_AT + number * 60_000 for number in range(minutes - 1))]
    assert [one.started_at for one in found] == begins
    (month,) = await connection.fetch("SELECT * FROM monthly_usage_cache WHERE tenant = $1", tenant)
    assert (month["total_minutes"], month["total_seconds"]) == (minutes, seconds)
    assert month["overage_minutes"] == minutes - 1
    members = "SELECT * FROM organization_members WHERE tenant = $1"
    (member,) = await connection.fetch(members, tenant)
    assert member["current_month_minutes_used"] == minutes
    entries = await records.ledger(tenant, "ann", None, 100)
    assert sum(one.amount_micros for one in entries) == -micros
    assert {one.entry_kind for one in entries} == {"burn"}
    # Credits that come back are no money in that Redis would have to learn of.
    assert await records.entries_after(tenant, "ann", 0) == ()
    assert [one for one in await records.audit() if one.tenant == tenant] == []


async def with_overage(records: Records) -> str:
    """A new tenant, whose minutes after the first one are overage."""
    tenant = f"org:ends{next(_tenants)}"
    await records.put_organization(
        tenant, tenant[4:], monthly_hours_limit=1 / 60, allow_overage=True
    )
    return tenant


WORLDS = {
    "steps were lost": ((), 90),
    "one minute was lost": ((), 119),
    "a minute before the end of four": ((), 239),
    "two ends, one before the lost minutes": ((90, 150), 150),
    "two ends, both short": ((70, 75), 75),
    "three ends": ((90, 100, 170), 170),
    "an end and a lost session": ((90, 180), 90),
}


@pytest.mark.parametrize("world", WORLDS)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
async def test_end_and_minutes_agree_in_any_order(
    records: Records, connection: Connection, world: str, data: st.DataObject
) -> None:
    ends, seconds = WORLDS[world]
    tenant = await with_overage(records)
    all_records: list[Record] = [started(tenant=tenant), *lost_minutes(tenant)]
    for end_s in ends or (seconds,):
        if world == "an end and a lost session" and end_s != seconds:
            all_records.append(lost_end(end_s // 60, tenant))
        else:
            all_records += end_at(end_s, tenant)
    order = data.draw(st.permutations(all_records))
    order += data.draw(st.lists(st.sampled_from(all_records), max_size=4))
    cuts = data.draw(st.lists(st.integers(0, len(order)), max_size=8))
    edges = [0, *sorted(cuts), len(order)]
    for first, last in pairwise(edges):
        await records.write(order[first:last])
    await agrees(records, connection, tenant, seconds)


async def test_correction_is_an_entry_of_its_own(records: Records) -> None:
    await records.write([started(), *lost_minutes()])
    await records.write(end_at(90))
    entries = (await records.ledger(TENANT, "ann", None, 10))[::-1]
    assert [(one.entry_id, one.amount_micros, one.minute) for one in entries] == [
        ("burn:s1:1", -2 * HALF, 1),
        ("burn:s1:2", -2 * HALF, 2),
        ("burn:s1:3", -2 * HALF, 3),
        ("burn:s1:1:90000:500000", HALF, 1),
        ("burn:s1:2:90000:500000", 2 * HALF, 2),
        ("burn:s1:3:90000:500000", 2 * HALF, 3),
    ]
    assert [bool(one.reason) for one in entries] == [False] * 3 + [True] * 3
    await records.write(end_at(90))
    await records.write(lost_minutes())
    assert len(await records.ledger(TENANT, "ann", None, 10)) == 6


async def test_lost_minutes_after_the_end_leave_no_entry(records: Records) -> None:
    await records.write([started(), lost_minutes()[0], *end_at(90)])
    await records.write(lost_minutes())
    (entry,) = await records.ledger(TENANT, "ann", None, 10)
    assert (entry.entry_id, entry.amount_micros) == ("burn:s1:1", -HALF)


async def test_actions_count_minutes_and_not_corrections(records: Records) -> None:
    await records.write([started(), *lost_minutes()])
    await records.write(end_at(90))
    (spending,) = await Usage.over(records).spending(TENANT, "ann", 0, 0, START)
    assert (spending.total_micros, spending.month_micros) == (HALF, HALF)
    assert spending.total_actions == 3  # as many minutes burnt credits at first


async def test_end_waits_for_no_minute_on_its_way(records: Records) -> None:
    """Earlier minutes may come later, and stay as they are."""
    await records.write([started(), *end_at(150)])
    assert len(await Usage.over(records).session(TENANT, "s1")) == 1
    await records.write(lost_minutes()[:2])
    found = await Usage.over(records).session(TENANT, "s1")
    assert [one.seconds for one in found] == [60, 60, 30]
    entries = await records.ledger(TENANT, "ann", None, 10)
    assert sorted(one.entry_id for one in entries) == ["burn:s1:1", "burn:s1:2"]


async def test_longer_end_brings_back_minutes_that_were_left_out(records: Records) -> None:
    await records.write([started(), *lost_minutes()[:2], *end_at(90)])
    await records.write(lost_minutes())
    await records.write([end_at(239)[1]])
    found = await Usage.over(records).session(TENANT, "s1")
    assert [one.seconds for one in found] == [60, 60, 60, 59]
    entries = await records.ledger(TENANT, "ann", None, 100)
    assert sum(one.amount_micros for one in entries) == -2_983_333


async def test_end_of_lost_session_follows_late_minutes(records: Records) -> None:
    await records.write([started(), *lost_minutes()[:2], lost_end(2)])
    await records.write(lost_minutes()[2:3])
    row = await records.session(TENANT, "s1")
    assert row is not None
    assert (row.reason, row.minutes, row.charged_micros) == ("node_lost", 3, 2_000_000)
    assert row.elapsed_ms == 180_000
    # It was computed too early.
    await records.write([lost_end(2)])
    row = await records.session(TENANT, "s1")
    assert row is not None
    assert row.minutes == 3
    assert await records.audit() == ()


async def test_reported_minutes_beyond_the_end_are_removed(records: Records) -> None:
    figures: dict[str, Any] = {"credits_micros": 0, "is_reported": True, "free_ms": 0}
    minutes = [minute(number, credits_micros=0, seconds=50) for number in range(3)]
    await records.write([started(is_reported=True), *minutes])
    await records.write([ended(**figures)])
    found = await Usage.over(records).session(TENANT, "s1")
    assert [(one.minute, one.seconds) for one in found] == [(0, 50), (1, 50)]
    assert await records.audit() == ()


async def test_minute_waits_for_an_end_under_way(records: Records, connection: Connection) -> None:
    """Two flushers write at once; neither sees what is not committed."""
    await records.write([started(), *lost_minutes()[:2]])
    last, end = end_at(90)
    assert isinstance(last, MinuteUsed)
    assert isinstance(end, SessionEnded)
    async with connection.transaction():
        ledger = await write_sessions(
            cast(Any, connection), {}, {(TENANT, "s1"): end}, {(TENANT, "s1", 1): last}
        )
        assert [entry[columns.ENTRY_MICROS] for entry in ledger] == [HALF]
        late = asyncio.create_task(records.write(lost_minutes()[2:]))
        await _waits(connection)
        assert not late.done()
    await late
    found = await Usage.over(records).session(TENANT, "s1")
    assert [one.seconds for one in found] == [60, 30]


async def test_end_waits_for_minutes_under_way(records: Records, connection: Connection) -> None:
    await records.write([started(), *lost_minutes()[:2]])
    late = {(TENANT, "s1", one.minute): one for one in lost_minutes()[2:]}
    async with connection.transaction():
        await write_sessions(cast(Any, connection), {}, {}, late)
        end = asyncio.create_task(records.write(end_at(90)))
        await _waits(connection)
        assert not end.done()
    await end
    found = await Usage.over(records).session(TENANT, "s1")
    assert [one.seconds for one in found] == [60, 30]


async def _waits(connection: Connection) -> None:
    """Returns once another connection waits for a lock."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    while not await connection.fetchval(waiting):  # noqa: ASYNC110 -- no event reports it
        await asyncio.sleep(0)


async def test_many_sessions_are_corrected_at_once(records: Records) -> None:
    def named(found: Sequence[Any]) -> list[Any]:
        return [
            msgspec.structs.replace(one, session_id=f"s{number}")
            for number in range(20)
            for one in found
        ]

    await records.write(named([started(), *lost_minutes()]))
    await records.write(named(end_at(90)))
    assert await records.audit() == ()
    account = await records.load_account(TENANT, "ann")
    assert account.balance_micros == -20 * HALF


async def test_burn_without_reason_takes(connection: Connection) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match="credit_ledger_sign_check"):
        await connection.execute(
            "INSERT INTO credit_ledger (tenant, account_id, entry_id, entry_kind, amount_micros,"
            " session_id, minute) VALUES ('user:ann', 'ann', 'burn:s1:0', 'burn', 1, 's1', 0)"
        )
