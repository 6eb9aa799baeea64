"""Loading the file of the rate card."""

from pathlib import Path

import pytest

from server.runtime.rate_card_file import load_rate_card
from server.runtime.settings import ConfigurationError, Settings

pytestmark = pytest.mark.usefixtures("empty_environment")


def test_the_card_of_the_repository_is_the_default() -> None:
    card = load_rate_card()
    assert load_rate_card(Settings().rates) == card
    assert set(card.kinds) == {"chat", "recording", "call", "chat-demo", "recording-demo"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "TAXIMETER_RATES: cannot read .*card.toml: No such file"),
        (b"kinds = [", "card.toml: not TOML"),
        (b"\xff", "card.toml: not TOML"),
        (b"[kinds.chat]", "card.toml: kinds.chat.credits_per_minute: missing"),
    ],
)
def test_a_card_that_cannot_be_used(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "card.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=problem):
        load_rate_card(path)
