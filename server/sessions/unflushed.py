"""Entries that this process appended to the outbox and that Postgres lacks.

Redis may lose such an entry: Redis may come back empty, or as a replica that lacks the last writes.
So a process keeps the entries of its own steps until the flush has passed them (the watermark of
the partition, ``storage/redis/lua/acknowledge.lua``). With them it keeps the sessions that these
steps ended, which no other process remembers.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import structlog

from protocol.metering.records import Record, SessionStarted
from protocol.metering.session import Identity, SessionState
from protocol.metering.states import Phase
from protocol.metering.steps import started_record
from server import limits as server_limits

log = structlog.get_logger()

NEVER_FLUSHED = 2**53
"""The time in the id of an entry that no watermark passes."""


class UnflushedEntry(msgspec.Struct):
    """An entry of the outbox."""

    entry_id: str
    records: Sequence[Record]
    session: SessionState | None
    """The session that this entry ended."""
    notices: tuple[bytes, ...] = ()
    identity: Identity | None = None
    """The identity of the session that the entry belongs to, if any."""
    written_at: int | None = None
    """When this process wrote the entry to Postgres by itself, after a loss."""

    @property
    def whole(self) -> list[Record]:
        """The entry's records, with the record of the session's start in front.

        Another process may have appended the start, and Postgres may lack it. The loader finds what
        a counter contains of a session by the session's row; see
        ``storage/postgres/sql/load_account.sql``.
        """
        records = list(self.records)
        if self.identity is None or isinstance(records[0], SessionStarted):
            return records
        return [started_record(self.identity), *records]


class UnflushedEntries:
    """Entries of each partition, in the order in which they were appended."""

    def __init__(self) -> None:
        self._entries: dict[int, dict[str, UnflushedEntry]] = {}
        self._ends: dict[str, UnflushedEntry] = {}
        """The entries that ended a session, by the session's key."""
        self._count = 0
        self.dropped = 0
        """Entries that were given up because there were too many."""
        self._set_aside = itertools.count()
        self.in_doubt: set[int] = set()
        """Partitions that had two entries of one id: Redis may have lost the first one."""

    def __len__(self) -> int:
        return self._count

    @property
    def partitions(self) -> set[int]:
        """The partitions that have entries here."""
        return set(self._entries)

    def entries(self, partition: int) -> list[UnflushedEntry]:
        """The entries of a partition, oldest first."""
        return list(self._entries.get(partition, {}).values())

    def ended(self, partition: int) -> Iterator[UnflushedEntry]:
        """The entries of a partition that ended a session."""
        return (kept for kept in self.entries(partition) if kept.session is not None)

    def end_of(self, session: str) -> UnflushedEntry | None:
        """The kept entry that ended the session of that key here."""
        return self._ends.get(session)

    def keep(
        self,
        partition: int,
        entry_id: str,
        records: Sequence[Record],
        session: SessionState | None = None,
        notices: tuple[bytes, ...] = (),
    ) -> None:
        """Keeps an entry; ``session`` is the session after the entry's step."""
        ended = session is not None and session.standing.phase is Phase.ENDED
        identity = session.identity if session is not None else None
        kept = UnflushedEntry(
            entry_id, records, session if ended else None, notices if ended else (), identity
        )
        entries = self._entries.setdefault(partition, {})
        before = entries.pop(entry_id, None)
        if before is not None and list(before.records) != list(records):
            # Redis was replaced by a copy without that entry, and gave its id to this one. No
            # watermark shows that the lost entry is in Postgres.
            before.entry_id = f"{NEVER_FLUSHED}-{next(self._set_aside)}"
            entries[before.entry_id] = before
            self.in_doubt.add(partition)
            before = None
        self._count += before is None
        entries[entry_id] = kept
        if kept.session is not None:
            self._ends[kept.session.key] = kept
        if self._count > server_limits.UNFLUSHED_ENTRIES_MAX:
            self._drop(partition)

    def _drop(self, partition: int) -> None:
        if not self.dropped:
            log.warning("unflushed_entries_dropped", kept=self._count)
        self.dropped += 1
        self._release(self._entries[partition].pop(next(iter(self._entries[partition]))))

    def _release(self, kept: UnflushedEntry) -> None:
        self._count -= 1
        if kept.session is not None and self._ends.get(kept.session.key) is kept:
            del self._ends[kept.session.key]

    def replaced(self, partition: int, kept: UnflushedEntry, entry_id: str) -> None:
        """Notes the new id of an entry that was appended again."""
        entries = self._entries.get(partition, {})
        if entries.pop(kept.entry_id, None) is not None:
            kept.entry_id = entry_id
            self._count -= entry_id in entries
            entries[entry_id] = kept

    def forget(
        self, watermarks: Mapping[int, bytes | None], written_before: int = 0
    ) -> list[SessionState]:
        """Forgets the entries that were flushed; returns the sessions that they ended.

        Flushed are all entries up to the watermarks. Entries that were written to Postgres before
        ``written_before`` are forgotten too, because no replica lags that far behind.
        """
        ended: list[SessionState] = []
        for partition in list(self._entries):
            watermark = watermarks.get(partition)
            until = _position(watermark.decode()) if watermark is not None else (-1, 0)
            forgotten = self._forget(partition, until, written_before)
            ended += (kept.session for kept in forgotten if kept.session is not None)
        return ended

    def _forget(
        self, partition: int, watermark: tuple[int, int], written_before: int
    ) -> list[UnflushedEntry]:
        entries = self._entries[partition]
        flushed = []
        # Oldest first: the loop ends at the first entry that stays.
        for entry_id, kept in entries.items():
            written = kept.written_at is not None and kept.written_at < written_before
            if not written and _position(entry_id) > watermark:
                break
            flushed.append(entry_id)
        forgotten = [entries.pop(entry_id) for entry_id in flushed]
        for kept in forgotten:
            self._release(kept)
        if not entries:
            self._entries.pop(partition, None)
        return forgotten


def _position(entry_id: str) -> tuple[int, int]:
    """The position of an entry's id in its stream."""
    at, _, number = entry_id.partition("-")
    return int(at), int(number or 0)
