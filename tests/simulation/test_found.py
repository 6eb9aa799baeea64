"""What simulated worlds have found, each as the shortest run of a world that shows it.

A seed may come to mean another world when a simulation learns to do more; a list of
actions means the same for ever.
"""

from typing import Any

import pytest

from tests.simulation.actions import Action, Stage
from tests.simulation.clients import Client
from tests.simulation.driver import Laboratory

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


def run(place: Laboratory, *actions: Action) -> list[Client]:
    """Runs them, and raises what the auditor says; the clients, with what they were told."""
    stages: list[Stage] = []
    outcome = place.run(SEED, 0, actions=actions, started=stages.append)
    if outcome.failure is not None:
        raise outcome.failure
    return stages[0].world.clients


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


def test_what_others_hold_is_not_in_the_way_of_a_start(place: Laboratory) -> None:
    """Grants reach a minute ahead; who starts needs less, and others give it back (seed 97)."""
    clients = run(
        place,
        pay("cat9", 2_900_000),
        start("s1", kind="minute"),
        start("s2", kind="minute"),
        wait(1),
    )
    told = [message["type"] for client in clients for message in client.messages]
    assert "error" not in told
