"""The newest figures of each month's counter, shared by a process's sessions.

An answer of Redis contains a counter as the step left it, so the newest answer includes every step
before. Several pipelines are on their way at once, and their answers may arrive in another order
than they were made in. Each answer therefore has its time, by the clock of Redis. Sessions that run
on without Redis share what the newest answer leaves. If each relied on its own last answer,
together they would use more than one of them was left.
"""

from weakref import WeakValueDictionary

import msgspec

from protocol import limits
from protocol.metering.projection import MonthProjection


class SharedCounter:
    """The counter of one member or organisation, as in the newest answer."""

    __slots__ = ("__weakref__", "newest", "revision")

    def __init__(self) -> None:
        self.newest = MonthProjection()
        self.revision = 0
        """Rises with every change."""

    def tell(self, month: MonthProjection) -> None:
        """Takes the counter of an answer, unless a newer answer came first."""
        newest = self.newest
        if month.as_of_us:
            behind_us = newest.as_of_us - month.as_of_us
            # An answer older than any answer may be comes from a Redis whose clock is behind.
            if 0 < behind_us <= limits.REDIS_TIMEOUT_MS * 1_000:
                return
        else:  # the counter was read now, so it is the newest
            month = msgspec.structs.replace(month, as_of_us=newest.as_of_us)
        if month != msgspec.structs.replace(newest, as_of_us=month.as_of_us):
            self.revision += 1
        self.newest = month

    def over(self, own: MonthProjection) -> MonthProjection:
        """Returns the month's newest figures, given a session's ``own``."""
        return self.newest if self.newest.month == own.month else own


class SessionCounters:
    """The two counters that a session counts on."""

    __slots__ = ("member", "org")

    def __init__(
        self, member: SharedCounter | None = None, org: SharedCounter | None = None
    ) -> None:
        self.member = member or SharedCounter()
        self.org = org or SharedCounter()

    def tell(self, member: MonthProjection, org: MonthProjection) -> None:
        """Takes both counters of an answer."""
        self.member.tell(member)
        self.org.tell(org)

    @property
    def revision(self) -> int:
        """Rises with every change of either."""
        return self.member.revision + self.org.revision


class SharedMonths:
    """A process's counters; each lives while a session counts on it."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[str, str | None], SharedCounter] = (
            WeakValueDictionary()
        )

    def of(self, tenant: str, user_id: str) -> SessionCounters:
        """Returns the counters of a user's sessions."""
        return SessionCounters(self._get((tenant, user_id)), self._get((tenant, None)))

    def _get(self, key: tuple[str, str | None]) -> SharedCounter:
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = SharedCounter()
        return found
