"""Fields of providers' events: instants, figures, ids, custom data."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from getstream.utils import datetime_from_unix_ns, encode_datetime
from hypothesis import given
from hypothesis import strategies as st

from server.calls import limits as call_limits
from server.calls.event_fields import (
    body_digest,
    check_age,
    checked_id,
    custom_texts,
    duration_ms,
    event_digest,
    forged,
    instant_ms,
    instant_ns,
    is_signature,
    read_event,
    required_ms,
    seconds_ms,
)
from server.calls.facts import RefusedEventError

NOW_MS = 1_790_000_000_000


@pytest.mark.parametrize(
    ("said", "ns"),
    [
        ("2026-11-30T12:00:00Z", 1_796_040_000_000_000_000),
        ("2026-11-30T12:00:00.5Z", 1_796_040_000_500_000_000),
        ("2026-11-30T12:00:00.123456789Z", 1_796_040_000_123_456_789),
        ("2026-11-30T12:00:00.1234567891Z", 1_796_040_000_123_456_789),
        ("2026-11-30t14:00:00+02:00", 1_796_040_000_000_000_000),
        ("2026-11-30 06:30:00-05:30", 1_796_040_000_000_000_000),
        (1_796_040_000_123_456_789, 1_796_040_000_123_456_789),
        ("1796040000123456789", 1_796_040_000_123_456_789),
        (1.79604e18, 1_796_040_000_000_000_000),
        (None, None), ("", None), (0, None), (-5, None), ("0001-01-01T00:00:00Z", None),
        ("1970-01-01T00:00:00Z", None),
    ],
)  # fmt: skip
def test_instants_are_read_to_the_nanosecond(
    said: int | float | str | None, ns: int | None
) -> None:
    assert instant_ns(said) == ns
    assert instant_ms(said) == (None if ns is None else ns // 1_000_000)


@pytest.mark.parametrize(
    "said",
    [
        "yesterday", "2026-11-30", "2026-11-30T12:00:00", "2026-13-30T12:00:00Z", "2026-W48-1",
        "2026-11-30T25:00:00Z", "2026-11-30T12:00:00+99:00", "20261130T120000Z", "-1", " 5",
        "\u0665",
        "9999-12-31T23:59:59-12:00", 1e300, 1 << 90, "9" * 21, "9" * 5_000,
    ],
)  # fmt: skip
def test_what_is_no_instant_is_refused(said: float | str) -> None:
    with pytest.raises(RefusedEventError) as refused:
        instant_ns(said)
    assert refused.value.code == "event_malformed"


@given(st.integers(1, 1 << 53))
def test_both_ways_to_write_an_instant_are_the_same(us: int) -> None:
    at, ns = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us), us * 1_000
    assert instant_ns(encode_datetime(at)) == instant_ns(ns) == instant_ns(str(ns)) == ns
    of_sdk = datetime_from_unix_ns(ns)
    assert abs(of_sdk - at) <= timedelta(microseconds=250)  # it computes with floats


def test_an_age_bounds_events() -> None:
    oldest = NOW_MS - call_limits.CALL_EVENT_AGE_MS_MAX
    newest = NOW_MS + call_limits.CALL_EVENT_AHEAD_MS_MAX
    for at_ms in (oldest, NOW_MS, newest):
        check_age(at_ms, NOW_MS)
    for at_ms, code in ((oldest - 1, "event_ancient"), (newest + 1, "event_ahead")):
        with pytest.raises(RefusedEventError) as refused:
            check_age(at_ms, NOW_MS)
        assert refused.value.code == code


def test_seconds_and_figures() -> None:
    assert seconds_ms(1_790_000_000.25) == 1_790_000_000_250
    assert seconds_ms(None) is None
    assert required_ms(5, "at") == 5_000
    for bad in ("5", -1, 0, 1e30):
        with pytest.raises(RefusedEventError):
            seconds_ms(bad)
    with pytest.raises(RefusedEventError, match="at is missing"):
        required_ms(None, "at")
    assert duration_ms(11.419) == 11_419
    assert duration_ms(0) == 0
    for absurd in (None, -1, 1e12, "5"):
        assert duration_ms(absurd) is None


def test_ids_are_those_that_can_be_kept() -> None:
    for good in ("ann", "default:abc", "Änne Müller", "x" * call_limits.CALL_ID_CHARACTERS_MAX):
        assert checked_id(good, "id") == good
    for bad in (None, "", 5, "a\0b", "a\nb", "x" * (call_limits.CALL_ID_CHARACTERS_MAX + 1)):
        with pytest.raises(RefusedEventError) as refused:
            checked_id(bad, "id")
        assert refused.value.code == "event_malformed"


def test_custom_data_is_kept_as_short_texts() -> None:
    custom = {
        "payer": "ann", "org": "acme", "seats": 5, "on": True, "rate": 0.5, "deep": {"a": "b"},
        "none": None, "nul": "a\0", "huge": 1 << 200, "long": "x" * 300, "n" * 300: "x",
    }  # fmt: skip
    assert custom_texts(custom) == {"payer": "ann", "org": "acme", "seats": "5"}
    assert custom_texts(None) == {}
    many = custom_texts({str(at): "x" for at in range(10_000)})
    assert len(many) == call_limits.CALL_CUSTOM_FIELDS_MAX


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_digests_differ_when_a_part_differs(parts: list[str], others: list[str]) -> None:
    assert (event_digest(*parts) == event_digest(*others)) == (parts == others)
    assert len(event_digest(*parts)) == len(body_digest(b"")) == 64


def test_signatures_are_compared_whatever_a_header_has() -> None:
    assert is_signature("abc", "abc")
    for given_one in (None, "", "abd", "abcd", "ä", "\udcff"):
        assert not is_signature("abc", given_one)
    assert forged("x").code == "event_forged"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b'"x"', b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}",
     b'{"a":"\\ud800"}', b'{"a":"\xff"}', b'{"a":1e999}', b'{"a":5}', b"{}{}"],
)  # fmt: skip
def test_bodies_that_are_no_event_are_refused(body: bytes) -> None:
    class TextEvent(msgspec.Struct):
        a: str

    with pytest.raises(RefusedEventError) as refused:
        read_event(body, TextEvent)
    assert refused.value.code == "event_malformed"
