"""Writes records of many callers that await them in Postgres.

The records that a spend appended to the outbox reach Postgres by themselves. A caller that needs
them there does not wait for the flusher, but writes the same records; records that are already
there do not change. While one transaction is under way, further callers gather, and the next
transaction takes all of them. So an account's row is locked once for many spends, and a single
spend does not wait for others.
"""

import asyncio
from collections.abc import Sequence

from protocol.metering.records import Record
from storage import limits as storage_limits
from storage.postgres.database import UnavailableError
from storage.postgres.records import Records

Waiting = tuple[Sequence[Record], "asyncio.Future[None]"]


class GroupCommitWriter:
    """Writes in one transaction at a time, for all waiting callers."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._waiting: list[Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def write(self, records: Sequence[Record]) -> None:
        """Returns when all of ``records`` are in Postgres.

        Raises ``UnavailableError`` when they may not be there, and ``RejectedError`` when they
        never will be.
        """
        if len(self._waiting) >= storage_limits.WRITES_WAITING_MAX:
            raise UnavailableError("too many writes wait for Postgres")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await done

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._write(self._take())
        finally:
            self._task = None

    def _take(self) -> list[Waiting]:
        """Takes as many callers as a transaction may have, at least one."""
        taken, size = 0, 0
        for records, _ in self._waiting:
            size += len(records)
            if taken and size > storage_limits.FLUSH_BATCH_RECORDS:
                break
            taken += 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return batch

    async def _write(self, batch: list[Waiting]) -> None:
        try:
            await self._records.write([record for records, _ in batch for record in records])
        except UnavailableError as error:
            _tell(batch, error)
        except Exception as error:
            if len(batch) == 1:
                _tell(batch, error)
                return
            # One of them is to blame, by its data or by a bug of ours. The others must be written.
            for waiting in batch:
                await self._write([waiting])
        except BaseException:
            for _, done in batch:
                done.cancel()
            raise
        else:
            _tell(batch, None)


def _tell(batch: list[Waiting], error: Exception | None) -> None:
    for _, done in batch:
        if done.done():
            continue  # the caller no longer waits
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
