"""Found in simulated worlds: what an account's sessions get, and when.

See ``traces``.
"""

import pytest

from tests.simulation.actions import Action
from tests.simulation.driver import Laboratory
from tests.simulation.mixes import world_of
from tests.simulation.traces import act, pay, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def _run(lab: Laboratory, seed: int, *actions: Action) -> None:
    """Runs actions in the world of a seed. Raises the auditor's complaint."""
    outcome = lab.run(seed, 0, actions=actions, mix=world_of(seed, 0)[1])
    if outcome.failure is not None:
        raise outcome.failure


def test_session_with_its_share_does_not_claim_in_a_loop(lab: Laboratory) -> None:
    """Sessions without Redis had used their shares when Redis answered again.

    A session claimed at the same instant without end: Redis gave it nothing more, and the next
    claim was due at once (seed 91082).
    """
    ann = "ann91082"
    _run(
        lab,
        91082,
        start("s105", ann, "day"),
        wait(30),
        pay(ann, 142_857, "p115"),
        pay(ann, 142_857, "p123"),
        pay(ann, 2_166_666, "p135"),
        start("s137", ann, "day"),
        start("s139", ann, "day"),
        wait(0.9),
        act("redis_away", ms=70_000),
        wait(30),
        wait(60),
    )
