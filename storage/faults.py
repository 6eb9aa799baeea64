"""Faults: whether an entry is to blame for an error of our own, or something else is.

Postgres says which record it never takes (``RejectedError``). An error of our own says
nothing of the kind: one record may be more than the code bears, or no record can be
written, because memory is short or a release has a bug. Entries of the second kind must
not be rejected one by one. So an entry is to blame only where others prove that records
such as its own can be written; without that proof, a single one is. All others are kept
in the outbox and tried again.
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
"""What is over when Postgres answers again."""


class Writes(Protocol):
    """Whoever writes records down."""

    async def write(self, records: Sequence[Record]) -> None:
        """Writes all of them in one transaction."""


Name = tuple[int, str]
"""Partition and id of an entry."""


class Faults:
    """What one flusher could not write by an error of our own, and what it wrote since."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._writes = 0
        self._newest: dict[type[Record], int] = {}
        """The newest write of each type of record."""
        self._blamed: set[type[Record]] = set()
        """Types of which a single entry was rejected, and none was written since."""
        self._since: tuple[int, float] | None = None
        """The write before the first fault, and when that was; None: there is no fault."""
        self._kept: set[Name] = set()
        self._unseen: set[Name] = set()
        """Those of the kept ones that a new round through them has not met yet."""

    def __len__(self) -> int:
        """Entries that wait in the outbox because of a fault."""
        return len(self._kept)

    def keeps(self, entry: OutboxEntry) -> bool:
        """Whether it is one of them."""
        return _name(entry) in self._kept

    def begin(self) -> None:
        """Call this before entries are written."""
        if self._since is None:
            self._since = (self._writes, self._monotonic())

    def written(self, records: Sequence[Record]) -> None:
        """These were written together."""
        self._writes += bool(records)
        for record in records:
            self._newest[type(record)] = self._writes
            self._blamed.discard(type(record))

    def to_blame(self, faulty: Sequence[OutboxEntry]) -> list[OutboxEntry]:
        """Those of the entries that an error of ours met which are to be rejected for it, if
        it meets them once more."""
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
        # A single one. Something else was written since, or nothing else came for long.
        is_alone = (
            self._writes == before and self._monotonic() - at < storage_limits.LONE_ENTRY_TRIED_S
        )
        return [] if is_alone else [one for one in faulty if not one.faulty & self._blamed]

    def settle(self, entries: Sequence[OutboxEntry]) -> None:
        """Keeps those that are faulty and not rejected, and forgets the others."""
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
        """All that is pending is read again."""
        self._unseen = set(self._kept)

    def end_round(self) -> None:
        """All that was pending was read: what was not met waits no more for this flusher."""
        self._kept -= self._unseen
        self._unseen = set()
        self._end()

    def _end(self) -> None:
        if not self._kept:
            self._since = None


def _name(entry: OutboxEntry) -> Name:
    return entry.partition, entry.entry_id


class EntryWriter:
    """Writes entries down, and marks those that are not."""

    def __init__(self, records: Writes, faults: Faults) -> None:
        self._records = records
        self._faults = faults
        self._is_sifted = True
        """What shows by itself that Postgres refuses it has been taken out of these entries."""
        self._is_logged = False
        """Hundreds of entries meet the same error: one is enough in the log."""

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
        """Takes out all records that Postgres refuses for what they are; whether there were any.

        However many those are, the others are written together in the next transaction.
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
        """Writes what can be written of it, and marks it with what is in the way of the rest."""
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
