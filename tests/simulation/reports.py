"""Clients that count for themselves: they report minutes without a socket.

A minute is counted once, under the number with which its first report was answered.
"""

from typing import Any

from protocol.wire.errors import ProtocolError, ServiceError
from server.api import sessions
from server.usage.months import Months
from server.usage.reported_minutes import MinuteReport, ReportedMinutes, ReportResult
from storage.redis.live import LiveError
from tests.simulation.clients import SessionLog
from tests.simulation.people import KINDS, Person
from tests.simulation.processes import ServerHost
from tests.simulation.state import MINUTE_MS
from tests.simulation.world import World

KIND = "recording"
"""The kind of reported sessions. It costs nothing and counts minutes, as reporting requires."""


class Reports:
    """Reports minutes to one process or another, and remembers the answers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.taken: dict[str, dict[int, int]] = {}
        """The numbers of accepted minutes, by session and by the minutes' beginnings."""
        self.unknown: set[tuple[str, int]] = set()
        """Minutes with an unknown outcome: session and beginning."""
        self.refused: dict[tuple[str, int], str] = {}
        """The newest codes with which minutes were refused."""
        self._unheard: list[Any] = []
        self.waited_ms = 0
        """How long the last report waited for its answer."""

    def next_minute(self, session: str) -> int:
        """The beginning of the minute that the client reports next."""
        reported = [at for name, at in self.unknown if name == session]
        latest = max([*self.taken.get(session, {}), *reported], default=0)
        return max(latest + MINUTE_MS, self.world.now - MINUTE_MS)

    async def report(self, node: ServerHost, person: Person, session: str, minute_at: int) -> None:
        """A client reports a minute; a minute reported before is a repetition."""
        session_log = self.world.session_logs.get(session)
        if session_log is None:
            session_log = self.world.session_logs[session] = SessionLog(
                person, KINDS[KIND], session
            )
        # The session's time does not run between reports, and the process that stops the session
        # observes it.
        session_log.disturbed = True
        self.world.watched.add(session)
        asked_at = self.world.now
        answer = await self.world.cluster.finished(
            node.act(self._take(node, person, session, minute_at))
        )
        self.waited_ms = self.world.now - asked_at
        minutes = self.taken.setdefault(session, {})
        if isinstance(answer, ReportResult) and answer.minute is not None:
            known = minutes.setdefault(minute_at, answer.minute)
            assert known == answer.minute, (session, minute_at, answer, minutes)
            assert len(set(minutes.values())) == len(minutes), (session, minutes)
            self.unknown.discard((session, minute_at))
        elif answer is None:
            self.unknown.add((session, minute_at))
        elif isinstance(answer, ProtocolError):
            # An accepted minute is never refused later, and a refusal counts no minute.
            assert minute_at not in minutes or self.world.losses, (session, minute_at, answer)
            self.refused[session, minute_at] = answer.code
            if not self.world.losses:
                # If the earlier report had been accepted, this one would be answered as a
                # repetition.
                self.unknown.discard((session, minute_at))
        session_log.reported_ms = MINUTE_MS * (len(minutes) + len(self.unknown))

    def report_soon(self, node: ServerHost, person: Person, session: str, minute_at: int) -> None:
        """Starts a client's report of a minute, and reads no answer.

        Other things happen meanwhile.
        """
        self._unheard.append(node.act(self._take(node, person, session, minute_at)))
        self.unknown.add((session, minute_at))

    async def offer(self, node: ServerHost, session: str, minute_at: int) -> Any:
        """The answer to a reported minute of a session that processes meter."""
        person = self.world.session_logs[session].person
        return await self.world.cluster.finished(
            node.act(self._take(node, person, session, minute_at))
        )

    async def _take(self, node: ServerHost, person: Person, session: str, minute_at: int) -> Any:
        reported_minutes = _reporters(node)
        reported = MinuteReport(
            user_id=person.user_id,
            org_id=person.org_id,
            account_id=person.account_id,
            session_id=session,
            kind=KIND,
            minute_at=minute_at,
            seconds=60,
            needs_preparation=False,
        )
        try:
            return await reported_minutes.take(reported)
        except (ServiceError, LiveError):
            return None
        except ProtocolError as error:
            return error

    async def end(self) -> None:
        """Stops every reported session, as its user does over HTTP."""
        node = self.world.nodes[0]
        for session in self.taken:
            person = self.world.session_logs[session].person
            await self.world.cluster.finished(node.act(self._stop(node, person, session)))

    async def _stop(self, node: ServerHost, person: Person, session: str) -> None:
        live = node.process.live
        found = await live.attach(person.tenant, session, read_only=True)
        if found is None:
            # Redis has lost the session. One more minute brings it back, if the month has one left.
            self.world.session_logs[session].reported_ms += MINUTE_MS
            await self._take(node, person, session, self.next_minute(session))
            found = await live.attach(person.tenant, session, read_only=True)
        if found is not None:
            await sessions._stop(node.process, found, "client")


def _reporters(node: ServerHost) -> ReportedMinutes:
    if node.reported_minutes is None:
        process = node.process
        node.reported_minutes = ReportedMinutes(process, node.postgres.usage(), Months(process))  # type: ignore[arg-type]
    found: ReportedMinutes = node.reported_minutes
    return found
