"""An assertion restores a lost session's months and recorded minutes."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.metering.assertion import (
    Assertion,
    minute_again,
    minute_began_at,
    months_of_minutes,
)
from protocol.metering.records import MinuteUsed
from protocol.metering.session import Grant, SessionState
from protocol.metering.steps import Settling
from protocol.metering.terms import MINUTE_MS
from tests.protocol.examples import (
    NOW,
    identity_of,
    month_of,
    months_that_change_at,
    session_of,
    standing_of,
    terms_of,
)


@given(
    stops_ms=st.lists(st.integers(1, 200_000), min_size=1, max_size=5),
    free_ms=st.integers(0, 200_000),
    price_micros=st.integers(0, 2_000_001),
)
def test_a_recreated_minute_equals_the_recorded_one(
    stops_ms: list[int], free_ms: int, price_micros: int
) -> None:
    terms = terms_of(free_ms=free_ms, price_micros=price_micros)
    made = Settling(identity_of(terms), month_of, standing_of(free_ms=free_ms))
    elapsed_ms, at = 0, NOW
    for stop_ms in stops_ms:  # runs of some time, with a pause of a second between two
        made.standing = msgspec.structs.replace(made.standing, run_at=at, at=at)
        elapsed_ms, at = elapsed_ms + stop_ms, at + stop_ms
        made.settle(elapsed_ms)
        made.standing = msgspec.structs.replace(made.standing, elapsed_ms=elapsed_ms, at=at)
        made.halt(at)
        at += 1_000
    made.end(at, "client", None)
    session = SessionState(made.identity, made.standing, Grant())
    for record in made.records:
        if isinstance(record, MinuteUsed):
            again = minute_again(session, record.minute, month_of)
            # Where a run ended with the minute, it began with the next one.
            assert record.started_at in (again.started_at, again.started_at - 1_000)
            assert msgspec.structs.replace(again, started_at=record.started_at) == record


@pytest.mark.parametrize(
    ("settled_ms", "months"),
    [
        (0, (("2026-05-01", 0),)),
        (3 * MINUTE_MS, (("2026-05-01", 0),)),
        (3 * MINUTE_MS + 1, (("2026-05-01", 0), ("2026-06-01", 3))),
        (300 * MINUTE_MS, (("2026-05-01", 0), ("2026-06-01", 3))),
    ],
)
def test_minutes_belong_to_the_month_in_which_they_began(
    settled_ms: int, months: tuple[tuple[str, int], ...]
) -> None:
    kept = settled_ms // MINUTE_MS
    standing = standing_of(
        elapsed_ms=settled_ms, settled_ms=settled_ms, at=NOW + settled_ms, run_at=NOW,
        minutes_kept=kept, minute_at=NOW + kept * MINUTE_MS,
    )  # fmt: skip
    session = session_of(standing=standing)
    assert months_of_minutes(session, months_that_change_at(NOW + 3 * MINUTE_MS)) == months


def test_minutes_lie_along_the_segments() -> None:
    standing = standing_of(
        minutes_kept=3, minute_at=NOW + 999_000, run_at=NOW + 500_000,
        segments=((NOW, NOW + 90_000), (NOW + 200_000, NOW + 230_000)),
    )  # fmt: skip
    session = session_of(standing=standing)
    began = [minute_began_at(session, minute) - NOW for minute in range(4)]
    assert began == [0, 60_000, 500_000, 999_000]


def test_a_minute_that_begins_with_the_last_millisecond_of_a_run_belongs_to_it() -> None:
    # At 130-fold speed the second minute begins 461.5 ms after the first, before the pause.
    segments = ((NOW, NOW + 462), (NOW + 200_000, NOW + 200_600))
    standing = standing_of(
        elapsed_ms=1_062 * 130, minutes_kept=3, minute_at=NOW + 200_600, segments=segments
    )
    session = session_of(terms_of(speed=130), standing=standing)
    began = [minute_began_at(session, minute) - NOW for minute in range(3)]
    assert began == [0, 462, 200_462]


def test_an_assertion_follows_on_the_version_of_others() -> None:
    asserted = Assertion(session_of(), (b"{}",), (("2026-05-01", 0),), present=True)
    after = asserted.after(7)
    assert after.session.standing.version == 8
    assert (after.notices, after.minutes, after.present) == ((b"{}",), asserted.minutes, True)
