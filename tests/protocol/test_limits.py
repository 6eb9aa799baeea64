"""The bounds have the specified values, and broken relations prevent a start."""

from pathlib import Path

import pytest

from protocol import limits
from protocol.metering.terms import MINUTE_MS
from tests.fixtures.limits import assert_does_not_start


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MESSAGE_BYTES_MAX", 16_384),
        ("METADATA_BYTES_MAX", 2_048),
        ("ID_CHARACTERS_MAX", 128),
        ("TICK_MS_MIN", 250),
        ("TICK_MS_MAX", 60_000),
        ("NOTICES_KEPT_MAX", 32),
        ("NODE_SILENT_MS", 5_000),
        ("UNCOVERED_MS_DEFAULT", 60_000),
        ("GRANT_MARGIN_MS_MIN", 5_000),
        ("GRANT_SHRUNKEN_MS", (5_000, 1_000)),
        ("RECALL_WAIT_MS", 250),
    ],
)
def test_numbers_that_the_specification_fixes(name: str, value: object) -> None:
    assert getattr(limits, name) == value


def test_every_number_is_positive() -> None:
    numbers = [
        (name, value)
        for name, value in vars(limits).items()
        if name.isupper() and isinstance(value, int)
    ]
    assert len(numbers) > 40
    assert all(value > 0 for _, value in numbers)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("BALANCE_MICROS_MAX: Final = 10**15", "BALANCE_MICROS_MAX: Final = 10**16"),
        ("NODE_SILENT_MS: Final = 5_000", "NODE_SILENT_MS: Final = 1_000"),
        ("REDIS_TIMEOUT_MS: Final = 1_500", "REDIS_TIMEOUT_MS: Final = 4_000"),
    ],
)
def test_a_broken_relation_does_not_start(tmp_path: Path, text: str, broken: str) -> None:
    assert_does_not_start(limits, tmp_path, text, broken)


def test_doubles_hold_what_lua_computes() -> None:
    largest = 8 * limits.BALANCE_MICROS_MAX
    assert int(float(largest)) == largest
    assert int(float(largest - 1)) == largest - 1
    cost = limits.PRICE_MICROS_MAX * limits.SESSION_CAP_MS_MAX // MINUTE_MS
    assert cost < limits.BALANCE_MICROS_MAX
