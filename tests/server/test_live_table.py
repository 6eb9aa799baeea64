"""The table joins what processes say of a session."""

from server.ops.live_rows import LiveRow
from server.ops.live_table import REDIS, LiveTable
from tests.server.live_row_examples import live_row

KEY = live_row().key


def heard(table: LiveTable) -> list[tuple[str, LiveRow | None]]:
    """What a listener of the table hears."""
    found: list[tuple[str, LiveRow | None]] = []
    table.listeners[lambda key, row: found.append((key, row))] = None
    return found


def test_the_newest_row_is_shown_with_all_processes() -> None:
    table = LiveTable()
    table.put("a", live_row(version=2, nodes=("a",)))
    table.put("b", live_row(version=1, at=99, nodes=("b",)))
    assert table.rows[KEY] == live_row(version=2, nodes=("a", "b"))


def test_a_session_that_ended_goes_for_all_processes() -> None:
    table = LiveTable()
    table.put("a", live_row())
    table.put("b", live_row())
    changes = heard(table)
    assert not table.gone("a", KEY, ended=True)
    assert len(table) == 0
    assert changes == [(KEY, None)]
    assert table.nodes() == []


def test_a_process_that_leaves_leaves_the_session_to_others() -> None:
    table = LiveTable()
    table.put("a", live_row(version=2, nodes=("a",)))
    table.put("b", live_row(nodes=("b",)))
    assert not table.gone("a", KEY, ended=False)
    assert table.rows[KEY] == live_row(nodes=("b",))
    assert table.gone("b", KEY, ended=False), "it may live on in Redis"
    assert len(table) == 0


def test_a_row_of_redis_gives_way_to_that_of_a_process() -> None:
    table = LiveTable()
    table.put(REDIS, live_row(version=9, nodes=()))
    table.put("a", live_row())
    assert table.rows[KEY] == live_row()
    table.put(REDIS, live_row(version=9, nodes=()))
    assert table.rows[KEY] == live_row()
    assert table.keys_of(REDIS) == frozenset()


def test_an_equal_row_changes_nothing() -> None:
    table = LiveTable()
    table.put("a", live_row())
    changes = heard(table)
    table.put("a", live_row())
    assert not table.gone("b", "unknown", ended=True)
    assert changes == []


def test_what_a_process_no_longer_says_goes() -> None:
    table = LiveTable()
    for name in ("s1", "s2"):
        table.put("a", live_row(name))
    assert table.keep_only("a", [live_row("s2").key]) == [live_row("s1").key]
    assert table.forget_node("a") == [live_row("s2").key]
    assert table.forget_node("a") == []
    assert len(table) == 0
