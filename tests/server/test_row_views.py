"""Views and windows: their deltas lead from one state to the next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.wire.filters import parse_filter
from server.ops.live_table import LiveTable
from server.ops.row_orders import parse_sort
from server.ops.row_views import RowDelta, RowView, RowWindow
from server.runtime.clock import Clock
from tests.server.live_row_examples import live_row
from tests.server.test_row_orders import CHANGES, SORTS, sorted_keys


class SetClock(Clock):
    """A clock that a test sets."""

    at = 0

    def now(self) -> int:
        return self.at


def view_of(
    table: LiveTable, text: str = "", sort: str = "session_id", clock: Clock | None = None
) -> RowView:
    """A view of a table, complete."""
    view = RowView(table, parse_filter(text), parse_sort(sort), clock or SetClock())
    for _ in view.rebuild():
        pass
    return view


def applied(shown: list[str], delta: RowDelta) -> list[str]:
    """What a watcher shows after a delta."""
    if delta.order is not None:
        return delta.order
    gone = {row.key for row in delta.gone}
    kept = [key for key in shown if key not in gone]
    return kept + [row.key for row in delta.set if row.key not in kept]


@given(CHANGES, st.sampled_from(SORTS), st.integers(0, 3), st.integers(1, 4))
def test_a_watcher_that_applies_deltas_has_the_window(
    changes: list[tuple[object, bool]], sort: str, offset: int, count: int
) -> None:
    table, shown, rows = LiveTable(), list[str](), dict[str, object]()
    view = view_of(table, sort=sort)
    window = RowWindow(view, offset, count)
    for step, (row, stays) in enumerate(changes):
        if stays:
            table.put("a", row)  # type: ignore[arg-type]
        else:
            table.gone("a", row.key, ended=True)  # type: ignore[attr-defined]
        if step % 3 == 2:
            for _ in view.rebuild():
                pass
        delta = window.update()
        if delta is not None:
            shown = applied(shown, delta)
            rows = {**rows, **{one.key: one for one in delta.set}}
            for one in delta.gone:
                del rows[one.key]
            assert delta.total == len(table)
        expected = sorted_keys(table.rows, sort, 0)[offset : offset + count]
        assert shown == expected
        assert rows == {key: table.rows[key] for key in expected}


def test_nothing_is_told_while_nothing_changes() -> None:
    table = LiveTable()
    window = RowWindow(view_of(table), 0, 1)
    table.put("a", live_row("s1"))
    table.put("a", live_row("s2"))
    first = window.update()
    assert first is not None
    assert (first.seq, first.total, [row.session_id for row in first.set]) == (1, 2, ["s1"])
    assert window.update() is None
    table.put("a", live_row("s2", elapsed_ms=5))  # outside of the window
    assert window.update() is None
    table.put("a", live_row("s0"))
    second = window.update()
    assert second is not None
    assert (second.seq, second.total) == (2, 3)


@pytest.mark.parametrize(
    ("text", "sort", "before", "after"),
    [
        ("age:>1m", "session_id", [], ["s1", "s2"]),
        ("credits:<9.5", "session_id", [], ["s1"]),
        ("", "-elapsed_ms", ["s2", "s1"], ["s1", "s2"]),
    ],
)
def test_time_alone_changes_a_view_when_it_is_built_anew(
    text: str, sort: str, before: list[str], after: list[str]
) -> None:
    clock, table = SetClock(), LiveTable()
    table.put("a", live_row("s1", elapsed_ms=0))
    table.put("a", live_row("s2", elapsed_ms=30_000, pace=0, burn_micros=0))
    view = view_of(table, text, sort, clock)
    assert view.changes_with_time
    assert [row.session_id for row in view.rows(0, 9)] == before
    clock.at = 90_000
    for _ in view.rebuild():
        pass
    assert [row.session_id for row in view.rows(0, 9)] == after


def test_changes_while_a_view_is_built_anew_are_in_it() -> None:
    table = LiveTable()
    for number in range(600):
        table.put("a", live_row(f"s{number:03}"))
    view = view_of(table)
    building = view.rebuild()
    next(building)
    table.put("a", live_row("s000", user_id="ben"))
    table.gone("a", live_row("s001").key, ended=True)
    table.put("a", live_row("s999"))
    assert view.total == 600
    for _ in building:
        pass
    assert view.total == 600
    assert view.rows(0, 1) == [live_row("s000", user_id="ben")]
    assert view.rows(1, 1) == [live_row("s002")]
    assert view.rows(599, 1) == [live_row("s999")]


def test_a_closed_view_follows_no_more() -> None:
    table = LiveTable()
    view = view_of(table)
    view.close()
    table.put("a", live_row())
    assert table.listeners == {}
    assert view.total == 0
