"""Operators are managed by commands, which are in the log."""

import pytest

from server.access.passwords import matches
from server.ops.log import OperatorsLog
from server.ops.manage import ManageOperators
from storage import limits as storage_limits
from storage.postgres.operators import OperatorRecords
from storage.postgres.records import Records
from storage.rows.operators import LogFilter
from tests.server.operators import PASSWORD


@pytest.fixture
def operators(records: Records) -> ManageOperators:
    found = OperatorRecords.over(records)
    return ManageOperators(found, OperatorsLog(found, lambda: 1_800_000_000_000))


async def test_operators_are_managed(
    operators: ManageOperators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "PAGE_ROWS_MAX", 1)
    await operators.add("olga", "act", PASSWORD)
    await operators.add("rita", "read", None)
    olga, rita = await operators.all()
    assert (olga.name, olga.role, rita.name, rita.role) == ("olga", "act", "rita", "read")
    assert matches(olga.password_hash, PASSWORD)
    assert rita.password_hash is None
    await operators.set_password("olga", PASSWORD + "!")
    olga, _ = await operators.all()
    assert matches(olga.password_hash, PASSWORD + "!")
    await operators.remove("olga")
    assert [one.name for one in await operators.all()] == ["rita"]
    rows = await operators.records.log(LogFilter(), None, 10)
    assert [(row.action, row.target, row.outcome, row.via) for row in reversed(rows)] == [
        ("operator_add", "operator:olga", "done", "command"),
        ("operator_add", "operator:rita", "done", "command"),
        ("operator_password", "operator:olga", "done", "command"),
        ("operator_remove", "operator:olga", "done", "command"),
    ]
    assert all(row.actor for row in rows)
    assert not any("argon2" in str(row) for row in rows)


async def test_what_cannot_be_is_refused(operators: ManageOperators) -> None:
    await operators.add("olga", "act", PASSWORD)
    for name, password in (("olga", PASSWORD), ("no spaces", PASSWORD), ("", None), ("x", "short")):
        with pytest.raises(ValueError, match=r"name|password|operator"):
            await operators.add(name, "act", password)
    with pytest.raises(ValueError, match="no operator"):
        await operators.remove("nemo")
    with pytest.raises(ValueError, match="no operator"):
        await operators.set_password("nemo", PASSWORD)
    assert len(await operators.all()) == 1
