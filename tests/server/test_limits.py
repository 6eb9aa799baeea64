"""The server's bounds have the specified values; broken relations prevent a start."""

from pathlib import Path

import pytest

from server import limits
from tests.fixtures.limits import assert_does_not_start


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PING_INTERVAL_MS", 10_000),
        ("PONG_TIMEOUT_MS", 10_000),
        ("AUTH_TIMEOUT_MS", 10_000),
        ("WRITE_BUFFER_SKIP_BYTES", 65_536),
        ("WRITE_BUFFER_CLOSE_BYTES", 1_048_576),
        ("PRESENCE_BEAT_MS", 1_000),
        ("HEARTBEAT_PROOF_MS", 75_000),
        ("HOLD_MS_MAX", 86_400_000),
        ("PARTITIONS_DEFAULT", 64),
        ("STOP_LATENESS_MS_P99", 10),
    ],
)
def test_numbers_that_the_specification_fixes(name: str, value: object) -> None:
    assert getattr(limits, name) == value


def test_every_number_is_positive() -> None:
    numbers = [
        value for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)
    ]
    assert len(numbers) > 80
    assert all(value > 0 for value in numbers)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("PRESENCE_BEAT_MS: Final = 1_000", "PRESENCE_BEAT_MS: Final = 2_000"),
        ("PING_INTERVAL_MS: Final = 10_000", "PING_INTERVAL_MS: Final = 15_000"),
        ("WRITE_BUFFER_SKIP_BYTES: Final = 64 * 1024", "WRITE_BUFFER_SKIP_BYTES: Final = 1024"),
    ],
)
def test_a_broken_relation_does_not_start(tmp_path: Path, text: str, broken: str) -> None:
    assert_does_not_start(limits, tmp_path, text, broken)
