"""Writes starts and ends of sessions, and minutes that agree with them.

An end is final, because its receipt is out. It may contradict minutes of the same session: a
failover of Redis loses the last steps of the session, Postgres has or gets the minutes of these
steps, and another process ends the older copy. The end determines all minutes
(``protocol.metering.ended_minutes``), so the transaction that writes the end, or a minute of an
ended session, makes them agree. A minute beyond the end is left out or removed, another one gets
the figures of the end, the months follow, and each change of a cost is a further ledger entry.
This needs no process that remembers the failover, and it does not matter which record comes first.

The end of a lost session (``node_lost``) is only what Postgres had of the session. It follows
minutes that come later.
"""

import datetime
import zoneinfo
from collections.abc import Iterable, Mapping, Set
from typing import Any

import msgspec
import structlog

from protocol.metering.ended_minutes import minutes_of
from protocol.metering.quota import MonthOf
from protocol.metering.records import MinuteUsed, SessionEnded, SessionStarted
from protocol.metering.session import joined_segments
from storage.postgres import columns
from storage.postgres.columns import LOST
from storage.postgres.database import SQL, Connection
from storage.rows.sessions import SessionMinute, SessionRow

log = structlog.get_logger()

Name = tuple[str, str]
"""A session's tenant and id."""
Rows = list[tuple[Any, ...]]


class _ContradictedEnd(SessionRow, frozen=True, kw_only=True):
    """An ended session with the minutes that contradict its end."""

    is_replaced: bool
    """Another end was replaced, with which minutes may have been left out."""
    timezone: str
    recorded: tuple[SessionMinute, ...]


async def write_sessions(
    connection: Connection,
    started: Mapping[Name, SessionStarted],
    ended: Mapping[Name, SessionEnded],
    minutes: Mapping[tuple[str, str, int], MinuteUsed],
) -> Rows:
    """Writes records of sessions by their keys; returns entries for ``write_entries.sql``.

    The caller has begun a transaction, and writes the entries in it.
    """
    names = sorted({*ended, *((tenant, session_id) for tenant, session_id, _ in minutes)})
    found = await connection.fetch(SQL["lock_sessions"], *columns.turned(names, 2)) if names else ()
    most_minutes = {(tenant, session_id): most for tenant, session_id, most in found}
    before = frozenset(most_minutes)
    if started:
        await connection.execute(
            SQL["write_started"], *columns.arrays(list(started.values()), columns.STARTED)
        )
    replaced: set[Name] = set()
    if ended:
        found = await _write_ends(connection, ended.values())
        most_minutes |= {(tenant, session_id): most for tenant, session_id, most in found}
        replaced = {(tenant, session_id) for tenant, session_id, _ in found} & before
    ledger = await _write_minutes(connection, minutes, most_minutes, before)
    if most_minutes:
        ledger += await _settle(connection, list(most_minutes), replaced)
    return ledger


async def _write_ends(connection: Connection, ended: Iterable[SessionEnded]) -> Any:
    """Writes ends; returns those that count now, as ``lock_sessions.sql`` does."""
    arguments = columns.arrays(list(ended), columns.ENDED)
    return await connection.fetch(SQL["write_ended"], *arguments)


async def _write_minutes(
    connection: Connection,
    minutes: Mapping[tuple[str, str, int], MinuteUsed],
    most_minutes: Mapping[Name, int | None],
    before: Set[Name],
) -> Rows:
    """Writes minutes within their ends; returns entries of the new ones.

    ``before``: the sessions that had ended already.
    """

    def is_within(minute: MinuteUsed) -> bool:
        most = most_minutes.get((minute.tenant, minute.session_id))
        return most is None or minute.minute < most

    within = [minute for minute in minutes.values() if is_within(minute)]
    if not within:
        return []
    new = await connection.fetch(SQL["write_minutes"], *columns.arrays(within, columns.MINUTE))
    burnt = [minutes[tuple(key)] for key in new]
    burnt = [minute for minute in burnt if minute.credits_micros]
    late = [one for one in burnt if (one.tenant, one.session_id) in before]
    again = await _burnt_before(connection, late) if late else frozenset()
    return [columns.burn_row(one, again=one in again) for one in burnt]


async def _burnt_before(connection: Connection, minutes: list[MinuteUsed]) -> frozenset[MinuteUsed]:
    """Returns the minutes whose own entries the ledger has already.

    An end removed them, and a longer end has brought them back.
    """
    found = await connection.fetch(
        SQL["burnt"],
        [minute.tenant for minute in minutes],
        [minute.account_id for minute in minutes],
        [columns.burn_id(minute.session_id, minute.minute) for minute in minutes],
    )
    known = {(tenant, entry_id) for tenant, entry_id in found}
    return frozenset(
        minute
        for minute in minutes
        if (minute.tenant, columns.burn_id(minute.session_id, minute.minute)) in known
    )


async def _settle(connection: Connection, names: list[Name], replaced: set[Name]) -> Rows:
    """Makes minutes agree with ends; returns the entries that correct costs."""
    asked = [(*name, name in replaced) for name in sorted(names)]
    found = await connection.fetch(SQL["contradicted_ends"], *columns.turned(asked, 3))
    decoder = msgspec.json.Decoder(_ContradictedEnd)
    ends = [decoder.decode(row[0]) for row in found]
    lost = [ended_of(end, end.recorded) for end in ends if end.reason == LOST]
    if lost:
        await _write_ends(connection, lost)
    ledger: Rows = []
    given: Rows = []
    missing: list[MinuteUsed] = []
    for end in ends:
        if end.reason != LOST:
            _correct(end, given, missing, ledger)
    if missing:
        await connection.execute(SQL["write_minutes"], *columns.arrays(missing, columns.MINUTE))
    if given:
        await connection.execute(SQL["correct_minutes"], *columns.turned(given, 6))
    return ledger


def _correct(end: _ContradictedEnd, given: Rows, missing: list[MinuteUsed], ledger: Rows) -> None:
    """Adds what brings a session's minutes to its end: ``given`` for ``correct_minutes.sql``."""
    ended, entries = _record_of(end), len(ledger)
    recorded = {minute.minute: minute for minute in end.recorded}
    for minute in minutes_of(ended, _months_in(end.timezone)):
        after = minute.seconds, minute.credits_micros, minute.free_ms
        had = recorded.pop(minute.minute, None)
        if had is None and not end.is_replaced:
            continue  # the minute is on its way
        if had is not None and end.is_reported:
            continue  # the client has dated and measured the minute
        if had is None:
            missing.append(minute)
            had = SessionMinute(minute.minute, minute.started_at, 0, 0, 0, minute.month)
        elif after != (had.seconds, had.charged_micros, had.free_ms):
            given.append((end.tenant, end.session_id, minute.minute, *after))
        if had.charged_micros != minute.credits_micros:
            ledger.append(columns.correction_row(ended, had, minute.credits_micros))
    for had in recorded.values():  # beyond the end
        given.append((end.tenant, end.session_id, had.minute, 0, 0, 0))
        if had.charged_micros:
            ledger.append(columns.correction_row(ended, had, 0))
    log.warning(
        "minutes_corrected",
        tenant=end.tenant,
        session=end.session_id,
        minutes=len(end.recorded),
        minutes_of_end=end.minutes,
        micros=sum(entry[columns.ENTRY_MICROS] for entry in ledger[entries:]),
    )


def _record_of(end: SessionRow) -> SessionEnded:
    """The record of an end, as Postgres has it."""
    assert end.started_at is not None
    assert end.ended_at is not None
    assert end.reason is not None
    return SessionEnded(
        tenant=end.tenant,
        session_id=end.session_id,
        user_id=end.user_id,
        org_id=end.org_id,
        account_id=end.account_id,
        counterpart_id=end.counterpart_id,
        kind=end.kind,
        started_at=end.started_at,
        ended_at=end.ended_at,
        reason=end.reason,
        limit=end.limit_name,
        elapsed_ms=end.elapsed_ms,
        free_ms=end.free_ms,
        billed_ms=end.billed_ms,
        minutes=end.minutes,
        credits_micros=end.charged_micros,
        uncovered_ms=end.uncovered_ms,
        segments=end.segments,
        gaps=end.gaps,
        terms=end.terms,
        metadata=end.metadata,
        is_reported=end.is_reported,
    )


def ended_of(row: SessionRow, minutes: Iterable[SessionMinute]) -> SessionEnded:
    """The end of a lost session, computed from its minutes in Postgres."""
    assert row.started_at is not None
    minutes = tuple(minutes)
    elapsed_ms = sum(minute.seconds for minute in minutes) * 1000
    free_ms = sum(minute.free_ms for minute in minutes)
    segments: tuple[tuple[int, int], ...] = ()
    for minute in minutes:
        lasted_ms = -(-minute.seconds * 1000 // row.terms.speed)
        segments = joined_segments(segments, minute.started_at, minute.started_at + lasted_ms)
    ended_at = segments[-1][1] if segments else row.started_at
    figures = msgspec.structs.replace(
        row,
        state="ended",
        ended_at=ended_at,
        reason=LOST,
        limit_name=None,
        elapsed_ms=elapsed_ms,
        free_ms=free_ms,
        billed_ms=row.terms.billed_ms(elapsed_ms, free_ms),
        minutes=len(minutes),
        charged_micros=sum(minute.charged_micros for minute in minutes),
        uncovered_ms=0,
        segments=list(segments),
        gaps=[],
    )
    return _record_of(figures)


def _months_in(timezone: str) -> MonthOf:
    """Returns what names an instant's month; an unknown zone is UTC."""
    try:
        zone = zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        zone = zoneinfo.ZoneInfo("UTC")

    def month_of(at_ms: int) -> str:
        day = datetime.datetime.fromtimestamp(at_ms / 1000, zone).date()
        return day.replace(day=1).isoformat()

    return month_of
