"""The promises hold whatever happens: worlds by chance, each from a seed.

``scripts/simulate`` runs any number of worlds; here the number is fixed. ``test_mutations`` shows
that worlds of seeds fail when a promise is broken.
"""

import os

import pytest

from tests.simulation.driver import Laboratory

SEEDS = int(os.environ.get("TAXIMETER_SEEDS", "12"))
MINUTES = 480


@pytest.mark.usefixtures("quiet_logs")
@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_no_promise_is_broken(lab: Laboratory, seed: int) -> None:
    outcome = lab.run(seed, MINUTES)
    if outcome.failure is not None:
        outcome.failure.add_note("\n".join(map(str, [f"seed {seed}", *outcome.actions])))
        raise outcome.failure
    assert outcome.virtual_ms >= MINUTES * 60_000
    assert outcome.audits > 20


@pytest.mark.usefixtures("quiet_logs")
def test_same_seed_makes_same_world(lab: Laboratory) -> None:
    first, second = lab.run(3, 120), lab.run(3, 120)
    assert first.failure is second.failure is None
    assert first.actions == second.actions
    assert first.digest == second.digest


@pytest.mark.usefixtures("quiet_logs")
def test_recorded_actions_can_be_repeated(lab: Laboratory) -> None:
    first = lab.run(5, 120)
    again = lab.run(5, 0, actions=first.actions)
    assert first.failure is again.failure is None
    assert first.digest == again.digest


@pytest.mark.usefixtures("quiet_logs")
@pytest.mark.parametrize(
    ("mix", "seed"),
    [("faults", 920), ("losses", 909), ("months", 913), ("losses", 40025), ("losses", 40059)],
)
def test_once_failing_worlds_keep_promises(lab: Laboratory, mix: str, seed: int) -> None:
    outcome = lab.run(seed, 12, mix=mix)
    if outcome.failure is not None:
        raise outcome.failure
