"""One account with scores of sessions, which begin, go and come back together."""

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.mixes import CROWD

MINUTES = 1
SESSIONS = 30


@pytest.mark.usefixtures("quiet_logs")
@pytest.mark.parametrize("seed", [1])
def test_no_promise_is_broken_in_crowd(lab: Laboratory, seed: int) -> None:
    outcome = lab.run(seed, MINUTES, mix=CROWD)
    if outcome.failure is not None:
        outcome.failure.add_note("\n".join(map(str, [f"seed {seed}", *outcome.actions])))
        raise outcome.failure
    assert sum(action.name == "start" for action in outcome.actions) >= SESSIONS
