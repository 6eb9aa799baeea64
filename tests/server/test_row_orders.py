"""Orders of rows are what sorting all rows gives."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.wire.errors import BadMessageError
from protocol.wire.filters import parse_filter
from server.ops import limits as ops_limits
from server.ops.live_rows import LiveRow
from server.ops.live_table import LiveTable
from server.ops.row_orders import SORT_FIELDS, RowOrder, filling, order_of, parse_sort
from tests.server.live_row_examples import live_row

SORTS = [sign + field for field in SORT_FIELDS for sign in ("", "-")]
ROWS = st.builds(
    live_row,
    session_id=st.sampled_from([f"s{number}" for number in range(8)]),
    user_id=st.sampled_from("ab"),
    org_id=st.sampled_from([None, "x", "y"]),
    limit=st.sampled_from([None, "credits"]),
    remaining_ms=st.sampled_from([None, 5, 700]),
    elapsed_ms=st.integers(0, 5),
    at=st.integers(0, 5),
    pace=st.integers(0, 1),
    started_at=st.integers(0, 3),
    credits_micros=st.integers(-3, 3),
)
CHANGES = st.lists(st.tuples(ROWS, st.booleans()), max_size=30)


def sorted_keys(rows: dict[str, LiveRow], sort_text: str, at: int) -> list[str]:
    """All rows in order, the plain way: those without a value last."""
    sort = parse_sort(sort_text)

    def value(row: LiveRow) -> Any:
        figures = {
            "elapsed_ms": row.elapsed_at(at),
            "credits": row.credits_at(at),
            "remaining_ms": row.remaining_at(at),
        }
        return figures.get(sort.field, getattr(row, sort.field, None))

    there = [row for row in rows.values() if value(row) is not None]
    missing = [row for row in rows.values() if value(row) is None]
    ordered = sorted(there, key=lambda row: (value(row), row.key), reverse=sort.descends)
    return [
        row.key for row in ordered + sorted(missing, key=lambda row: row.key, reverse=sort.descends)
    ]


@given(CHANGES, st.sampled_from(SORTS), st.sampled_from(["", "user:a", "credits:<0 -org:x"]))
def test_an_order_is_that_of_sorting_all_rows(
    changes: list[tuple[LiveRow, bool]], sort: str, text: str
) -> None:
    wanted, at = parse_filter(text), 100
    order, rows = RowOrder(wanted, parse_sort(sort), at), dict[str, LiveRow]()
    for row, stays in changes:
        rows.pop(row.key, None)
        if stays:
            rows[row.key] = row
        order.put(row.key, rows.get(row.key), at)
    matching = {key: row for key, row in rows.items() if wanted.matches(row, at)}
    expected = sorted_keys(matching, sort, at)
    assert order.keys(0, 99) == expected
    assert order.keys(1, 3) == expected[1:4]
    assert len(order) == len(expected)
    found: list[str] = []
    places = order.first(2)
    while places:
        found += [place[2] for place in places]
        assert all(parse_sort(sort).has_place(place) for place in places)
        places = order.after(places[-1], 2)
    assert found == expected


def test_a_place_that_is_gone_still_divides_the_rows() -> None:
    order = RowOrder(parse_filter(""), parse_sort("-session_id"), 0)
    rows = {name: live_row(name) for name in ("s1", "s2", "s3")}
    for row in rows.values():
        order.put(row.key, row, 0)
    (place,) = order.after(order.first(1)[0], 1)
    order.put(rows["s2"].key, None, 0)
    assert [found[2] for found in order.after(place, 9)] == [rows["s1"].key]


@pytest.mark.parametrize("text", ["", "-", "colour", "--kind", "metadata"])
def test_a_sort_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(BadMessageError, match="sort"):
        parse_sort(text)


@pytest.mark.parametrize(
    ("sort", "place"),
    [
        ("kind", (False, 5, "k")),
        ("started_at", (False, "x", "k")),
        ("limit", (True, "x", "k")),
        ("-limit", (False, "x", "k")),
    ],
)
def test_a_place_of_another_order_is_none(sort: str, place: tuple[bool, Any, str]) -> None:
    assert not parse_sort(sort).has_place(place)


async def test_a_large_table_is_put_in_order_in_parts() -> None:
    table = LiveTable()
    for number in range(3 * ops_limits.ORDERED_PER_TURN):
        table.put("a", live_row(f"s{number}"))
    sort = parse_sort("session_id")
    order = RowOrder(parse_filter(""), sort, 0)
    parts = [len(order) for _ in filling(order, table, 0)]
    assert parts == [ops_limits.ORDERED_PER_TURN * part for part in (1, 2, 3)]
    assert len(await order_of(table, parse_filter(""), sort, 0)) == len(table)
