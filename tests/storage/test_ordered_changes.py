"""A change that comes late or twice undoes no newer one."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from storage.postgres.records import SQL, Records
from storage.rows.months import MemberRow, OrganizationRow
from tests.storage.examples import TENANT

Newer = Callable[[], Awaitable[Any]]
Mishap = Literal["answer lost", "late", "late and answer lost"]
MISHAPS: tuple[Mishap, ...] = ("answer lost", "late", "late and answer lost")


class BadLine:
    """A pool on which one statement meets a mishap."""

    def __init__(self, records: Records, name: str, mishap: Mishap, newer: Newer) -> None:
        self._pool = records._pool
        self._sql = SQL[name]
        self._mishap = mishap
        self._newer = newer
        self.is_over = False

    @asynccontextmanager
    async def acquire(self, **options: Any) -> AsyncIterator[Any]:
        async with self._pool.acquire(**options) as connection:
            yield BadConnection(self, connection)

    async def fetchval(self, connection: Any, sql: str, *arguments: Any) -> Any:
        if self.is_over or sql != self._sql:
            return await connection.fetchval(sql, *arguments)
        self.is_over = True
        if self._mishap != "answer lost":
            await self._newer()
        answer = await connection.fetchval(sql, *arguments)
        if self._mishap == "answer lost":
            await self._newer()
        if self._mishap != "late":
            raise ConnectionResetError("the answer is lost")
        return answer


class BadConnection:
    """A connection over a bad line."""

    def __init__(self, line: BadLine, connection: Any) -> None:
        self._line = line
        self._connection = connection

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        return await self._line.fetchval(self._connection, sql, *arguments)


@pytest.fixture
async def other(database: str) -> AsyncIterator[Records]:
    """The record as another process reaches it."""
    connected = await Records.connect(database)
    yield connected
    await connected.close()


def meets(records: Records, name: str, mishap: Mishap, newer: Newer) -> BadLine:
    line = BadLine(records, name, mishap, newer)
    records._pool = line  # type: ignore[assignment]
    return line


@pytest.fixture
async def line(database: str) -> AsyncIterator[Records]:
    """A record whose pool a test replaces."""
    connected = await Records.connect(database)
    pool = connected._pool
    yield connected
    connected._pool = pool
    await connected.close()


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("mishap", MISHAPS)
async def test_newer_limit_of_a_member_stays(
    records: Records, line: Records, other: Records, mishap: Mishap, is_new: bool
) -> None:
    if not is_new:
        await records.put_member(TENANT, "ann", monthly_hours_limit=9)
    bad = meets(
        line, "put_member", mishap, lambda: other.put_member(TENANT, "ann", monthly_hours_limit=2)
    )
    row = await line.put_member(TENANT, "ann", monthly_hours_limit=1)
    assert bad.is_over
    assert row.monthly_hours_limit == 2, "the answer shows the limit that applies"
    assert await records.member(TENANT, "ann") == MemberRow(TENANT, "ann", 2, 0, None)


@pytest.mark.parametrize("mishap", MISHAPS)
async def test_removed_limit_of_a_member_stays_removed(
    records: Records, line: Records, other: Records, mishap: Mishap
) -> None:
    meets(
        line,
        "put_member",
        mishap,
        lambda: other.put_member(TENANT, "ann", monthly_hours_limit=None),
    )
    await line.put_member(TENANT, "ann", monthly_hours_limit=1)
    assert await records.member(TENANT, "ann") == MemberRow(TENANT, "ann", None, 0, None)


PLAN: dict[str, Any] = {
    "tier": "pro",
    "timezone": "Asia/Tokyo",
    "monthly_hours_limit": 5,
    "allow_overage": True,
}


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("mishap", MISHAPS)
@pytest.mark.parametrize("given", [*PLAN, None])
async def test_each_newer_value_of_an_organisation_stays(
    records: Records,
    line: Records,
    other: Records,
    given: str | None,
    mishap: Mishap,
    is_new: bool,
) -> None:
    """The older change still sets what only it gives."""
    older = {**PLAN, "tier": "team", "timezone": "Europe/Oslo", "monthly_hours_limit": None}
    newer = PLAN if given is None else {given: PLAN[given]}
    older["allow_overage"] = False
    if not is_new:
        await records.put_organization(TENANT, "acme", tier="old", monthly_hours_limit=7)
    meets(line, "put_organization", mishap, lambda: other.put_organization(TENANT, "acme", **newer))
    await line.put_organization(TENANT, "acme", **older)
    wanted = OrganizationRow(tenant=TENANT, org_id="acme", **{**older, **newer})
    assert await records.organization(TENANT) == wanted


async def test_next_change_applies_after_all(
    records: Records, line: Records, other: Records
) -> None:
    meets(
        line, "put_member", "late", lambda: other.put_member(TENANT, "ann", monthly_hours_limit=2)
    )
    await line.put_member(TENANT, "ann", monthly_hours_limit=1)
    row = await line.put_member(TENANT, "ann", monthly_hours_limit=3)
    assert row.monthly_hours_limit == 3
    assert (await records.put_member(TENANT, "ann")).monthly_hours_limit == 3
