"""The record's answers about usage: months, credits, sessions, and the report."""

import asyncio
import contextlib
import logging
from datetime import date
from typing import Any

import anyio
import pytest

from protocol.metering.records import Record
from storage import limits as storage_limits
from storage.postgres.records import Records, UnavailableError
from storage.postgres.usage import SpendingTotals, Totals, Usage, UsageReportRow
from storage.rows.sessions import SessionMinute
from tests.fixtures.database import Connection
from tests.storage.examples import START, TENANT, at, ended, entry, minute, month, started

DAY_MS = 86_400_000


@pytest.fixture
def usage(records: Records) -> Usage:
    """The questions, over the test's pool."""
    return Usage.over(records)


async def write(records: Records, *written: Record) -> None:
    await records.write(written)


# --- Months ------------------------------------------------------------------------


async def test_a_month_of_nobody_is_nothing(usage: Usage) -> None:
    assert await usage.month(TENANT, "ann", month(2026, 11)) == Totals(0, 0, 0)
    assert await usage.before(TENANT, "ann", month(2026, 11)) == Totals(0, 0, 0)


async def test_a_months_totals_are_of_its_user_and_its_zone(records: Records, usage: Usage) -> None:
    zone = "Pacific/Kiritimati"
    first_at = at(zone, 2026, 11, 1)
    await write(
        records,
        minute(0, started_at=first_at - 60_000, zone=zone),
        minute(1, started_at=first_at, zone=zone, seconds=30),
        minute(2, started_at=at(zone, 2026, 11, 30, 23, 59), zone=zone),
        minute(3, started_at=at(zone, 2026, 12, 1), zone=zone),
        minute(0, session_id="chat", counts=False, kind="chat"),
        minute(0, session_id="bens", user_id="ben"),
        minute(0, tenant="org:other"),
    )
    assert await usage.month(TENANT, "ann", month(2026, 11)) == Totals(2, 90, 2)
    assert await usage.month(TENANT, "ann", month(2026, 10)) == Totals(1, 60, 1)


async def test_all_time_is_what_was_before_a_month_and_every_session(
    records: Records, usage: Usage
) -> None:
    october = at("UTC", 2026, 10, 5)
    await write(
        records,
        started(),
        started(session_id="s2"),
        ended(session_id="s2"),
        started(session_id="bens", user_id="ben"),
        minute(0, started_at=october, seconds=10),
        minute(1, started_at=october),
        minute(2),
    )
    assert await usage.before(TENANT, "ann", month(2026, 11)) == Totals(2, 70, 2)
    assert (await usage.before(TENANT, "ann", month(2026, 12))).minutes == 3


# --- Credits -----------------------------------------------------------------------


async def test_spending_by_operation_and_time(records: Records, usage: Usage) -> None:
    await write(
        records,
        entry("e1", -5, entry_kind="spend", operation="voice"),
        entry("e2", -7, entry_kind="post", operation="voice", at_ms=START - DAY_MS),
        entry("e3", -1, entry_kind="spend", operation="voice", at_ms=START - 7 * DAY_MS),
        entry("e4", -1, entry_kind="spend", operation="voice", at_ms=START - 31 * DAY_MS),
        entry("e5", -2, entry_kind="spend"),
        entry("e6", -9, entry_kind="spend", account_id="other"),
        entry("g1", 100),
        minute(0, credits_micros=3),
        minute(1, credits_micros=4, started_at=START - 2 * DAY_MS),
    )
    found = await usage.spending(TENANT, "ann", START, START - 6 * DAY_MS, START - 20 * DAY_MS)
    assert found == (
        SpendingTotals(False, "voice", 4, 14, 1, 5, 2, 12, 3, 13),
        SpendingTotals(False, None, 1, 2, 1, 2, 1, 2, 1, 2),
        SpendingTotals(True, None, 2, 7, 1, 3, 2, 7, 2, 7),
    )
    assert await usage.spending(TENANT, "nobody", 0, 0, 0) == ()


async def test_what_cost_nothing_was_done_and_what_failed_was_not(
    records: Records, usage: Usage
) -> None:
    done: dict[str, Any] = {"entry_kind": "spend", "operation": "refine", "month": "2026-11-01"}
    await write(
        records,
        entry("e1", 0, **done),
        entry("e2", 0, **done, metadata={"success": False}),
        entry("e3", -6, **done, metadata={"success": True}),
    )
    (found,) = await usage.spending(TENANT, "ann", START, START, START)
    assert (found.operation, found.total_actions, found.total_micros) == ("refine", 2, 6)


async def test_money_in_is_granted_adjusted_and_expired(records: Records, usage: Usage) -> None:
    for made in (
        entry("g1", 100),
        entry("a1", -10, entry_kind="adjust"),
        entry("x1", -5, entry_kind="expire"),
    ):
        await records.post_entry(made)
    await write(records, entry("e1", -7, entry_kind="spend"))
    assert await usage.money_in(TENANT, "ann") == 85
    assert await usage.money_in(TENANT, "nobody") == 0


# --- Sessions ----------------------------------------------------------------------


async def test_the_minutes_of_a_session_in_their_order(records: Records, usage: Usage) -> None:
    await write(records, minute(1, seconds=5, free_ms=250), minute(0), minute(0, session_id="s2"))
    assert await usage.session(TENANT, "s1") == (
        SessionMinute(0, START, 60, 0, 1_000_000, "2026-11-01"),
        SessionMinute(1, START + 60_000, 5, 250, 1_000_000, "2026-11-01"),
    )
    assert await usage.session("org:other", "s1") == ()
    (newest,) = await usage.session(TENANT, "s1", newest=1)
    assert newest.minute == 1


# --- The report ----------------------------------------------------------------------


async def read(
    usage: Usage, tenant: str | None, from_day: date, to_day: date
) -> list[list[UsageReportRow]]:
    async with usage.report(tenant, from_day, to_day) as batches:
        return [batch async for batch in batches]


NOVEMBER = (date(2026, 11, 1), date(2026, 11, 30))


async def test_a_report_is_in_the_order_of_tenants_and_time(records: Records, usage: Usage) -> None:
    await write(
        records,
        minute(1),
        minute(0),
        minute(0, session_id="s0", started_at=START + 60_000),
        minute(0, tenant="org:aaa", started_at=START + DAY_MS),
        minute(0, tenant="user:bob", user_id="bob"),
    )
    (batch,) = await read(usage, None, *NOVEMBER)
    assert [(row.org_id, row.session_id, row.minute) for row in batch] == [
        ("aaa", "s1", 0),
        ("acme", "s1", 0),
        ("acme", "s0", 0),
        ("acme", "s1", 1),
        (None, "s1", 0),
    ]
    (batch,) = await read(usage, "org:acme", *NOVEMBER)
    assert batch[0] == UsageReportRow(
        org_id="acme",
        user_id="ann",
        account_id="ann",
        session_id="s1",
        kind="recording",
        counterpart_id="advisor",
        minute=0,
        started_at="2026-11-10T12:00:00.000Z",
        day="2026-11-10",
        month="2026-11-01",
        seconds=60,
        counts=True,
        charged_micros=1_000_000,
        free_ms=0,
    )


async def test_a_report_comes_in_batches_of_one_snapshot(
    records: Records, usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "REPORT_BATCH_ROWS", 2)
    await write(records, *(minute(number) for number in range(5)))
    async with usage.report(None, *NOVEMBER) as batches:
        sizes = [len(await anext(batches))]
        await write(records, minute(5))
        sizes += [len(batch) async for batch in batches]
    assert sizes == [2, 2, 1]


async def test_a_report_that_is_left_gives_its_connection_back(
    records: Records, usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "REPORT_BATCH_ROWS", 1)
    await write(records, minute(0), minute(1))
    async with usage.report(None, *NOVEMBER) as batches:
        await anext(batches)
    pool = records._pool
    assert pool.get_idle_size() == pool.get_size()
    # The report's setting does not stay on the connection for its next user.
    async with pool.acquire() as after:
        assert await after.fetchval("SHOW enable_sort") == "on"


async def test_a_report_whose_client_has_gone_leaves_no_transaction(
    records: Records,
    usage: Usage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(storage_limits, "REPORT_BATCH_ROWS", 1)
    await write(records, *(minute(number) for number in range(100)))
    pool = records._pool
    for turns in range(20):
        # A streaming response is cancelled in this way: at every await anew, until it is over.
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(turns / 2_000, scope.cancel)
            async with usage.report(None, *NOVEMBER) as batches:
                async for _ in batches:
                    pass
        assert scope.cancelled_caught or turns
        assert pool.get_idle_size() == pool.get_size()
    assert len(await read(usage, None, *NOVEMBER)) == 100
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_report_whose_backend_is_killed_breaks_off(
    records: Records, usage: Usage, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "REPORT_BATCH_ROWS", 1)
    await write(records, minute(0), minute(1))
    async with contextlib.AsyncExitStack() as stack:
        batches = await stack.enter_async_context(usage.report(None, *NOVEMBER))
        await anext(batches)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND state = 'idle in transaction'"
        )
        with pytest.raises(UnavailableError):
            await anext(batches)
    assert len(await read(usage, None, *NOVEMBER)) == 2
