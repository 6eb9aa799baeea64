"""Holder looks: checks whether the holders of what local sessions lack have answered.

A session whose grant ends at a limit recalls the other sessions: they give back what they do not
need. While one of them has not answered, it is unknown what is left, and the session is not stopped
at the limit. An account may have hundreds of sessions, an organisation thousands, and each may ask.
One look answers all that wait for it; the more sessions a look has read, the longer the next look
waits.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

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
        read, silent = 0, set[str]()
        try:
            async for found in self._held_elsewhere(counter):
                read += len(found)
                silent.update(name for name in map(self._keeper(counter), found) if name)
        except BaseException as error:
            del self._waiting[counter]
            self._silent.pop(counter, None)
            if isinstance(error, LiveError):
                return  # not known
            raise
        asked, self._waiting[counter] = self._waiting[counter], []
        self._silent[counter] = silent
        self._tell(counter, asked, silent)
        at = self.table.clock.now() + -(-read // server_limits.HOLDERS_READ_PER_MS)
        self.table.timers.deadline(at, lambda _: self._look_again(counter), counter)

    def _look_again(self, counter: Counter) -> None:
        if self._waiting[counter]:
            self.table.run(self._look(counter))
        else:
            del self._waiting[counter], self._silent[counter]

    async def _held_elsewhere(self, counter: Counter) -> AsyncIterator[list[SessionState]]:
        """The sessions that only other processes serve and that draw on the counter."""
        tenant, account_id = counter
        live, served = self.table.live, self.table.local_sessions
        first = self._waiting[counter][0]
        if account_id:
            lines = first.account.projection.lines
            if any(name not in first.account.local_sessions for name in lines):
                yield await sessions_of_account(live, AccountName(tenant, account_id), served)
        elif self._is_month_drawn_elsewhere(first):
            async for found in live.sessions_of_tenant(tenant, beside=served):
                yield found

    def _is_month_drawn_elsewhere(self, local: LocalSession) -> bool:
        meter = local.meter
        tenant = meter.session.identity.tenant
        here = [one.meter.session for one in self.table.local_sessions_of(tenant)]
        active = sum(
            one.standing.phase is Phase.ACTIVE and one.identity.terms.counts_minutes for one in here
        )
        return meter.counters.org.over(meter.org).active > active

    def _keeper(self, counter: Counter) -> Callable[[SessionState], str]:
        """A function that returns the user of a session that holds too much, otherwise ''."""
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
            limit = local.meter.shared_limit
            is_same = limit is not None and counter == _counter_of(local, limit)
            if is_same and self.table.local_sessions.get(local.key) is local:
                user_id = local.meter.session.identity.user_id
                are_silent = user_id in silent if limit == "member_minutes" else bool(silent)
                isolated("holders", self._know_holders, local, are_silent, session=local.key)
                yield

    def _know_holders(self, local: LocalSession, are_silent: bool) -> None:
        local.meter.know_holders(self.table.clock.now(), are_silent=are_silent)
        local.drain()


def _counter_of(local: LocalSession, limit: str) -> Counter:
    identity = local.meter.session.identity
    return (identity.tenant, identity.account_id if limit == "credits" else "")
