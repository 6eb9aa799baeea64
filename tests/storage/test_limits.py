"""The bounds of storage: they are positive, and broken relations do not start."""

import importlib.util
from pathlib import Path

import pytest

from storage import limits


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
    source = Path(str(limits.__file__)).read_text()
    assert source.count(text) == 1
    changed = tmp_path / "limits_broken.py"
    changed.write_text(source.replace(text, broken))
    spec = importlib.util.spec_from_file_location("limits_broken", changed)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(AssertionError):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
