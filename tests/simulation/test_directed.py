"""Directed worlds keep every promise with the unchanged scripts (see ``directed``)."""

import pytest

from tests.simulation.directed import DIRECTED
from tests.simulation.driver import Laboratory
from tests.simulation.traces import SEED

pytestmark = pytest.mark.usefixtures("quiet_logs")


@pytest.mark.parametrize("name", DIRECTED)
def test_directed_world_keeps_every_promise(lab: Laboratory, name: str) -> None:
    outcome = lab.run(SEED, 0, actions=DIRECTED[name].actions, mix=DIRECTED[name].mix)
    if outcome.failure is not None:
        raise outcome.failure
