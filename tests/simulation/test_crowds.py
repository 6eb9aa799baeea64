"""Scores of sessions of one account begin, go and return together."""

import pytest

from tests.simulation import virtual_cluster
from tests.simulation.directed.steps import SERVE, ask
from tests.simulation.driver import Laboratory
from tests.simulation.mixes import CROWD
from tests.simulation.traces import SEED, pay, start

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


def test_many_starts_in_one_millisecond_are_no_livelock(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_cluster, "STEPS_PER_INSTANT_MAX", SESSIONS // 2)
    names = [f"s{number}" for number in range(SESSIONS)]
    # Sessions that have ended settle no minute together later.
    crowd = [action for name in names for action in (start(name), ask(name, "stop"))]
    outcome = lab.run(SEED, 0, actions=(SERVE, pay("cat9", 900_000_000), *crowd), mix="")
    if outcome.failure is not None:
        raise outcome.failure


def test_endless_steps_after_one_action_are_livelock(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_cluster, "STEPS_PER_INSTANT_MAX", 0)
    outcome = lab.run(SEED, 0, actions=(SERVE, pay("cat9", 900_000_000), start("s1")), mix="")
    assert isinstance(outcome.failure, virtual_cluster.LivelockError)
