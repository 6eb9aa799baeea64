"""A balance at an instant, after the burn of all sessions."""

import pytest

from server.credits.outcomes import BalanceTooHighError, credits_micros
from storage.redis.figures import AccountFigures
from tests.protocol.examples import CREDIT, NOW, TERMS, line


def figures(gross_micros: int, sessions: int = 0) -> AccountFigures:
    lines = {f"chat-{number}": line(TERMS) for number in range(sessions)}
    return AccountFigures(1, gross_micros, gross_micros, 0, 0, 0, lines)


def test_balance_falls_with_the_burn_of_every_session() -> None:
    account = figures(10 * CREDIT, sessions=2)
    # An increment of one second is billed when it begins.
    assert credits_micros(account, NOW) == 10 * CREDIT
    assert credits_micros(account, NOW + 60_000) == 8 * CREDIT


@pytest.mark.parametrize(("gross_micros", "shown"), [(CREDIT, 0), (0, 0), (-CREDIT, -2 * CREDIT)])
def test_balance_is_below_zero_for_a_debt_alone(gross_micros: int, shown: int) -> None:
    sessions = 1 if gross_micros < 0 else 2
    assert credits_micros(figures(gross_micros, sessions), NOW + 60_000) == shown


def test_balance_too_high_names_the_bound() -> None:
    assert "credits" in BalanceTooHighError().message
