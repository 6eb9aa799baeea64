"""Clients without a socket, whose HTTP heartbeats prove their life.

A heartbeat may reach any process.
"""

from collections.abc import Iterator

from server.gateway.heartbeats import Heartbeats
from tests.simulation.people import Person
from tests.simulation.processes import ServerHost


class Phones:
    """The heartbeats that processes have accepted."""

    def __init__(self) -> None:
        self._heartbeats: dict[str, Heartbeats] = {}

    async def beat(self, node: ServerHost, person: Person, session_id: str) -> None:
        """A process accepts a heartbeat of a session that exists."""
        taker = self._heartbeats.setdefault(node.name, Heartbeats(node.process))
        await taker.beat(person.principal, session_id, None)

    def sessions(self, nodes: list[ServerHost]) -> Iterator[tuple[str, str]]:
        """The sessions that heartbeats keep alive, each with its processes."""
        for node in nodes:
            taker = self._heartbeats.get(node.name)
            for presence in taker._presences.values() if taker is not None else ():
                if presence.local is not None:
                    yield presence.local.key, node.process.node
