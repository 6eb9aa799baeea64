"""Recovery: what this process knows is put back where Redis has lost it.

How it works
------------
A loss shows in three ways: the epoch of a partition is not the one that this process has
seen (read with every beat), a claim is answered ``gone``, or the line of the channels was
down, after which Redis may be another one. Then, partition by partition,

1. the records that Postgres may not have are written down, or, where Postgres is away too,
   appended to the outbox again;
2. every session that is served here is asserted (``storage/lua/assert.lua``), and every
   one that ended here and is not written down;
3. entries of the ledger that Redis lacks are applied to their accounts;
4. a while later, sessions that nobody has put back are ended (``server.lost``).

All of that may be repeated, and whatever fails is, with the next beat. Meanwhile, for
``RECOVERY_MS``, the partition takes nothing else: sessions run on what they were granted.
"""

import asyncio
from collections.abc import Iterable

import structlog

from protocol import limits
from protocol.assertion import Assertion, months_of_minutes
from protocol.errors import ProtocolError, ServiceError
from protocol.limits import SAFE_INTEGER_MAX
from protocol.session import Session
from server.clock import Clock
from server.hub import Hub
from server.loading import Loader
from server.lost import LostSessions
from server.seats import Seat
from server.unflushed import Kept, Unflushed
from storage.live import LiveError
from storage.records import Records, RefusedError, UnavailableError
from storage.recovery import Restoring
from storage.rows import RecentEntry
from storage.spending import AccountName

log = structlog.get_logger()

LOADS_MAX = 4
"""How often one assertion may find something cold: account, months and free time, and a race."""


class Recovery:
    """Looks after what Redis has lost, on behalf of one process."""

    def __init__(self, hub: Hub, loader: Loader, records: Records, clock: Clock) -> None:
        self.hub = hub
        self.loader = loader
        self.records = records
        self.clock = clock
        self.restoring = Restoring(hub.live)
        self.unflushed: Unflushed = hub.unflushed
        self.recovered = 0
        """Assertions by which Redis learnt something."""
        self._epochs: dict[int, bytes | None] = {}
        self._lost: set[int] = set()
        """Partitions that are to be looked after."""
        self._again_at: dict[int, int] = {}
        """When a partition's ledger is looked at once more, after everybody has come back."""
        self._lost_sessions = LostSessions(self.restoring, records, clock)
        self._lost_sessions_at = clock.now() + limits.LOST_SESSIONS_AFTER_MS
        """When sessions are looked for that nobody has put back."""
        self._watermarks_at = 0
        self._task: asyncio.Task[None] | None = None
        hub.claims.restore = self.restore
        hub.accounts.resynchronised = self.suspect

    async def begin(self) -> None:
        """Begins the epochs of a deployment in which nobody else has anything to put back.

        Where another process lives, or a session runs as far as Postgres knows, whoever
        has something to put back is given the time.
        """
        try:
            if await self.records.has_live_sessions():
                return
        except UnavailableError:
            return
        await self.restoring.begin_epochs()

    # --- Finding out -------------------------------------------------------------------

    def _partitions(self) -> set[int]:
        """The partitions of which this process knows anything."""
        keys = self.hub.live.keys
        served = {keys.partition(seat.meter.session.identity.tenant) for seat in self.hub}
        return served | self.unflushed.partitions

    async def look(self) -> None:
        """Looks whether anything was lost; with every beat. Raises ``LiveError``."""
        partitions = self._partitions()
        now_ms = self.clock.now()
        if now_ms >= self._watermarks_at:
            self._watermarks_at = now_ms + limits.WATERMARK_INTERVAL_MS
            self.unflushed.forget(await self.restoring.watermarks(self.unflushed.partitions))
        epochs = await self.restoring.epochs(partitions)
        for partition, epoch in epochs.items():
            # One that was not served here a moment ago may have been lost since: looking
            # costs little, for Redis knows mostly what it is told then.
            if epoch is None or self._epochs.get(partition) != epoch:
                self._lost.add(partition)
        self._epochs = epochs
        self._lost |= {one for one, at in self._again_at.items() if now_ms >= at}
        self._work()

    def suspect(self) -> None:
        """Redis may be another one: everything is asserted, which it mostly knows."""
        self._lost |= self._partitions()
        self._work()

    def _work(self) -> None:
        if self.busy:
            return
        if self._lost:
            self._task = asyncio.create_task(self._recover())
        elif self.clock.now() >= self._lost_sessions_at:
            self._task = asyncio.create_task(self._end_lost_sessions())

    async def _end_lost_sessions(self) -> None:
        self._lost_sessions_at = SAFE_INTEGER_MAX  # until something is lost again
        try:
            await self._lost_sessions.end()
        except (LiveError, UnavailableError) as error:
            log.warning("lost_sessions_not_ended", error=str(error))
            self._lost_sessions_at = self.clock.now() + limits.LOST_SESSIONS_AFTER_MS
        except Exception:
            log.exception("lost_sessions_failed")

    async def idle(self) -> None:
        """Waits until nothing is being put back."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def busy(self) -> bool:
        """Whether something is being put back."""
        return self._task is not None and not self._task.done()

    # --- Putting back --------------------------------------------------------------------

    async def _recover(self) -> None:
        partitions, self._lost = self._lost, set()
        before = self.recovered
        try:
            for partition in sorted(partitions):
                await self._write_down(partition)
            done = await self._assert_all(partitions)
            await self._apply_entries(partitions)
        except (LiveError, ProtocolError, UnavailableError) as error:
            log.warning("not_recovered", error=str(error))
            done = False
        except Exception:
            log.exception("recovery_failed")
            done = False
        if not done:
            self._lost |= partitions  # with the next beat
        elif self.recovered > before:
            log.warning("recovered", sessions=self.recovered - before, partitions=len(partitions))
            self._epochs.update(await self._epochs_now(partitions))
            now_ms = self.clock.now()
            self._again_at |= dict.fromkeys(partitions, now_ms + 2 * limits.RECOVERY_MS)
            self._lost_sessions_at = now_ms + limits.LOST_SESSIONS_AFTER_MS
        else:
            for partition in partitions:
                self._again_at.pop(partition, None)

    async def _epochs_now(self, partitions: Iterable[int]) -> dict[int, bytes | None]:
        """The epochs that these assertions have begun, so that they are no news."""
        try:
            return await self.restoring.epochs(partitions)
        except LiveError:
            return {}

    async def _write_down(self, partition: int) -> None:
        """Brings to Postgres what is not there for sure, or at least back into the outbox."""
        entries = self.unflushed.entries(partition)
        for first in range(0, len(entries), limits.ASSERTIONS_PER_BATCH):
            batch = entries[first : first + limits.ASSERTIONS_PER_BATCH]
            try:
                await self.records.write([record for kept in batch for record in kept.records])
            except (UnavailableError, RefusedError):
                await self._replay(partition, batch)

    async def _replay(self, partition: int, batch: list[Kept]) -> None:
        """Appends again what the flusher is to bring to Postgres, and sorts out what it
        refuses."""
        ids = await self.restoring.replay(
            partition, [(kept.entry_id, kept.records) for kept in batch]
        )
        for kept, entry_id in zip(batch, ids, strict=True):
            if kept.entry_id != entry_id:
                self.unflushed.replaced(partition, kept, entry_id)

    async def _assert_all(self, partitions: set[int]) -> bool:
        """Asserts everything that is known here; whether all could be."""
        keys = self.hub.live.keys
        work = [
            self._assert_seat(seat)
            for seat in self.hub
            if keys.partition(seat.meter.session.identity.tenant) in partitions
            and seat.meter.session.standing.version
        ]
        for partition in partitions:
            work += [self._assert_ended(kept) for kept in self.unflushed.ended(partition)]
        done = True
        for first in range(0, len(work), limits.ASSERTIONS_PER_BATCH):
            batch = work[first : first + limits.ASSERTIONS_PER_BATCH]
            for result in await asyncio.gather(*batch, return_exceptions=True):
                if isinstance(result, ProtocolError | LiveError):
                    log.warning("not_asserted", error=str(result))
                    done = False
                elif isinstance(result, BaseException):
                    log.error("not_asserted", exc_info=result)
                    done = False
        return done

    async def restore(self, session: Session) -> None:
        """Puts back one session, whose step was answered ``gone``; and soon all others.

        Raises ``LiveError`` or ``ServiceError`` where that cannot be done now.
        """
        seat = self.hub.seats.get(session.key)
        if seat is None:
            raise ServiceError("the session store has lost the session")
        await self._assert_seat(seat)
        self._lost.add(self.hub.live.keys.partition(session.identity.tenant))
        self._work()

    async def _assert_seat(self, seat: Seat) -> None:
        meter = seat.meter
        assertion = Assertion(
            session=meter.session,
            notices=meter.notices.recent,
            minutes=self._minutes(meter.session, seat),
            present=meter.sockets > 0,
        )
        await self._assert(assertion, seat.day_start_at())

    async def _assert_ended(self, kept: Kept) -> None:
        assert kept.session is not None
        calendar = await self.hub.tenants.calendar_of(kept.session.identity)
        session = kept.session
        minutes = months_of_minutes(session, calendar.month)
        day_start_at = None
        if session.identity.terms.free_scope == "day":
            day_start_at = calendar.day_start_at(session.identity.started_at)
        await self._assert(Assertion(session, kept.notices, minutes, present=False), day_start_at)

    @staticmethod
    def _minutes(session: Session, seat: Seat) -> tuple[tuple[str, int], ...]:
        if not session.identity.terms.counts_minutes:
            return ()
        return months_of_minutes(session, seat.calendar.month)

    async def _assert(self, assertion: Assertion, day_start_at: int | None) -> None:
        identity = assertion.session.identity
        for _ in range(LOADS_MAX):
            status, cold = await self.restoring.put_back(assertion)
            if status != "cold":
                self.recovered += status == "ok"
                return
            if "account" in cold:
                await self.loader.account(identity.tenant, identity.account_id, asserting=True)
            if "member" in cold or "org" in cold:
                await self.loader.months(identity.tenant, identity.user_id, asserting=True)
            if "free" in cold:
                await self.loader.free_time(identity, day_start_at, asserting=True)
        raise ServiceError("the counters do not stay in Redis")

    async def _apply_entries(self, partitions: set[int]) -> None:
        """Applies what of the ledger's newest entries accounts in Redis lack."""
        keys, now_ms = self.hub.live.keys, self.clock.now()
        try:
            found = await self.records.entries_since(
                now_ms - limits.RECOVERED_ENTRIES_MS, limits.RECOVERED_ENTRIES_MAX
            )
        except UnavailableError:
            return  # there is none that Redis could lack while nothing can be written down
        by_account: dict[AccountName, list[RecentEntry]] = {}
        for entry in found:
            if keys.partition(entry.tenant) in partitions:
                name = AccountName(entry.tenant, entry.account_id)
                by_account.setdefault(name, []).append(entry)
        for name, entries in by_account.items():
            applied = await self.restoring.apply_entries(name, entries, now_ms)
            if applied:
                log.warning("entries_recovered", account=name.account_id, entries=applied)
                self.recovered += applied
