"""Expectations of directed worlds that no general rule of the auditor covers.

Each expectation is an action that changes nothing, and fails when the state differs.
"""

from typing import TYPE_CHECKING, Any

from tests.simulation.state import counted_ms, look

if TYPE_CHECKING:
    from tests.simulation.reports import Reports
    from tests.simulation.virtual_cluster import VirtualCluster
    from tests.simulation.world import World


class Expectations:
    """The actions of a performer that only check."""

    world: "World"
    cluster: "VirtualCluster"
    reports: "Reports"

    def _session(self, user: str, session: str) -> dict[str, Any]:
        return look(self.cluster.redis).sessions[f"{self.world.people[user].tenant}/{session}"]

    # --- Sessions -------------------------------------------------------------------------

    async def do_phase(self, user: str, session: str, phase: str) -> None:
        """The phase of a session, in Redis."""
        found = self._session(user, session)
        assert found["standing"]["phase"] == phase, (session, found["standing"])

    async def do_counted(self, user: str, session: str, least_ms: int, most_ms: int) -> None:
        """The counted time of a session, in Redis, is between two bounds."""
        found = self._session(user, session)
        elapsed_ms = counted_ms(found, self.world.now)
        assert least_ms <= elapsed_ms <= most_ms, (session, elapsed_ms, found["standing"])

    async def do_holds(self, user: str, session: str, minutes: int) -> None:
        """The number of minutes of the month that a session holds."""
        found = self._session(user, session)
        assert sum(found["grant"]["held_minutes"].values()) == minutes, (session, found["grant"])

    async def do_recorded(self, user: str, session: str, state: str) -> None:
        """The state of a session, in Postgres."""
        rows = self.cluster.postgres.fetch(
            "SELECT state FROM sessions WHERE tenant = $1 AND session_id = $2",
            self.world.people[user].tenant,
            session,
        )
        assert [row["state"] for row in rows] == [state], (session, rows)

    async def do_graced(self, user: str, session: str, *, is_graced: bool) -> None:
        """Whether a session is in grace, after which it ends."""
        graces = look(self.cluster.redis).graces
        name = f"{self.world.people[user].tenant}/{session}"
        assert (name in graces) == is_graced, (name, graces)

    async def do_noted(self, name: str, user: str, session: str, *, is_noted: bool) -> None:
        """Whether the set of a process names a session."""
        found = next(node for node in self.world.nodes if node.name == name).process.node
        wanted = f"{self.world.people[user].tenant}/{session}"
        sets = look(self.cluster.redis).sets["node"]
        noted = [key for key, names in sets.items() if wanted in names]
        is_there = any(key.endswith(f":{found}") for key in noted)
        assert is_there == is_noted, (name, session, noted)

    async def do_missed(self, client: str, session: str, kinds: list[str]) -> None:
        """The types of a session's missed notices that a client received."""
        found = self.world.client(client)
        assert found is not None, client
        told = found.of_session[session]
        missed = [notice["type"] for one in told for notice in one.get("missed", ())]
        assert missed == kinds, (client, told)

    # --- Reported minutes -----------------------------------------------------------------

    async def do_taken(self, session: str, minutes: int) -> None:
        """The number of reported minutes that were accepted for a session."""
        assert len(self.reports.taken[session]) == minutes, (session, self.reports.taken)

    async def do_refused(self, session: str, minute_at: int, code: str, most_ms: int) -> None:
        """A minute was refused with a code.

        The last report took at most ``most_ms``.
        """
        found = self.reports.refused.get((session, minute_at))
        assert found == code, (session, minute_at, found)
        assert self.reports.waited_ms <= most_ms, (session, self.reports.waited_ms)

    async def do_confirmed(self, user: str, session: str) -> None:
        """A preparation was confirmed."""
        name = f"{self.world.people[user].tenant}/{session}"
        assert name in self.world.prepared, (name, self.world.prepared)
