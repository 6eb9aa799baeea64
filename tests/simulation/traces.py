"""Traces: what happens in a world, written by hand, without chance.

The findings of simulated worlds are kept as traces, in ``test_found_*``. When a simulation learns
to do more, a seed may give another world; a list of actions always means the same.
"""

from typing import Any

from tests.simulation.actions import Action, Performer
from tests.simulation.clients import SimulatedClient
from tests.simulation.driver import Laboratory

NODE, FLUSHER = "node.0", "flusher0"
SEED = 9
"""The seed of a world without faults of its own. Its people are ann9, bob9 and cat9."""


def act(name: str, /, **parameters: Any) -> Action:
    """An action."""
    return Action(name, parameters)


def wait(seconds: float) -> Action:
    """Lets time pass."""
    return Action("wait", {"ms": int(seconds * 1000)})


def start(session: str, user: str = "cat9", kind: str = "second", client: str = "") -> Action:
    """A new client starts a session."""
    client = client or f"c-{session}"
    return act("start", client=client, node=NODE, user=user, kind=kind, session=session)


def pay(user: str, micros: int, entry: str = "grant") -> Action:
    """An account gets credits."""
    return act("transfer", node=NODE, kind="pay", user=user, entry=entry, micros=micros)


def spend(user: str, micros: int, entry: str = "spend") -> Action:
    """An operation is charged at once."""
    return act("transfer", node=NODE, kind="spend", user=user, entry=entry, micros=micros)


def mishaps(name: str, where: str, *kinds: list[Any]) -> Action:
    """Sets the faults of a process's next messages to its engines.

    The engines are Redis and Postgres.
    """
    return act("mishaps", name=name, where=where, kinds=list(kinds))


def run(place: Laboratory, *actions: Action) -> list[SimulatedClient]:
    """Runs actions. Raises the auditor's complaint; returns the clients with their messages."""
    performers: list[Performer] = []
    outcome = place.run(SEED, 0, actions=actions, started=performers.append)
    if outcome.failure is not None:
        raise outcome.failure
    return performers[0].world.clients
