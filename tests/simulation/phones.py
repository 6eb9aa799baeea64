"""Clients without a socket, that prove their life by heartbeats over HTTP, to any process."""

from collections.abc import Iterator

from server.gateway.heartbeats import Heartbeats
from tests.simulation.people import Person
from tests.simulation.processes import ServerHost


class Phones:
    """The heartbeats that processes have taken."""

    def __init__(self) -> None:
        self._heartbeats: dict[str, Heartbeats] = {}

    async def beat(self, node: ServerHost, person: Person, session_id: str) -> None:
        """A process takes a heartbeat of a session that is there."""
        taker = self._heartbeats.setdefault(node.name, Heartbeats(node.process))
        await taker.beat(person.principal, session_id, None)

    def sessions(self, nodes: list[ServerHost]) -> Iterator[tuple[str, str]]:
        """The sessions that heartbeats keep alive, each with the process that has them."""
        for node in nodes:
            taker = self._heartbeats.get(node.name)
            for presence in taker._presences.values() if taker is not None else ():
                if presence.local is not None:
                    yield presence.local.key, node.process.node
