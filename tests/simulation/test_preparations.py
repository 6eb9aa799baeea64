"""A backend prepares a session as its user starts it."""

import pytest

from tests.simulation.actions import Action
from tests.simulation.driver import Laboratory
from tests.simulation.traces import NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def raced(turns: int) -> Action:
    """A start, and a preparation elsewhere, ``turns`` of the loop earlier."""
    parameters = start(f"s{turns}").parameters
    return act("start", **parameters, backend="node.b", turns=turns)


@pytest.mark.parametrize("late", ["", "redis", "postgres"])
def test_session_runs_as_prepared_or_preparation_fails(lab: Laboratory, late: str) -> None:
    races: list[Action] = []
    for turns in range(-24, 25, 3):
        if late:  # the data that the start reads is old when it arrives
            races.append(mishaps(NODE, late, *[["late", 400]] * 2))
        races += [raced(turns), wait(2), act("close", client=f"c-s{turns}")]
    run(lab, pay("cat9", 90_000_000), act("serve", node="node.b"), *races, wait(120))
