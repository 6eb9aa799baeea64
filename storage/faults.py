"""Faults: whether an entry causes an error of our own.

Postgres itself reports a record that it never takes (``RejectedError``). An error of our own does
not show such a record. The code may be unable to handle one record; or no record can be written,
because memory is short or a release has a bug. Entries of the second kind must not be rejected one
by one. So an entry is to blame only if other entries prove that records of its types can be
written. Without that proof, only a single entry can be to blame. All other entries stay in the
outbox and are tried again.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from protocol.metering.records import Record
from storage import limits as storage_limits
from storage.postgres.records import RejectedError, UnavailableError
from storage.postgres.refusals import refusal_of
from storage.redis.outbox import OutboxEntry

log = structlog.get_logger()

TRANSIENT = (UnavailableError, OSError)
"""Errors that are over when Postgres answers again."""


class Writes(Protocol):
    """The writer of records."""

    async def write(self, records: Sequence[Record]) -> None:
        """Writes all records in one transaction."""


Name = tuple[int, str]
"""Partition and id of an entry."""


class Faults:
    """Entries that an error of ours kept from one flusher's writes."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._writes = 0
        self._newest: dict[type[Record], int] = {}
        """The number of the newest write of each type of record."""
        self._blamed: set[type[Record]] = set()
        """Types whose single entry was rejected, and of which none was written since."""
        self._since: tuple[int, float] | None = None
        """The number of the write before the first fault, and its time; None: there is no fault."""
        self._kept: set[Name] = set()
        self._unseen: set[Name] = set()
        """Kept entries that the present round has not met yet."""

    def __len__(self) -> int:
        """The number of entries in the outbox that await a fault's end."""
        return len(self._kept)

    def keeps(self, entry: OutboxEntry) -> bool:
        """Whether the entry waits in the outbox because of a fault."""
        return _name(entry) in self._kept

    def begin(self) -> None:
        """Takes note of the time; call this before entries are written."""
        if self._since is None:
            self._since = (self._writes, self._monotonic())

    def written(self, records: Sequence[Record]) -> None:
        """Takes note of records that were written together."""
        self._writes += bool(records)
        for record in records:
            self._newest[type(record)] = self._writes
            self._blamed.discard(type(record))

    def to_blame(self, faulty: Sequence[OutboxEntry]) -> list[OutboxEntry]:
        """Returns the ``faulty`` entries to reject at the next same error."""
        assert self._since is not None
        before, at = self._since
        proven = [
            entry
            for entry in faulty
            if all(self._newest.get(one, 0) > before for one in entry.faulty)
        ]
        others = self._kept | {_name(entry) for entry in faulty}
        if proven or len(others) > 1:
            return proven
        # There is a single entry. It is tried until another record was written since, or nothing
        # else came for a long time.
        is_alone = (
            self._writes == before and self._monotonic() - at < storage_limits.LONE_ENTRY_TRIED_S
        )
        return [] if is_alone else [one for one in faulty if not one.faulty & self._blamed]

    def settle(self, entries: Sequence[OutboxEntry]) -> None:
        """Keeps entries that are faulty and not rejected, and forgets the others."""
        for entry in entries:
            name = _name(entry)
            self._unseen.discard(name)
            if entry.fault:
                self._kept.add(name)
            else:
                self._kept.discard(name)
                self._blamed |= entry.faulty
        self._end()

    def begin_round(self) -> None:
        """Begins a round, which reads all pending entries again."""
        self._unseen = set(self._kept)

    def end_round(self) -> None:
        """Ends a round: this flusher forgets kept entries it did not meet."""
        self._kept -= self._unseen
        self._unseen = set()
        self._end()

    def _end(self) -> None:
        if not self._kept:
            self._since = None


def _name(entry: OutboxEntry) -> Name:
    return entry.partition, entry.entry_id


class EntryWriter:
    """Writes entries to Postgres, and marks those that it cannot write."""

    def __init__(self, records: Writes, faults: Faults) -> None:
        self._records = records
        self._faults = faults
        self._is_sifted = True
        """Records with an evident refusal were removed from these entries."""
        self._is_logged = False
        """Hundreds of entries may meet the same error; the log needs it once."""

    async def write(self, entries: Sequence[OutboxEntry]) -> None:
        """As ``Flusher.write``."""
        self._faults.begin()
        self._is_logged = len(self._faults) > 0
        self._is_sifted = False
        await self._write(entries)
        faulty = [entry for entry in entries if entry.fault]
        for entry in self._faults.to_blame(faulty) if faulty else ():
            await self._write_each(entry)
            entry.refusal = entry.refusal or entry.fault
            entry.fault = ""

    async def _write(self, entries: Sequence[OutboxEntry]) -> None:
        records = [record for entry in entries for record in entry.records]
        if len(entries) == len(records) == 1:
            await self._write_each(entries[0])
            return
        try:
            await self._records.write(records)
            self._faults.written(records)
        except TRANSIENT:
            raise
        except Exception:
            if not self._is_sifted and self._sift(entries):
                await self._write(entries)
            elif len(entries) > 1:
                middle = len(entries) // 2
                await self._write(entries[:middle])
                await self._write(entries[middle:])
            else:
                await self._write_each(entries[0])

    def _sift(self, entries: Sequence[OutboxEntry]) -> bool:
        """Removes the records that Postgres certainly refuses; returns whether there were any.

        Whatever their number, the next transaction writes all others together.
        """
        self._is_sifted, found = True, False
        for entry in entries:
            refusals = [refusal_of(record) for record in entry.records]
            if any(refusals):
                entry.refusal = next(filter(None, refusals))
                pairs = zip(entry.records, refusals, strict=True)
                entry.records = [record for record, refusal in pairs if not refusal]
                found = True
        return found

    async def _write_each(self, entry: OutboxEntry) -> None:
        """Writes an entry's records singly; marks it with what prevents the rest."""
        entry.fault, entry.faulty = "", frozenset()
        for record in entry.records:
            try:
                await self._records.write([record])
                self._faults.written([record])
            except TRANSIENT:
                raise
            except RejectedError as error:
                entry.refusal = str(error)
            except Exception as error:
                if not self._is_logged:
                    log.error("entry_not_written", entry=entry.entry_id, exc_info=error)
                self._is_logged = True
                entry.fault = repr(error)
                entry.faulty |= {type(record)}
