"""The record takes each entry once, in any order, however often sent."""

import json
import uuid
from collections.abc import Sequence
from itertools import count, pairwise, permutations
from typing import Any, TypeAlias

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.metering.records import Record
from storage.postgres.database import SQL
from storage.postgres.records import Records, RejectedError
from storage.rows.sessions import ReportedSession, SessionPrepared
from tests.storage.examples import START, TENANT, TERMS, batch_of, ended, entry, minute, started

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

TABLES = {
    "sessions": "session_id",
    "usage_tracking": "session_id, minute",
    "organization_members": "user_id",
    "monthly_usage_cache": "user_id, month",
    "credit_accounts": "account_id",
    "credit_ledger": "account_id, entry_id",
}

_tenants = count()


async def tables_of(connection: Connection, tenant: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of a tenant, without its name and the arrival order."""
    return {
        table: [
            {name: value for name, value in row.items() if name not in ("tenant", "position")}
            for row in await connection.fetch(
                f"SELECT * FROM {table} WHERE tenant = $1 ORDER BY {key}", tenant
            )
        ]
        for table, key in TABLES.items()
    }


async def write_in(records: Records, order: Sequence[Record], cuts: Sequence[int]) -> None:
    edges = [0, *sorted(cuts), len(order)]
    for first, last in pairwise(edges):
        await records.write(order[first:last])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
async def test_any_order_of_a_batch_with_duplicates_yields_the_same_tables(
    records: Records, connection: Connection, data: st.DataObject
) -> None:
    expected_tenant, tenant = f"org:{next(_tenants)}", f"org:{next(_tenants)}"
    await records.write(batch_of(expected_tenant))
    batch = batch_of(tenant)
    order = data.draw(st.permutations(batch + data.draw(st.lists(st.sampled_from(batch)))))
    cuts = data.draw(st.lists(st.integers(0, len(order)), max_size=6))
    await write_in(records, order, cuts)

    expected = await tables_of(connection, expected_tenant)
    found = await tables_of(connection, tenant)
    for table in ("sessions", "usage_tracking", "monthly_usage_cache"):
        for row in expected[table] + found[table]:
            del row["org_id"]
    assert found == expected
    assert all(found.values())


async def test_writing_twice_is_writing_once(records: Records, connection: Connection) -> None:
    await records.write(batch_of(TENANT))
    before = await tables_of(connection, TENANT)
    await records.write(batch_of(TENANT))
    await records.write([])
    assert await tables_of(connection, TENANT) == before


async def test_a_batch_is_written_whole_or_not_at_all(
    records: Records, connection: Connection
) -> None:
    with pytest.raises(RejectedError, match="usage_tracking_seconds_check"):
        await records.write([*batch_of(TENANT), minute(0, session_id="s9", seconds=61)])
    assert not any((await tables_of(connection, TENANT)).values())


async def test_an_operation_that_is_refused_leaves_no_entry(
    records: Records, connection: Connection
) -> None:
    bad = entry("spend-1", -1_000_000, entry_kind="spend", operation="voice", month="2026-11-02")
    with pytest.raises(RejectedError):
        await records.write([bad])
    assert await connection.fetchval("SELECT count(*) FROM credit_ledger") == 0


@pytest.mark.parametrize(
    "record",
    [
        minute(0, seconds=0),
        minute(0, seconds=61),
        minute(-1),
        minute(0, credits_micros=-1),
        minute(0, month="2026-11-02"),
        minute(0, month="November"),
        minute(0, credits_micros=2**63),
        ended(elapsed_ms=-1),
        entry("x", 1, entry_kind="gift"),
        entry("x", 1, entry_kind="spend"),
        entry("x", -1, entry_kind="grant"),
    ],
)
async def test_what_must_not_be_is_refused(records: Records, record: Record) -> None:
    with pytest.raises(RejectedError):
        await records.write([record])


async def test_a_character_that_postgres_cannot_keep_loses_no_bill(records: Records) -> None:
    metadata = {"a\0": ["b\0", {"c": "\\u0000"}], "d": "\0"}
    await records.write([started(metadata=metadata), entry("g", 1, reason="x\0y")])
    session = await records.session(TENANT, "s1")
    assert session is not None
    assert session.metadata == {"a\ufffd": ["b\ufffd", {"c": "\\u0000"}], "d": "\ufffd"}
    assert (await records.ledger(TENANT, "ann", None, 1))[0].reason == "x\ufffdy"


# Sessions


PREPARED = SessionPrepared(
    TENANT, "s1", "ann", "acme", "ann", "advisor", "chat", TERMS, START, {"from": "backend"}
)


@pytest.mark.parametrize("order", list(permutations(["prepared", "live", "ended"])))
async def test_a_session_only_moves_forward(records: Records, order: tuple[str, ...]) -> None:
    states = ["prepared", "live", "ended"]
    furthest = -1
    for state in order:
        if state == "prepared":
            assert await records.prepare_session(PREPARED, START - 1) == (furthest < 0)
        else:
            await records.write([started() if state == "live" else ended()])
        furthest = max(furthest, states.index(state))
        row = await records.session(TENANT, "s1")
        assert row is not None
        assert row.state == states[furthest]
    row = await records.session(TENANT, "s1")
    assert row is not None
    assert row.kind == "recording"
    assert row.ended_at == START + 130_000
    assert row.gaps == [(START + 60_000, START + 70_000, False)]


async def test_a_session_is_read_back_as_it_was(records: Records) -> None:
    assert await records.session(TENANT, "s1") is None
    await records.prepare_session(PREPARED, START - 1)
    row = await records.session(TENANT, "s1")
    assert row is not None
    assert (row.state, row.terms, row.started_at, row.metadata) == (
        "prepared", TERMS, None, {"from": "backend"},
    )  # fmt: skip
    await records.write([started()])
    row = await records.session(TENANT, "s1")
    assert row is not None
    assert (row.state, row.started_at, row.metadata) == ("live", START, {"from": "backend"})


async def test_sessions_are_found_within_their_tenant_only(records: Records) -> None:
    await records.write([started(), started(session_id="s2"), started(tenant="org:other")])
    assert set(await records.sessions_by_id(TENANT, ["s1", "s2", "s3"])) == {"s1", "s2"}
    assert set(await records.sessions_by_id("org:other", ["s1", "s2"])) == {"s1"}
    assert await records.session("user:ann", "s1") is None


async def test_free_time_is_summed_by_pair_and_by_day(records: Records) -> None:
    day = 86_400_000
    await records.write(
        [
            minute(0, free_ms=1),
            minute(0, session_id="s2", free_ms=10, started_at=START + day),
            minute(0, session_id="s3", free_ms=100, counterpart_id="other"),
            minute(0, session_id="s4", free_ms=1_000, kind="chat"),
            minute(0, session_id="s5", free_ms=10_000, user_id="ben"),
            minute(0, session_id="s1", free_ms=100_000, tenant="user:ann"),
        ]
    )

    async def used(
        user_id: str, counterpart_id: str | None, day: tuple[int, int] | None = None
    ) -> int:
        asked = (TENANT, user_id, counterpart_id, "recording", day)
        return (await records.free_used(*asked)).used_ms

    assert await used("ann", None) == 111
    assert await used("ann", "advisor") == 11
    assert await used("ann", None, (START + 1, START + 1 + day)) == 10
    assert await used("ann", "advisor", (START, START + 2 * day)) == 11
    assert await used("ann", "advisor", (START, START + day)) == 1
    assert await used("nobody", None) == 0


async def test_free_time_belongs_to_the_day_of_the_start(records: Records) -> None:
    night = (START, START + 30_000)
    morning = (START + 30_000, START + 90_000)
    await records.write([started(), minute(0, free_ms=1)])
    await records.write([minute(1, free_ms=10, started_at=START + 60_000)])
    asked = (TENANT, "ann", None, "recording")
    assert (await records.free_used(*asked, night)).used_ms == 11
    assert (await records.free_used(*asked, morning)).used_ms == 0


async def test_free_time_says_what_running_sessions_have_had_of_it(records: Records) -> None:
    rows = [("s1", 1), ("s2", 10), ("s3", 100)]
    await records.write([started(session_id=name) for name, _ in rows])
    await records.write([minute(0, session_id=name, free_ms=free_ms) for name, free_ms in rows])
    await records.write([ended(session_id="s1", ended_at=START), ended(session_id="s2")])
    asked = (TENANT, "ann", "advisor", "recording", None)
    found = await records.free_used(*asked, ended_after=START)
    assert found.used_ms == 111
    assert {one.session_id: one.free_ms for one in found.recorded} == {"s2": 10, "s3": 100}
    assert (await records.free_used(*asked)).recorded == ()


# Credits


async def test_a_minute_that_costs_something_burns_it_once(records: Records) -> None:
    await records.write([entry(), minute(0, credits_micros=0), minute(1), minute(1)])
    await records.write([minute(1), minute(2, credits_micros=250_000)])
    account = await records.load_account(TENANT, "ann")
    assert account.balance_micros == 10_000_000 - 1_250_000
    burns = (await records.ledger(TENANT, "ann", None, 2))[::-1]
    assert [(one.entry_id, one.amount_micros, one.minute) for one in burns] == [
        ("burn:s1:1", -1_000_000, 1),
        ("burn:s1:2", -250_000, 2),
    ]
    assert {(one.entry_kind, one.session_id) for one in burns} == {("burn", "s1")}


async def test_an_existing_minute_charges_no_account(
    records: Records,
) -> None:
    await records.write([minute(0)])
    await records.write([minute(0, account_id="ben")])
    assert (await records.load_account(TENANT, "ann")).balance_micros == -1_000_000
    assert (await records.load_account(TENANT, "ben")).balance_micros == 0


async def test_a_loaded_month_includes_minutes_of_running_sessions(records: Records) -> None:
    await records.write([started(), started(session_id="s2", user_id="ben")])
    await records.write([minute(0), minute(1), minute(0, session_id="s2", user_id="ben")])

    async def recorded(*, everybody: bool) -> dict[str, int]:
        found = await records.load_member(TENANT, "ann", [], ended_after=0, everybody=everybody)
        return {one.session_id: one.minutes for one in found.recorded}

    assert await recorded(everybody=False) == {"s1": 2}
    assert await recorded(everybody=True) == {"s1": 2, "s2": 1}


async def test_a_page_of_reported_sessions_counts_its_own_minutes_only(
    records: Records, connection: Connection
) -> None:
    tenant = f"org:{uuid.uuid4()}"
    names = [f"s{number:02}" for number in range(20)]
    for name in names:
        session = started(session_id=name, tenant=tenant, is_reported=True)
        await records.write([session, *(minute(k, session_id=name, tenant=tenant) for k in (0, 1))])
    found: list[ReportedSession] = []
    while page := await records.reported_sessions(tenant, found[-1].session_id if found else "", 6):
        found += [one for one in page if one.tenant == tenant]
        if page[-1].tenant != tenant:
            break
    assert [(one.session_id, one.minutes) for one in found] == [(name, 2) for name in names]
    explained = await connection.fetchval(
        f"EXPLAIN (ANALYZE, FORMAT JSON) {SQL['reported_sessions']}", tenant, "", 6
    )
    assert _rows_of("usage_tracking", json.loads(explained)[0]["Plan"]) <= 6 * 2


def _rows_of(table: str, plan: dict[str, Any]) -> int:
    """How many rows of a table a query has read."""
    read = 0
    if plan.get("Relation Name") == table:
        read = plan["Actual Rows"] * plan["Actual Loops"]
    return read + sum(_rows_of(table, part) for part in plan.get("Plans", ()))
