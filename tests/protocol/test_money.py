"""Credits on the wire and inside."""

import re
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.wire.errors import BadMessageError
from protocol.wire.money import (
    AMOUNT_PATTERN,
    CREDITS_PATTERN,
    PRICE_PATTERN,
    format_credits,
    parse_credits,
)

# A slow machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
MICROS = st.integers(-limits.AMOUNT_MICROS_MAX, limits.AMOUNT_MICROS_MAX)


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("0", 0),
        ("1", 1_000_000),
        ("12.5", 12_500_000),
        ("0.000001", 1),
        ("12.500000", 12_500_000),
        ("1000000000", limits.AMOUNT_MICROS_MAX),
    ],
)
def test_parse(text: str, micros: int) -> None:
    assert parse_credits(text) == micros


@pytest.mark.parametrize(
    "text",
    [
        "", "-", ".", "1.", ".5", "+1", " 1", "1 ", "1\n", "1e3", "1E3", "0x10", "NaN", "Infinity",
        "01", "00", "1_000", "1,5", "1.0000001", "--1", "1.-5", "\u0661", "1.\u0665", "10000000000",
        "1000000000.000001", "99999999999", 1, 1.5, True, None, b"1", ["1"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("signed", [False, True])
def test_parse_refuses(text: object, signed: bool) -> None:
    with pytest.raises(BadMessageError) as caught:
        parse_credits(text, signed=signed, name="amount")
    assert caught.value.message.startswith("amount: ")


@pytest.mark.parametrize("text", ["1000000000.000001", "10000000000", "99999999999999"])
def test_what_is_too_much_is_refused_as_too_much(text: str) -> None:
    with pytest.raises(BadMessageError, match="must be at most 1000000000"):
        parse_credits(text)


def test_a_sign_only_where_it_is_allowed() -> None:
    with pytest.raises(BadMessageError, match="must not be negative"):
        parse_credits("-1")
    assert parse_credits("-1.25", signed=True) == -1_250_000
    assert parse_credits("-0", signed=True) == 0


def test_the_bound_is_named() -> None:
    with pytest.raises(BadMessageError, match=r"price: must be at most 2\.5"):
        parse_credits("2.500001", name="price", micros_max=2_500_000)
    assert parse_credits("2.5", micros_max=2_500_000) == 2_500_000


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "0"),
        (12_500_000, "12.5"),
        (-1, "-0.000001"),
        (1_000_000, "1"),
        (-1_100_000, "-1.1"),
        (10_000_000, "10"),
        (16_666, "0.016666"),
    ],
)
def test_format(micros: int, text: str) -> None:
    assert format_credits(micros) == text


NEAR_BOUNDS = st.sampled_from(
    [
        format_credits(bound + step)
        for bound in (0, limits.PRICE_MICROS_MAX, limits.AMOUNT_MICROS_MAX)
        for step in (-1_000_000, -1, 0, 1, 1_000_000)
    ]
    + ["0.0", "0.000000", "00", "10000.0", "10000.000000", "1000000000.000000", "1.", ".5"]
)


@CALM
@given(st.one_of(NEAR_BOUNDS, st.text(alphabet="0123456789.-", max_size=18)))
def test_the_schemas_take_what_is_taken(text: str) -> None:
    bounds = ((AMOUNT_PATTERN, 1, limits.AMOUNT_MICROS_MAX), (PRICE_PATTERN, 0, 10**10))
    for pattern, least, micros_max in bounds:
        try:
            taken = parse_credits(text, micros_max=micros_max) >= least
        except BadMessageError:
            taken = False
        assert (re.search(pattern, text) is not None) == taken, pattern


@CALM
@given(MICROS)
def test_there_and_back(micros: int) -> None:
    text = format_credits(micros)
    assert parse_credits(text, signed=True) == micros
    assert Decimal(text) * 1_000_000 == micros
    assert re.search(CREDITS_PATTERN, text)


@CALM
@given(MICROS)
def test_no_shorter_text_says_the_same(micros: int) -> None:
    text = format_credits(micros)
    assert text != "-0"
    assert "." not in text or text[-1] not in "0."


@CALM
@given(st.text(alphabet="0123456789.-+e ", max_size=14))
def test_whatever_is_accepted_means_what_decimal_says(text: str) -> None:
    try:
        micros = parse_credits(text, signed=True)
    except BadMessageError:
        return
    assert micros == Decimal(text) * 1_000_000
