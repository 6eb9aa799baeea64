"""An end determines its minutes: their number, length, cost and beginning."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from protocol.metering.ended_minutes import minutes_of
from protocol.metering.records import MinuteUsed, SessionEnded
from protocol.metering.terms import Terms, minutes_begun

TERMS = Terms(
    kind="chat",
    price_micros=1_000_000,
    free_ms=0,
    free_scope="session",
    first_increment_ms=1_000,
    next_increment_ms=1_000,
    counts_minutes=True,
    warn_at_ms=(),
    stop_grace_ms=0,
    reconnect_grace_ms=0,
    gap="skip",
    session_cap_ms=0,
    tick_ms=1_000,
)


def end(segments: list[tuple[int, int]], free_ms: int = 0, **terms: Any) -> SessionEnded:
    """The end of a session that ran along segments."""
    changed = msgspec.structs.replace(TERMS, **terms)
    elapsed_ms = sum(to_at - from_at for from_at, to_at in segments) * changed.speed
    free_ms = min(free_ms, elapsed_ms)
    return SessionEnded(
        tenant="user:ann",
        session_id="s1",
        user_id="ann",
        org_id=None,
        account_id="ann",
        counterpart_id=None,
        kind="chat",
        started_at=segments[0][0] if segments else 0,
        ended_at=segments[-1][1] if segments else 0,
        reason="client",
        limit=None,
        elapsed_ms=elapsed_ms,
        free_ms=free_ms,
        billed_ms=changed.billed_ms(elapsed_ms, free_ms),
        minutes=minutes_begun(elapsed_ms),
        credits_micros=changed.cost_micros(elapsed_ms, free_ms),
        uncovered_ms=0,
        segments=segments,
        gaps=[],
        terms=changed,
    )


def made(ended: SessionEnded) -> list[MinuteUsed]:
    """The end's minutes, with months of 100 s."""
    return list(minutes_of(ended, lambda at: str(at // 100_000)))


def test_minutes_begin_along_the_segments() -> None:
    found = made(end([(0, 30_000), (100_000, 190_000), (500_000, 501_500)]))
    assert [one.started_at for one in found] == [0, 130_000, 500_000]
    assert [one.seconds for one in found] == [60, 60, 2]
    assert [one.month for one in found] == ["0", "1", "5"]
    assert [one.credits_micros for one in found] == [1_000_000, 1_000_000, 33_333]


def test_free_time_comes_first() -> None:
    found = made(end([(0, 150_000)], 90_000))
    assert [one.free_ms for one in found] == [60_000, 30_000, 0]
    assert [one.credits_micros for one in found] == [0, 500_000, 500_000]


def test_minutes_of_a_fast_session_begin_early() -> None:
    found = made(end([(0, 1_000)], speed=130))
    assert [one.started_at for one in found] == [0, 462, 924]
    assert [one.seconds for one in found] == [60, 60, 10]


def test_end_without_time_has_no_minutes() -> None:
    assert made(end([])) == []


def test_last_minute_takes_what_the_cost_does_not_explain() -> None:
    ended = msgspec.structs.replace(end([(0, 90_000)]), credits_micros=1_700_000)
    assert [one.credits_micros for one in made(ended)] == [1_000_000, 700_000]
    ended = msgspec.structs.replace(ended, credits_micros=900_000)
    assert [one.credits_micros for one in made(ended)] == [900_000, 0]


@given(
    parts=st.lists(st.integers(1, 200_000), max_size=6),
    free_ms=st.integers(0, 200_000),
    price_micros=st.integers(0, 3_000_000),
    increment_ms=st.sampled_from([1, 1_000, 6_000, 60_000]),
)
def test_minutes_add_up_to_the_end(
    parts: list[int], free_ms: int, price_micros: int, increment_ms: int
) -> None:
    segments, at = [], 0
    for part in parts:
        segments.append((at, at + part))
        at += part + 1_000
    ended = end(
        segments,
        free_ms,
        price_micros=price_micros,
        first_increment_ms=increment_ms,
        next_increment_ms=increment_ms,
    )
    found = made(ended)
    assert [one.minute for one in found] == list(range(ended.minutes))
    assert sum(one.credits_micros for one in found) == ended.credits_micros
    assert sum(one.free_ms for one in found) == ended.free_ms
    assert sum(one.seconds for one in found) == -(-ended.elapsed_ms // 1_000)
    assert all(1 <= one.seconds <= 60 and one.credits_micros >= 0 for one in found)
    assert all(any(a <= one.started_at < b for a, b in segments) for one in found)
