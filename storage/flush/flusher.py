"""A flusher: brings the outbox's records to Postgres, each once.

Every partition's outbox is a stream that the consumer group ``flush`` reads. A batch is one
transaction, then one atomic step per partition (``lua/acknowledge.lua``). A flusher may die between
any two of its lines. An entry that it did not acknowledge stays pending: its next start reads the
entry again, or another flusher takes it over. A second write changes nothing. So memory holds
nothing that could be lost, and after every failure the flusher simply begins again with the pending
entries.

An entry that Postgres refuses is moved to the rejected entries. An entry that meets an error of our
own is moved there only if the entry is to blame (``storage.faults``). Otherwise it stays pending
and is tried again, while other entries are written.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from storage import limits as storage_limits
from storage.faults import TRANSIENT, EntryWriter, Faults, Writes
from storage.redis.keys import epoch_key, outbox_key, rejected_key, replayed_key
from storage.redis.outbox import (
    GROUP,
    Backlog,
    OutboxEntry,
    acknowledgement,
    entry_of,
    share,
    streams,
    text,
)
from storage.redis.scripts import Script

log = structlog.get_logger()

AWAY = (*TRANSIENT, RedisError)
"""Errors that are over when Postgres and Redis answer again; then the same batch is tried."""


class StuckError(Exception):
    """An error of ours met all entries; all are kept."""


class Flusher:
    """Flushes some partitions under a consumer name that no other flusher has.

    ``make_redis`` makes a client with a socket time-out above ``block_ms``, like ``connect``. A
    caller that controls time itself calls the steps instead of ``run``.
    """

    def __init__(
        self,
        make_redis: Callable[[], Redis],
        records: Writes,
        partitions: Iterable[int],
        consumer: str,
        *,
        block_ms: int = storage_limits.FLUSH_BLOCK_MS,
        wait_ms: int = storage_limits.FLUSH_WAIT_MS,
        take_over_idle_ms: int = storage_limits.FLUSH_CLAIM_IDLE_MS,
        batch_entries: int = storage_limits.FLUSH_BATCH_RECORDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.consumer = consumer
        self.flushed_records = 0
        """Records that this flusher has brought to Postgres and acknowledged."""
        self.rejected_entries = 0
        """Entries that this flusher has moved to the rejected entries."""
        self.failures = 0
        """Failed attempts in a row: Redis or Postgres was away, or the code is at fault."""
        self._redis = make_redis()
        self._oldest = Script(self._redis, "oldest")
        self._acknowledge = Script(self._redis, "acknowledge")
        self._partitions = {outbox_key(partition): partition for partition in partitions}
        self._block_ms = block_ms
        self._wait_s = wait_ms / 1000
        self._take_over_idle_ms = take_over_idle_ms
        self._batch_entries = batch_entries
        self._sleep = sleep
        self._monotonic = monotonic
        self._is_prepared = False
        # Entries may be pending that this consumer has not seen: at the start, those of a
        # predecessor of the same name; after a failure, those of a read without an answer.
        self._has_pending = True
        self._pending_after: dict[str, str] = dict.fromkeys(self._partitions, "0")
        """The position up to which pending entries were read, by outbox."""
        self._faults = Faults(monotonic)
        self._writer = EntryWriter(records, self._faults)
        self._is_new_next = False
        self._rounds = 0
        """How often in a row all kept entries were tried again."""
        self._again_at: float | None = None
        """When the kept entries are tried again; None: there are none."""
        self._reads = 0
        self._deep: list[str] = []
        self._claimed: dict[str, str] = {}
        """The position up to which an outbox was searched for a dead flusher's pending entries."""
        self._stuck: dict[str, tuple[bytes | str, float]] = {}
        """The lowest pending entry of an outbox, and since when this entry is the lowest."""

    async def close(self) -> None:
        """Closes the connections to Redis.

        No record is lost; see ``run`` for a clean end.
        """
        await self._redis.aclose()

    async def run(self, stop: asyncio.Event) -> None:
        """Flushes until ``stop`` is set, then what it can read at once.

        While Redis or Postgres is away it waits, longer each time. Once ``stop`` is set it does not
        wait, and leaves pending entries to the next flusher.
        """
        last_reads = storage_limits.FLUSH_LAST_READS_MAX
        while last_reads:
            stopping = stop.is_set()
            last_reads -= stopping
            try:
                flushed = await self._step(None if stopping else stop)
            except AWAY as error:
                self.failed(error)
                if stopping:
                    return
                await self._pause(stop, _backoff_s(self.failures))
                continue
            except StuckError as error:
                self.failed(error)
                if not stopping:
                    await self._pause(stop, _backoff_s(self.failures))
                continue
            self.failures = 0
            if stopping and not flushed and self._is_prepared:
                break  # without groups, nothing could be read
            if flushed and not (self._deep or stopping):
                # Entries that arrive during the pause make one transaction, not many small ones.
                await self._pause(stop, self._wait_s)
        await self._retire()

    async def _step(self, stop: asyncio.Event | None) -> int:
        """Reads and flushes one batch; returns its entries. Blocks only with ``stop``."""
        if not self._is_prepared:
            await self.prepare()
        entries: list[OutboxEntry] = []
        if self._reads % storage_limits.FLUSH_READS_PER_TAKEOVER == 0:
            entries = await self.take_over()
            self._reads += len(entries) > 0
        if not entries:
            entries = await self._read_until(stop) if stop else await self.read()
            # An idle flusher has the time to look for entries of dead flushers.
            self._reads = self._reads + 1 if entries else 0
        await self.flush(entries)
        return len(entries)

    def failed(self, error: Exception) -> None:
        """Notes a failed step; pending entries are read again, perhaps later."""
        self.failures += 1
        log.warning("flush_failed", error=str(error), attempt=self.failures)
        if not isinstance(error, StuckError):
            self._read_pending_again()

    # Steps

    async def prepare(self) -> None:
        """Makes the consumer group of every partition that has none."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in self._partitions:
                # From the first entry on: without a group, no entry was delivered.
                pipeline.xgroup_create(key, GROUP, id="0", mkstream=True)
            answers = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not str(answer).startswith("BUSYGROUP"):
                raise answer
        self._is_prepared = True

    async def read(self, block_ms: int | None = None) -> list[OutboxEntry]:
        """Returns the next entries: this consumer's pending ones first.

        After a full read, the next read has only the partitions that were full, with larger counts.
        The read after that has all again, so that no partition waits behind a long one. Kept
        entries are read again after a delay that doubles.
        """
        if self._again_at is not None and self._monotonic() >= self._again_at:
            self._again_at = None
            self._read_pending_again()
        # Kept and new entries are read in turns, so that neither delays the other.
        self._is_new_next = self._has_pending and bool(self._faults) and not self._is_new_next
        if self._is_new_next and (entries := await self._read_new(None)):
            return entries
        if self._has_pending:
            entries = await self._read(self._pending_after, self._batch_entries, None)
            for entry in entries:
                self._pending_after[outbox_key(entry.partition)] = entry.entry_id
            if entries:
                return entries
            self._has_pending = False
            self._faults.end_round()
            self._try_again_later()
        return await self._read_new(block_ms)

    async def _read_new(self, block_ms: int | None) -> list[OutboxEntry]:
        if self._deep:
            deep, self._deep = dict.fromkeys(self._deep, ">"), []
            return await self._read(deep, storage_limits.FLUSH_BATCH_RECORDS_CATCHING_UP, None)
        keys = list(self._partitions)
        entries = await self._read(dict.fromkeys(keys, ">"), self._batch_entries, block_ms)
        full = share(self._batch_entries, keys)
        found = Counter(entry.partition for entry in entries)
        self._deep = [key for key in keys if found[self._partitions[key]] >= full]
        return entries

    async def take_over(self) -> list[OutboxEntry]:
        """Takes entries that another flusher read long ago and never acknowledged.

        The wall clock of Redis measures that time. If that clock was set back, it is enough that
        the lowest pending entry has been the same for that time by our own clock.
        """
        entries: list[OutboxEntry] = []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in self._partitions:
                pipeline.xpending(key, GROUP)
            pending = await pipeline.execute(raise_on_error=False)
        for (key, partition), summary in zip(self._partitions.items(), pending, strict=True):
            wanted = self._batch_entries - len(entries)
            if not wanted:
                break
            try:
                if isinstance(summary, Exception):
                    raise summary
                if not summary["pending"]:
                    self._stuck.pop(key, None)
                    continue
                idle_ms, start = self._idle_ms(key, summary["min"]), self._claimed.pop(key, "0-0")
                after, found, *_ = await self._redis.xautoclaim(
                    key, GROUP, self.consumer, idle_ms, start, wanted
                )
            except ResponseError as error:
                self._heal(error)
                continue
            self._claimed[key] = text(after)
            taken = [
                entry_of(partition, entry_id, fields) for entry_id, fields in found if entry_id
            ]
            entries += [entry for entry in taken if not self._faults.keeps(entry)]
        if entries:
            log.info("entries_taken_over", entries=len(entries))
        return entries

    async def flush(self, entries: Sequence[OutboxEntry]) -> None:
        """Writes and acknowledges the entries, a bounded number at once.

        Raises ``StuckError`` when all entries were kept, and none was acknowledged.
        """
        batch: list[OutboxEntry] = []
        records = 0
        for entry in entries:
            if (
                batch
                and records + len(entry.records) > storage_limits.FLUSH_BATCH_RECORDS_CATCHING_UP
            ):
                await self._flush(batch)
                batch, records = [], 0
            batch.append(entry)
            records += len(entry.records)
        if batch:
            await self._flush(batch)
        if entries and all(entry.fault for entry in entries):
            raise StuckError(entries[0].fault)

    async def _flush(self, batch: list[OutboxEntry]) -> None:
        await self.write(batch)
        await self.acknowledge(batch)
        self._faults.settle(batch)
        kept = [entry for entry in batch if entry.fault]
        if kept:
            log.error("entries_kept", entries=len(self._faults), error=kept[0].fault)
            if self._again_at is None and not self._has_pending:
                self._try_again_later()

    async def write(self, entries: Sequence[OutboxEntry]) -> None:
        """Writes all entries, in one transaction if possible; raises ``UnavailableError``.

        If Postgres refuses the transaction for good, or an error of our own prevents it, the halves
        are tried, down to the entry and the record. Everything else is written. Entries that
        Postgres refused, or that are to blame for the error, are marked with their refusal. The
        other entries that met the error are marked with their fault.
        """
        await self._writer.write(entries)

    async def acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        """Removes entries from their outboxes; refused ones become rejected entries.

        Kept entries stay in the outbox.
        """
        by_partition: dict[int, list[OutboxEntry]] = {}
        for entry in entries:
            if entry.fault:
                continue
            by_partition.setdefault(entry.partition, []).append(entry)
        for partition, own in by_partition.items():
            for first in range(0, len(own), storage_limits.FLUSH_ACKNOWLEDGED_PER_STEP_MAX):
                part = own[first : first + storage_limits.FLUSH_ACKNOWLEDGED_PER_STEP_MAX]
                keys, arguments = acknowledgement(partition, part)
                _, records, rejected = await self._acknowledge.run(keys, arguments)
                self.flushed_records += int(records)
                self.rejected_entries += int(rejected)
        for entry in entries:
            if entry.refusal:
                log.error(
                    "entry_rejected",
                    entry=entry.entry_id,
                    stream=rejected_key(entry.partition),
                    error=entry.refusal,
                )

    async def backlog(self) -> Backlog:
        """Returns how much waits for Postgres in these partitions, and since when."""
        entries = rejected = oldest_ms = 0
        for key, partition in self._partitions.items():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.xlen(key)
                pipeline.xlen(rejected_key(partition))
                waiting, refused = await pipeline.execute()
            names = [key, epoch_key(partition), replayed_key(partition)]
            _, _, _, *oldest = await self._oldest.run(names, [])
            entries, rejected = entries + waiting, rejected + refused
            oldest_ms = max(oldest_ms, int(oldest[0]) if oldest else 0)
        return Backlog(entries, oldest_ms, rejected)

    # Inside the steps

    def _read_pending_again(self) -> None:
        self._has_pending = True
        self._pending_after = dict.fromkeys(self._partitions, "0")
        self._faults.begin_round()

    def _try_again_later(self) -> None:
        """Sets the time at which kept entries are tried again."""
        self._rounds = self._rounds + 1 if len(self._faults) else 0
        self._again_at = self._monotonic() + _backoff_s(self._rounds) if self._rounds else None

    def _idle_ms(self, key: str, lowest: bytes | str) -> int:
        """How long an entry idles before it is taken over, in ms.

        The clock is that of Redis.
        """
        since = self._stuck.get(key)
        if since is None or since[0] != lowest:
            since = self._stuck[key] = (lowest, self._monotonic())
        is_stuck = (self._monotonic() - since[1]) * 1000 >= self._take_over_idle_ms
        return 0 if is_stuck else self._take_over_idle_ms

    async def _read(
        self, after: dict[str, str], count: int, block_ms: int | None
    ) -> list[OutboxEntry]:
        try:
            answer = await self._redis.xreadgroup(
                GROUP,
                self.consumer,
                cast(Any, after),
                count=share(count, list(after)),
                block=block_ms,
            )
        except ResponseError as error:
            self._heal(error)
            return []
        return [
            entry_of(self._partitions[text(key)], entry_id, fields)
            for key, entries in streams(answer)
            for entry_id, fields in entries
        ]

    def _heal(self, error: Exception) -> None:
        """Handles a Redis that came back empty: groups begin anew."""
        if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
            raise error
        if self._is_prepared:
            log.warning("groups_lost", error=str(error))
        self._is_prepared = False

    async def _read_until(self, stop: asyncio.Event) -> list[OutboxEntry]:
        """Reads and blocks; returns nothing, at once, when ``stop`` is set.

        Entries that Redis delivered to an abandoned read are pending, and are read as such.
        """
        reading = asyncio.ensure_future(self.read(self._block_ms))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({reading, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            self._read_pending_again()
            return []
        finally:
            await _cancel(reading, stopped)

    async def _pause(self, stop: asyncio.Event, delay_s: float) -> None:
        """Waits for ``delay_s``, or until ``stop`` is set."""
        sleeping = asyncio.ensure_future(self._sleep(delay_s))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({sleeping, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(sleeping, stopped)

    async def _retire(self) -> None:
        """Removes the consumer from the groups in which it has nothing pending."""
        try:
            for key in self._partitions:
                if not await self._redis.xpending_range(key, GROUP, "-", "+", 1, self.consumer):
                    await self._redis.xgroup_delconsumer(key, GROUP, self.consumer)
        except (RedisError, OSError) as error:
            log.warning("consumer_not_removed", consumer=self.consumer, error=str(error))


def _backoff_s(attempts: int) -> float:
    """Returns the wait after a number of failed attempts, in seconds."""
    return min(
        storage_limits.FLUSH_RETRY_S_MAX,
        storage_limits.FLUSH_RETRY_S_MIN * (1 << min(attempts - 1, 9)),
    )


async def _cancel(*futures: "asyncio.Future[Any]") -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
