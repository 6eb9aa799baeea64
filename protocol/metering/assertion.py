"""Assertions: a process puts back a session that Redis has lost.

Redis may come back empty, or as a replica that lacks the last writes. Every process then asserts
the sessions that it serves, as it knows them. An assertion adds to each counter the difference to
what the counter contains already, so the order and the number of assertions do not matter
(``storage/redis/lua/assert.lua``).
"""

import msgspec

from protocol.metering.quota import MonthOf
from protocol.metering.records import MinuteUsed
from protocol.metering.session import SessionState
from protocol.metering.states import Phase
from protocol.metering.steps import minute_record
from protocol.metering.terms import MINUTE_MS


class Assertion(msgspec.Struct, frozen=True):
    """A session as one process knows it."""

    session: SessionState
    notices: tuple[bytes, ...]
    """The newest notices that the process knows, oldest first."""
    minutes: tuple[tuple[str, int], ...]
    """The months in which the counted minutes began, each with its first minute."""
    present: bool
    """The process has sockets of the session."""

    def after(self, version: int) -> "Assertion":
        """Returns the same session as the successor of ``version``.

        Other processes made ``version`` from an older copy of the session.
        """
        standing = msgspec.structs.replace(self.session.standing, version=version + 1)
        session = msgspec.structs.replace(self.session, standing=standing)
        return msgspec.structs.replace(self, session=session)


def months_of_minutes(session: SessionState, month_of: MonthOf) -> tuple[tuple[str, int], ...]:
    """Returns the months of settled minutes, each with its first minute.

    A minute belongs to the month in which it starts (DESIGN section 3). Almost always all minutes
    began in one month; else a binary search finds the first minute of each month. For a session
    without settled minutes, the result is the month of the next minute.
    """
    counted = session.standing.counted_minutes

    def month(minute: int) -> str:
        return month_of(minute_began_at(session, minute))

    if not counted:
        return ((month(0), 0),)

    found: list[tuple[str, int]] = []
    first = 0
    while first < counted:
        this = month(first)
        found.append((this, first))
        low, high = first + 1, counted  # the first minute of another month is within
        if month(counted - 1) == this:
            break
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if month(middle) == this else (low, middle)
        first = low
    return tuple(found)


def minute_began_at(session: SessionState, minute: int) -> int:
    """Returns when a settled minute began, measured along the segments."""
    standing, speed = session.standing, session.identity.terms.speed
    if minute >= standing.minutes_kept:
        return standing.minute_at
    ahead_ms = minute * MINUTE_MS
    segments = list(standing.segments)
    if standing.phase is Phase.ACTIVE:
        segments.append((standing.run_at, standing.minute_at))
    for from_at, to_at in segments:
        lasted_ms = (to_at - from_at) * speed
        if ahead_ms < lasted_ms:
            return from_at + -(-ahead_ms // speed)
        ahead_ms -= lasted_ms
    return standing.minute_at


def minute_again(session: SessionState, minute: int, month_of: MonthOf) -> MinuteUsed:
    """Makes the record of a completed minute again, from the session's standing.

    The first record was lost with the process that made it. The session's time determines what the
    minute cost.
    """
    identity, standing = session.identity, session.standing
    begin_ms = minute * MINUTE_MS
    end_ms = begin_ms + MINUTE_MS
    if standing.phase is Phase.ENDED:
        end_ms = min(end_ms, standing.elapsed_ms)
    started_at = minute_began_at(session, minute)
    return minute_record(
        identity,
        minute,
        seconds=min(60, -(-(end_ms - begin_ms) // 1000)),
        started_at=started_at,
        month=month_of(started_at),
        counts=identity.terms.counts_minutes,
        credits_micros=identity.terms.minute_micros(
            begin_ms,
            end_ms,
            free_ms=standing.free_ms,
            charged_micros=standing.minute_charged_micros,
            is_newest=minute == standing.minutes_kept - 1,
        ),
        free_ms=min(standing.free_ms, end_ms) - min(standing.free_ms, begin_ms),
    )
