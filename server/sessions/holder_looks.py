"""Looks whether the holders of what sessions lack have answered.

A session whose grant ends at a limit recalls the other sessions: they give back what they do not
need. While one of them has not answered, it is unknown what is left, and the session is not stopped
at the limit. An account may have hundreds of sessions, an organisation thousands, and each may ask.
One look answers all that wait for it; the more sessions a look has read, the longer the next look
waits. It also waits where many sessions are local, since a look counts them all.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from protocol import limits
from protocol.metering.meter import Meter
from protocol.metering.quota import keeps_more, keeps_more_minutes
from protocol.metering.session import SessionState
from protocol.metering.states import Phase
from server import limits as server_limits
from server.counters.recall import sessions_of_account
from server.runtime.clock import Clock
from server.runtime.isolation import isolated
from server.runtime.timers import Timers
from server.runtime.turns import Turns
from server.sessions.local_session import LocalSession
from storage.redis.live import Live, LiveError
from storage.redis.spending import AccountName

Counter = tuple[str, str]
"""What a look reads: an account's sessions, or with an empty account all of a tenant's."""


class Table(Protocol):
    """What the looks need of the sessions of a process."""

    live: Live
    clock: Clock
    timers: Timers
    turns: Turns
    local_sessions: dict[str, LocalSession]

    def local_sessions_of(self, tenant: str) -> list[LocalSession]:
        """The local sessions of a tenant."""

    def run(self, work: Any) -> None:
        """Starts work in the background."""


class HolderLooks:
    """The looks of one process."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._waiting: dict[Counter, list[LocalSession]] = {}
        """Sessions that wait for a look under way, or for the one after it."""
        self._silent: dict[Counter, set[str]] = {}
        """Users whose sessions had not answered at the last look; kept until the next look may
        begin."""

    def ask(self, local: LocalSession) -> None:
        """Tells a session soon whether the holders have answered (``Meter.know_holders``).

        The holders are the sessions that hold what its last grant lacks.
        """
        limit = local.meter.shared_limit
        if limit is None:
            return
        counter = _counter_of(local, limit)
        waiting = self._waiting.get(counter)
        if waiting is None:
            self._waiting[counter] = [local]
            self.table.run(self._look(counter))
            return
        waiting.append(local)
        silent = self._silent.get(counter)
        if silent:
            self._tell(counter, [local], silent)  # the session's grant may end before the next look

    async def _look(self, counter: Counter) -> None:
        tenant, account_id = counter
        here = [] if account_id else self.table.local_sessions_of(tenant)
        read, silent = 0, set[str]()
        try:
            async for found in self._held_elsewhere(counter, here):
                read += len(found)
                silent.update(name for name in map(self._keeper(counter), found) if name)
        except Exception as error:
            # Not known. A session whose grant is final does not ask again by itself.
            self._silent.pop(counter, None)
            self._look_after(counter, limits.RECALL_WAIT_MS)
            if isinstance(error, LiveError):
                return
            raise
        asked, self._waiting[counter] = self._waiting[counter], []
        self._silent[counter] = silent
        self._tell(counter, asked, silent)
        are_many = len(here) > server_limits.UNITS_PER_TURN
        pause_ms = server_limits.ACCOUNT_LOOK_PAUSE_MS if are_many else 0
        self._look_after(counter, max(pause_ms, -(-read // server_limits.HOLDERS_READ_PER_MS)))

    def _look_after(self, counter: Counter, pause_ms: int) -> None:
        at = self.table.clock.now() + pause_ms
        self.table.timers.deadline(at, lambda _: self._look_again(counter), counter)

    def _look_again(self, counter: Counter) -> None:
        waiting = [local for local in self._waiting[counter] if self._waits(local, counter)]
        if waiting:
            self._waiting[counter] = waiting
            self.table.run(self._look(counter))
        else:
            del self._waiting[counter]
            self._silent.pop(counter, None)

    def _waits(self, local: LocalSession, counter: Counter) -> bool:
        limit = local.meter.shared_limit
        is_same = limit is not None and counter == _counter_of(local, limit)
        return is_same and self.table.local_sessions.get(local.key) is local

    async def _held_elsewhere(
        self, counter: Counter, here: list[LocalSession]
    ) -> AsyncIterator[list[SessionState]]:
        """The sessions of other processes that draw on the counter.

        ``here`` are the local sessions of the counter's tenant, if the counter is a month.
        """
        tenant, account_id = counter
        live, served = self.table.live, self.table.local_sessions
        first = self._waiting[counter][0]
        if account_id:
            lines = first.account.projection.lines
            if any(name not in first.account.local_sessions for name in lines):
                yield await sessions_of_account(live, AccountName(tenant, account_id), served)
        elif _is_month_drawn_elsewhere(first.meter, here):
            async for found in live.sessions_of_tenant(tenant, beside=served):
                yield found

    def _keeper(self, counter: Counter) -> Callable[[SessionState], str]:
        """Returns a function: the user whose session holds too much, or ''."""
        keeps = keeps_more if counter[1] else keeps_more_minutes
        now_ms = self.table.clock.now()
        return lambda one: one.identity.user_id if keeps(one, now_ms) else ""

    def _tell(self, counter: Counter, asked: list[LocalSession], silent: set[str]) -> None:
        # The next look may begin and end before a turn has room, so the work keeps its own answer.
        self.table.turns.run(counter, self._tell_all(counter, asked, silent))

    def _tell_all(
        self, counter: Counter, asked: list[LocalSession], silent: set[str]
    ) -> Iterator[None]:
        for local in asked:
            if self._waits(local, counter):
                user_id = local.meter.session.identity.user_id
                of_member = local.meter.shared_limit == "member_minutes"
                are_silent = user_id in silent if of_member else bool(silent)
                isolated("holders", self._know_holders, local, are_silent, session=local.key)
                yield

    def _know_holders(self, local: LocalSession, are_silent: bool) -> None:
        local.meter.know_holders(self.table.clock.now(), are_silent=are_silent)
        local.drain()


def _counter_of(local: LocalSession, limit: str) -> Counter:
    identity = local.meter.session.identity
    return (identity.tenant, identity.account_id if limit == "credits" else "")


def _is_month_drawn_elsewhere(meter: Meter, here: list[LocalSession]) -> bool:
    sessions = [one.meter.session for one in here]
    active = sum(
        one.standing.phase is Phase.ACTIVE and one.identity.terms.counts_minutes for one in sessions
    )
    return meter.counters.org.over(meter.org).active > active
