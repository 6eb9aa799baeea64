"""From records to columns: one array each, first duplicates only, nothing unwritable."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.metering.records import (
    EntryPosted,
    HoldChanged,
    MinuteUsed,
    SessionEnded,
    SessionStarted,
)
from storage.postgres import columns
from tests.storage.examples import ended, entry, minute, started


def hold(state: str, changed_at: int = 1, hold_id: str = "h") -> HoldChanged:
    return HoldChanged(
        tenant="user:ann", account_id="ann", hold_id=hold_id, state=state,  # type: ignore[arg-type]
        amount_micros=5, posted_micros=0, operation=None, user_id="ann", month="2026-05-01",
        created_at=1, expires_at=9, changed_at=changed_at,
    )  # fmt: skip


def test_every_field_of_a_record_has_its_column() -> None:
    for record_type, names in (
        (SessionStarted, columns.STARTED), (SessionEnded, columns.ENDED),
        (MinuteUsed, columns.MINUTE), (HoldChanged, columns.HOLD),
    ):  # fmt: skip
        assert sorted(names) == sorted(record_type.__struct_fields__)


def test_of_duplicates_the_first_is_written() -> None:
    first, again = minute(0), minute(0, credits_micros=7)
    found = columns.unique(
        [first, started(), again, minute(1)], MinuteUsed, "tenant", "session_id", "minute"
    )
    assert list(found.values()) == [first, minute(1)]


def test_records_are_turned_into_columns_also_where_there_are_none() -> None:
    arrays = columns.arrays([ended(), ended(session_id="s2")], ("session_id", "segments"))
    assert arrays[0] == ["s1", "s2"]
    assert msgspec.json.decode(arrays[1][0]) == [list(one) for one in ended().segments]
    assert columns.turned([(1, "a"), (2, "b")], 2) == [(1, 2), ("a", "b")]
    assert columns.turned([], 3) == [(), (), ()]


@pytest.mark.parametrize(
    ("kind", "micros", "moved"),
    [("spend", -1, True), ("spend", 0, False), ("post", 0, False), ("grant", 0, True)],
)
def test_what_cost_nothing_is_in_no_ledger(kind: str, micros: int, moved: bool) -> None:
    assert columns.has_moved(entry("e", micros, entry_kind=kind)) is moved


def operation(metadata: dict[str, Any] | None) -> tuple[Any, ...]:
    spend = entry("s", -9, entry_kind="spend", operation="voice", user_id="ann", month="2026-05-01",
                  metadata=metadata)  # fmt: skip
    (row,) = columns.operation_rows(spend)
    assert len(row) == columns.OPERATION_WIDTH
    return row[8:12]


def test_rows_are_as_wide_as_their_statement() -> None:
    assert len(columns.entry_row(entry())) == columns.ENTRY_WIDTH
    assert len(columns.burn_row(minute(0))) == columns.ENTRY_WIDTH
    assert columns.operation_rows(entry()) == []


@pytest.mark.parametrize(
    ("metadata", "columns_of_it"),
    [
        (None, (True, None, None, None)),
        ({"success": False, "service": "tts"}, (False, "tts", None, None)),
        ({"success": None, "service": 5}, (True, None, None, None)),
        ({"tokens_used": 7, "response_time_ms": 0}, (True, None, 7, 0)),
        ({"tokens_used": True, "response_time_ms": 2**63}, (True, None, None, None)),
        ({"tokens_used": -1, "response_time_ms": 1.5}, (True, None, None, None)),
        ({"tokens_used": 2**63 - 1}, (True, None, 2**63 - 1, None)),
    ],
)
def test_metadata_in_an_unknown_form_has_no_column(
    metadata: dict[str, Any] | None, columns_of_it: tuple[Any, ...]
) -> None:
    assert operation(metadata) == columns_of_it


def test_of_each_hold_the_change_that_ends_it_counts() -> None:
    changes = [hold("open"), hold("posted", 2), hold("open", 3), hold("open", hold_id="other")]
    assert columns.furthest_holds(changes) == [hold("posted", 2), hold("open", hold_id="other")]


def test_a_value_that_is_left_out_is_told_from_none() -> None:
    assert columns.given(msgspec.UNSET) == (False, None)
    assert columns.given(None) == (True, None)
    assert columns.number(1.5) == "1.5"
    assert columns.number(None) is None
    assert columns.number(msgspec.UNSET) is msgspec.UNSET


documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(document=documents)
def test_a_document_has_no_character_that_postgres_cannot_keep(document: Any) -> None:
    text = columns.json_value(document)
    if document is None:
        assert text is None
        return
    assert text is not None
    assert "\0" not in str(msgspec.json.decode(text))
    if "\0" not in str(document) and "\\x00" not in str(document):
        assert msgspec.json.decode(text) == document


def test_free_text_loses_only_that_character() -> None:
    assert columns.text_value("a\0b") == "a\ufffdb"
    assert columns.text_value(None) is None
    row = columns.money_in_row(
        EntryPosted("t", "a", "e", "grant", 1, 2, reason="x\0"), 3, None, None
    )
    assert "x\ufffd" in row
