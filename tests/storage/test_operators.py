"""Operators, their sessions and their log, in a real Postgres."""

import asyncio
from typing import Any

import asyncpg
import pytest

from storage import limits as storage_limits
from storage.postgres.operators import OperatorRecords
from storage.postgres.records import Records, RejectedError
from storage.rows.operators import ActionIntent, LogFilter, OperatorSession

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
OLGA = OperatorSession("olga", "password", "", None, NOW_MS + HOUR_MS)


@pytest.fixture
def operators(records: Records) -> OperatorRecords:
    return OperatorRecords.over(records)


def intent(action_id: str = "a1", **changes: Any) -> ActionIntent:
    values: dict[str, Any] = {
        "action_id": action_id, "at": NOW_MS, "actor": "olga", "via": "token",
        "action": "credit", "target": "/v1/accounts/ann/grants", "tenant": "org:acme",
        "reason": "a complaint", "before": {"credits": "1"}, "request_id": "r1",
    }  # fmt: skip
    return ActionIntent(**{**values, **changes})


async def test_operators_are_added_listed_and_removed(operators: OperatorRecords) -> None:
    assert await operators.add("olga", "act", "hash")
    assert await operators.add("rita", "read", None)
    assert not await operators.add("olga", "read", "another")
    found = await operators.operators("", 10)
    assert [(one.name, one.role, one.password_hash) for one in found] == [
        ("olga", "act", "hash"),
        ("rita", "read", None),
    ]
    assert [one.name for one in await operators.operators("olga", 10)] == ["rita"]
    assert await operators.remove("olga")
    assert not await operators.remove("olga")
    assert await operators.operator("olga") is None


@pytest.mark.parametrize("role", ["", "ops", "org:read"])
async def test_an_operator_has_one_of_two_roles(operators: OperatorRecords, role: Any) -> None:
    with pytest.raises(RejectedError):
        await operators.add("olga", role, None)


async def test_a_session_has_the_operators_role_of_the_moment(
    operators: OperatorRecords, database: str
) -> None:
    await operators.add("olga", "read", "hash")
    olga = await operators.operator("olga")
    assert await operators.open_session(b"s1", OLGA, NOW_MS, operator=olga)
    found = await operators.session(b"s1", NOW_MS)
    assert found is not None
    assert (found.actor, found.scope, found.org_id) == ("olga", "ops:read", None)
    connection = await asyncpg.connect(database)
    await connection.execute("UPDATE operators SET role = 'act'")
    await connection.close()
    found = await operators.session(b"s1", NOW_MS)
    assert found is not None
    assert found.scope == "ops"
    assert await operators.session(b"s2", NOW_MS) is None
    assert await operators.session(b"s1", NOW_MS + HOUR_MS) is None


async def test_a_session_of_a_token_keeps_its_scope(operators: OperatorRecords) -> None:
    adam = OperatorSession("adam", "token", "org:read", "acme", NOW_MS + HOUR_MS)
    assert await operators.open_session(b"s1", adam, NOW_MS)
    assert await operators.session(b"s1", NOW_MS) == adam
    await operators.close_session(b"s1")
    assert await operators.session(b"s1", NOW_MS) is None


async def test_removal_and_a_new_password_end_the_sessions(operators: OperatorRecords) -> None:
    await operators.add("olga", "act", "hash")
    olga = await operators.operator("olga")
    assert await operators.open_session(b"s1", OLGA, NOW_MS, operator=olga)
    assert await operators.set_password("olga", "new")
    assert await operators.session(b"s1", NOW_MS) is None
    # A log-in that verified the old password meanwhile opens nothing.
    assert not await operators.open_session(b"s2", OLGA, NOW_MS, operator=olga)
    olga = await operators.operator("olga")
    assert await operators.open_session(b"s3", OLGA, NOW_MS, operator=olga)
    assert await operators.remove("olga")
    assert await operators.session(b"s3", NOW_MS) is None
    assert not await operators.open_session(b"s4", OLGA, NOW_MS, operator=olga)
    assert not await operators.set_password("olga", "again")


async def test_sessions_of_one_operator_are_bounded(
    operators: OperatorRecords, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "OPERATOR_SESSIONS_MAX", 2)
    await operators.add("olga", "act", "hash")
    olga = await operators.operator("olga")
    old = OperatorSession("rita", "token", "ops", None, NOW_MS)
    assert await operators.open_session(b"ended", old, NOW_MS - HOUR_MS)
    for number in range(4):
        assert await operators.open_session(b"%d" % number, OLGA, NOW_MS, operator=olga)
    connection = await asyncpg.connect(database)
    rows = await connection.fetch("SELECT secret_hash FROM operator_sessions ORDER BY 1")
    await connection.close()
    assert [bytes(row["secret_hash"]) for row in rows] == [b"2", b"3"]


# The log


async def test_log_has_one_row_for_an_intent_that_is_repeated(operators: OperatorRecords) -> None:
    await operators.begin_action(intent())
    (row,) = await operators.log(LogFilter(), None, 10)
    assert (row.outcome, row.after, row.before) == ("begun", None, {"credits": "1"})
    # The process died here; another attempt does the work, and then a third one is answered.
    await operators.begin_action(intent(request_id="r2", reason="another"))
    for _ in range(2):
        await operators.finish_action("a1", NOW_MS + 1, "done", None, {"credits": "2"})
    (row,) = await operators.log(LogFilter(), None, 10)
    assert (row.outcome, row.after, row.request_id) == ("done", {"credits": "2"}, "r1")
    assert row.reason == "a complaint"


async def test_sessions_of_a_namesake_end_none_of_an_operator(operators: OperatorRecords) -> None:
    """The subject of an organisation's token may be any name."""
    await operators.add("olga", "act", "hash")
    olga = await operators.operator("olga")
    assert await operators.open_session(b"own", OLGA, NOW_MS, operator=olga)
    for org in ("acme", "globex"):
        namesake = OperatorSession("olga", "token", "org:read", org, NOW_MS + HOUR_MS)
        for number in range(storage_limits.OPERATOR_SESSIONS_MAX + 1):
            await operators.open_session(f"{org} {number}".encode(), namesake, NOW_MS)
    assert await operators.session(b"own", NOW_MS) is not None
    assert await operators.session(b"acme 0", NOW_MS) is None
    assert await operators.session(b"acme 1", NOW_MS) is not None


@pytest.mark.parametrize(
    ("told", "kept", "shown"),
    [
        ("failed failed done done", "failed done", "done"),
        ("done failed", "done", "done"),
        ("done refused failed done", "done", "done"),
        ("failed refused failed", "failed refused", "refused"),
        ("refused done failed", "refused done", "done"),
    ],
)
async def test_one_outcome_of_an_action_counts(
    operators: OperatorRecords, database: str, told: str, kept: str, shown: str
) -> None:
    await operators.begin_action(intent())
    codes = {"done": None, "refused": "forbidden", "failed": "unavailable"}
    for outcome in told.split():
        await operators.finish_action("a1", NOW_MS, outcome, codes[outcome], None)  # type: ignore[arg-type]
    (row,) = await operators.log(LogFilter(), None, 10)
    assert (row.outcome, row.code) == (shown, codes[shown])
    assert await operators.log(LogFilter(outcome=shown), None, 10) == (row,)
    connection = await asyncpg.connect(database)
    rows = await connection.fetch("SELECT outcome FROM operator_outcomes ORDER BY position")
    assert " ".join(each["outcome"] for each in rows) == kept
    await connection.close()


async def test_attempts_that_end_at_once_leave_the_weightiest_outcome(
    operators: OperatorRecords, database: str
) -> None:
    """Neither attempt sees the other's row before it is committed."""
    await operators.begin_action(intent())
    connection = await asyncpg.connect(database)
    for outcome in ("failed", "done", "failed"):
        await connection.execute(
            "INSERT INTO operator_outcomes (action_id, at, outcome) VALUES ('a1', now(), $1)",
            outcome,
        )
    await connection.close()
    (row,) = await operators.log(LogFilter(), None, 10)
    assert row.outcome == "done"
    assert await operators.log(LogFilter(outcome="failed"), None, 10) == ()


@pytest.mark.parametrize("table", ["operator_actions", "operator_outcomes"])
@pytest.mark.parametrize(
    "statement",
    ["UPDATE {} SET action_id = 'x'", "DELETE FROM {}", "TRUNCATE {} CASCADE", "TRUNCATE {}"],
)
async def test_postgres_refuses_changes_of_the_log(
    operators: OperatorRecords, database: str, table: str, statement: str
) -> None:
    await operators.begin_action(intent())
    await operators.finish_action("a1", NOW_MS, "done", None, None)
    connection = await asyncpg.connect(database)
    try:
        with pytest.raises((asyncpg.RestrictViolationError, asyncpg.FeatureNotSupportedError)):
            await connection.execute(statement.format(table))
        for each in ("operator_actions", "operator_outcomes"):
            assert await connection.fetchval(f"SELECT count(*) FROM {each}") == 1
    finally:
        await connection.close()


async def test_removing_an_operator_leaves_the_log(operators: OperatorRecords) -> None:
    await operators.add("olga", "act", None)
    await operators.begin_action(intent())
    await operators.remove("olga")
    assert len(await operators.log(LogFilter(), None, 10)) == 1


async def test_log_is_read_in_pages_and_by_filters(operators: OperatorRecords) -> None:
    for number in range(5):
        actor = "olga" if number % 2 else "rita"
        changes = {"actor": actor, "at": NOW_MS + number, "target": f"t{number}"}
        await operators.begin_action(intent(f"a{number}", **changes))
    await operators.finish_action("a1", NOW_MS, "refused", "forbidden", None)
    seen: list[str] = []
    position = None
    while page := await operators.log(LogFilter(), position, 2):
        seen += [row.action_id for row in page]
        position = page[-1].position
    assert seen == ["a4", "a3", "a2", "a1", "a0"]
    filters = [
        (LogFilter(actor="olga"), ["a3", "a1"]),
        (LogFilter(target="t2"), ["a2"]),
        (LogFilter(outcome="refused"), ["a1"]),
        (LogFilter(outcome="begun", actor="olga"), ["a3"]),
        (LogFilter(from_at=NOW_MS + 1, to_at=NOW_MS + 3), ["a2", "a1"]),
        (LogFilter(action="end"), []),
    ]
    for wanted, expected in filters:
        assert [row.action_id for row in await operators.log(wanted, None, 10)] == expected


async def test_log_keeps_what_is_odd(operators: OperatorRecords) -> None:
    odd = intent(reason="a\0b'); DROP TABLE operators;--", before={"name": "\0"}, tenant=None)
    await operators.begin_action(odd)
    (row,) = await operators.log(LogFilter(), None, 10)
    assert row.reason == "a\ufffdb'); DROP TABLE operators;--"
    assert row.tenant is None


async def test_attempts_at_once_leave_one_row(operators: OperatorRecords) -> None:
    await asyncio.gather(*(operators.begin_action(intent()) for _ in range(8)))
    assert len(await operators.log(LogFilter(), None, 10)) == 1
