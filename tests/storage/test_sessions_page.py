"""Pages of sessions: order, filters, cursor, and a cost of their rows."""

import json
import random
from typing import Any, TypeAlias

import asyncpg
import msgspec
import pytest

from protocol.metering.records import Record
from storage.postgres.records import SQL, Records
from storage.rows.sessions import SessionFilter, SessionPrepared
from tests.storage.examples import START, TENANT, TERMS, ended, started

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def every_page(records: Records, wanted: SessionFilter, rows: int = 3) -> list[str]:
    """The ids of all pages, one after another."""
    found: list[str] = []
    before: tuple[int, str] | None = None
    while page := await records.sessions_page(TENANT, wanted, before, rows):
        assert len(page) <= rows
        found += [row.session_id for row in page]
        assert page[-1].started_at is not None
        before = (page[-1].started_at, page[-1].session_id)
    return found


@pytest.fixture
async def made(records: Records) -> list[Any]:
    """Thirty sessions, several of which begin in the same millisecond."""
    chance = random.Random(7)
    sessions: list[dict[str, Any]] = [
        {
            "session_id": f"s{number}",
            "user_id": chance.choice(["ann", "ben"]),
            "counterpart_id": chance.choice([None, "advisor", "other"]),
            "kind": chance.choice(["chat", "recording"]),
            "started_at": START + chance.randrange(8),
        }
        for number in range(30)
    ]
    entries: list[Record] = [started(**one) for one in sessions]
    entries += [ended(**one) for one in sessions[::2]]
    await records.write(entries)
    await records.write([started(session_id="theirs", tenant="org:other")])
    prepared = SessionPrepared(
        TENANT, "prepared", "ann", "acme", "ann", "advisor", "chat", TERMS, START + 1_000
    )
    assert await records.prepare_session(prepared, START)
    return sessions


@pytest.mark.parametrize("user", [None, "ann"])
@pytest.mark.parametrize("counterpart", [None, "advisor"])
@pytest.mark.parametrize("kind", [None, "chat"])
@pytest.mark.parametrize("span", [(None, None), (START + 2, START + 6), (START + 7, None)])
async def test_pages_show_every_fitting_session_once_newest_first(
    records: Records, made: list[Any], user: str | None, counterpart: str | None,
    kind: str | None, span: tuple[int | None, int | None],
) -> None:  # fmt: skip
    first, end = span
    fitting = [
        one for one in made
        if user in (None, one["user_id"]) and counterpart in (None, one["counterpart_id"])
        and kind in (None, one["kind"])
        and (first or 0) <= one["started_at"] < (end or START * 2)
    ]  # fmt: skip
    expected = sorted(fitting, key=lambda one: (one["started_at"], one["session_id"]), reverse=True)
    wanted = SessionFilter(user, counterpart, kind, first, end)
    assert await every_page(records, wanted) == [one["session_id"] for one in expected]


async def test_sessions_that_begin_meanwhile_shift_no_page(
    records: Records, made: list[Any]
) -> None:
    wanted = SessionFilter()
    before = await every_page(records, wanted)
    page = await records.sessions_page(TENANT, wanted, None, 10)
    await records.write([started(session_id="new", started_at=START + 100)])
    last = page[-1]
    assert last.started_at is not None
    rest = await records.sessions_page(TENANT, wanted, (last.started_at, last.session_id), 500)
    assert [row.session_id for row in (*page, *rest)] == before


async def test_ended_session_of_a_page_has_its_receipt(records: Records, made: list[Any]) -> None:
    for row in await records.sessions_page(TENANT, SessionFilter(), None, 500):
        number = int(row.session_id[1:])
        if number % 2:
            assert row.state == "live"
            continue
        assert row.end == msgspec.structs.replace(ended(**made[number]), metadata=row.metadata)


@pytest.mark.parametrize(
    "filters",
    [("ann", None, None), ("ann", "advisor", "chat"), (None, "advisor", None),
     (None, None, "chat"), (None, None, None)],
)  # fmt: skip
async def test_page_reads_no_more_than_its_rows(
    records: Records, connection: Connection, filters: tuple[str | None, ...]
) -> None:
    """A page reads no more than its rows, in any plan.

    This includes the plan that serves all parameters, which a busy server uses.
    """
    await records.write(
        [
            started(session_id=f"s{number}", kind="chat", started_at=START + number)
            for number in range(3_000)
        ]
    )
    await connection.execute("ANALYZE sessions; SET plan_cache_mode = force_generic_plan")
    await connection.execute(
        "PREPARE page (text, text, text, text, bigint, bigint, bigint, text, bigint) AS "
        + SQL["sessions_page"]
    )
    asked = (TENANT, *filters, None, None, START + 1_500, "s1500", 5)
    values = ", ".join("NULL" if one is None else f"'{one}'" for one in asked)
    found = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE page ({values})")
    scans: list[Any] = []

    def walk(node: Any) -> None:
        if "Relation Name" in node:
            scans.append(node)
        for part in node.get("Plans", []):
            walk(part)

    walk(json.loads(found)[0]["Plan"])
    read = [one for one in scans if one["Actual Loops"]]
    assert read
    for scan in read:
        assert scan["Node Type"].startswith("Index"), scan
        assert scan["Actual Rows"] * scan["Actual Loops"] <= 5, scan
        assert scan.get("Rows Removed by Filter", 0) == 0, scan
