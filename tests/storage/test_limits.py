"""Storage's bounds are positive, and a broken relation prevents the start."""

from pathlib import Path

import pytest

from storage import limits
from tests.fixtures.limits import assert_does_not_start


def test_every_number_is_positive() -> None:
    numbers = [
        value for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)
    ]
    assert len(numbers) > 20
    assert all(value > 0 for value in numbers)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("DATABASE_TIMEOUT_MS: Final = 10_000", "DATABASE_TIMEOUT_MS: Final = 60_000"),
        ("FLUSH_BLOCK_MS: Final = 5_000", "FLUSH_BLOCK_MS: Final = 50_000"),
        ("FLUSH_WRITES_AT_ONCE: Final = 4", "FLUSH_WRITES_AT_ONCE: Final = 10"),
    ],
)
def test_a_broken_relation_does_not_start(tmp_path: Path, text: str, broken: str) -> None:
    assert_does_not_start(limits, tmp_path, text, broken)
