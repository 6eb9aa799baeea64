"""The file of the rate card."""

import tomllib
from pathlib import Path

from protocol.rate_card import RateCard, RateCardError, parse_rate_card
from server.runtime.settings import PREFIX, RATES_DEFAULT, ConfigurationError


def load_rate_card(path: Path = RATES_DEFAULT) -> RateCard:
    """The rate card in the TOML file ``path``; raises :class:`ConfigurationError`."""
    try:
        return parse_rate_card(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"{PREFIX}RATES: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from None
    except RateCardError as error:
        raise ConfigurationError(*(f"{path}: {problem}" for problem in error.problems)) from None
