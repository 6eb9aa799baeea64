"""Where a session stands: its segments, and whose free time it uses."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.metering.session import free_key, joined_segments, segments_in_order, session_key
from protocol.metering.terms import Terms
from tests.protocol.examples import session_of, standing_of, terms_of

Segments = tuple[tuple[int, int], ...]

some_segments = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 20)).map(lambda one: (one[0], one[0] + one[1])),
    max_size=12,
).map(tuple)


def counted(segments: Segments) -> set[int]:
    """The instants within segments, one for each millisecond."""
    return {at for from_at, to_at in segments for at in range(from_at, to_at)}


@given(parts=some_segments)
def test_segments_in_order_are_apart_and_hold_the_same_time(parts: Segments) -> None:
    ordered = segments_in_order(parts)
    assert counted(ordered) == counted(parts)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(ordered))


@given(parts=some_segments)
def test_segments_joined_one_by_one_hold_the_same_time(parts: Segments) -> None:
    joined: Segments = ()
    for from_at, to_at in parts:
        joined = joined_segments(joined, from_at, to_at)
    assert counted(joined) == counted(parts)
    assert list(joined) == sorted(joined)


def test_an_empty_segment_is_none() -> None:
    assert joined_segments(((0, 5),), 9, 9) == ((0, 5),)
    assert joined_segments((), 9, 3) == ()


def test_a_receipt_keeps_a_bounded_number_of_newest_segments() -> None:
    joined: Segments = ()
    for number in range(3 * limits.SEGMENTS_PER_RECEIPT_MAX):
        joined = joined_segments(joined, 10 * number, 10 * number + 5)
        assert len(joined) <= limits.SEGMENTS_PER_RECEIPT_MAX
    assert joined[0][0] == 0
    assert joined[-2:] == ((7_660, 7_665), (7_670, 7_675))
    parts = tuple((10 * number, 10 * number + 5) for number in range(300))
    assert len(segments_in_order(parts[: limits.SEGMENTS_PER_RECEIPT_MAX + 1])) == 256


@pytest.mark.parametrize(
    ("terms", "counterpart_id", "key"),
    [
        (terms_of(free_ms=0, free_scope="day"), "bob", None),
        (terms_of(free_ms=1, free_scope="session"), "bob", None),
        (terms_of(free_ms=1, free_scope="pair"), "bob", "ann/chat/pair/bob"),
        (terms_of(free_ms=1, free_scope="pair"), None, None),
        (terms_of(free_ms=1, free_scope="day"), None, "ann/chat/day/2026-11-25"),
    ],
)
def test_the_allowance_that_free_time_is_drawn_from(
    terms: Terms, counterpart_id: str | None, key: str | None
) -> None:
    assert free_key(terms, "ann", counterpart_id, "2026-11-25") == key


def test_a_session_is_named_across_tenants() -> None:
    assert session_of().key == session_key("user:ann", "chat-1") == "user:ann/chat-1"


def test_a_minute_counts_once_it_is_begun_and_settled() -> None:
    assert [standing_of(settled_ms=ms).counted_minutes for ms in (0, 1, 60_000, 60_001)] == [
        0, 1, 1, 2,
    ]  # fmt: skip
    assert standing_of(minutes_kept=2).minute_end_ms == 180_000
