"""What simulated worlds have found, each as the shortest run of a world that shows it.

A seed may come to mean another world when a simulation learns to do more; a list of
actions means the same for ever.
"""

from typing import Any

import pytest

from tests.simulation.actions import Action
from tests.simulation.driver import Laboratory, Outcome

pytestmark = pytest.mark.usefixtures("quiet_logs")

NODE, FLUSHER = "node.0", "flusher0"
SEED = 9
"""A world with no faults of its own: its people are ann9, bob9 and cat9."""


def act(name: str, /, **parameters: Any) -> Action:
    """An action."""
    return Action(name, parameters)


def wait(seconds: float) -> Action:
    """Time passes."""
    return Action("wait", {"ms": int(seconds * 1000)})


def start(session: str, user: str = "cat9", kind: str = "second", client: str = "") -> Action:
    """A client of its own starts a session."""
    client = client or f"c-{session}"
    return act("start", client=client, node=NODE, user=user, kind=kind, session=session)


def pay(user: str, micros: int, entry: str = "grant") -> Action:
    """An account gets credits."""
    return act("deed", node=NODE, kind="pay", user=user, entry=entry, micros=micros)


def run(place: Laboratory, *actions: Action) -> Outcome:
    """Runs them, and raises what the auditor says."""
    outcome = place.run(SEED, 0, actions=actions)
    if outcome.failure is not None:
        raise outcome.failure
    return outcome


def test_an_ended_session_that_redis_forgot_is_not_started_again(place: Laboratory) -> None:
    """Redis keeps the end of a session for an hour, and no flusher lived for two (seed 49)."""
    run(
        place,
        start("s1", kind="recording"),
        wait(60),
        act("kill", name=FLUSHER),
        act("leave", client="c-s1", session="s1"),
        wait(2 * 3_600),
        act("join", client="c-again", node=NODE, session="s1", last_seq=2),
        act("flusher", name="flusher1", pace_ms=1_000),
    )
