"""Counts of a process's sessions, kept up to date at each change."""

from collections import Counter
from typing import NamedTuple

from protocol.metering.states import Phase
from server.runtime.clock import Clock
from server.sessions.local_session import LocalSession


class CountedSession(NamedTuple):
    """What a session adds to the counts."""

    kind: str
    state: str
    burn_micros: int
    """Micro-credits that the session burns in a minute now."""


class SessionCounts:
    """How many sessions a process serves, and what they burn.

    Reading the counts takes no time that grows with the sessions.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counted: dict[str, CountedSession] = {}
        self.by_kind: Counter[tuple[str, str]] = Counter()
        """Sessions by kind and state; only those that there are."""
        self.burn_micros = 0
        """What all of them burn in a minute, in micro-credits."""
        self.started = 0
        """Sessions that sockets here have started."""
        self.rejoined = 0
        """How often a socket here has joined a session that had started."""

    def update(self, local: LocalSession) -> None:
        """Counts a session as it is now."""
        self._replace(local.key, _counted(local, self._clock.now()))

    def remove(self, local: LocalSession) -> None:
        """Counts a session no longer."""
        self._replace(local.key, None)

    def _replace(self, key: str, new: CountedSession | None) -> None:
        old = self._counted.get(key)
        if old == new:
            return
        if old is not None:
            name = (old.kind, old.state)
            self.by_kind[name] -= 1
            if not self.by_kind[name]:
                del self.by_kind[name]
            self.burn_micros -= old.burn_micros
            del self._counted[key]
        if new is not None:
            self.by_kind[new.kind, new.state] += 1
            self.burn_micros += new.burn_micros
            self._counted[key] = new


def _counted(local: LocalSession, now_ms: int) -> CountedSession | None:
    meter = local.meter
    if not meter.session.standing.version or meter.phase is Phase.ENDED:
        return None
    is_in_grace = meter.session.standing.grace_until is not None and not local.subscribers
    if not meter.sockets and not is_in_grace:
        return None  # it is only watched here, and counts where it is served
    terms = meter.session.identity.terms
    burns = meter.counting and meter.paid(meter.shown_at(now_ms))
    burn_micros = terms.price_micros * terms.speed if burns else 0
    return CountedSession(meter.session.identity.kind, meter.phase.value, burn_micros)
