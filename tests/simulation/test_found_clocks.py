"""Found in simulated worlds (see ``traces``): what processes take the time for."""

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.traces import NODE, act, mishaps, run, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_a_beat_that_comes_late_says_how_late_it_is(place: Laboratory) -> None:
    """It was sent half a minute before (seed 61320)."""
    run(
        place,
        mishaps(NODE, "redis", ["late", 30_000], ["lost", 1_600]),
        wait(1),
        wait(40),
        act("serve", node="node.b"),
        wait(10),
    )
