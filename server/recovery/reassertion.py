"""Recovery: a process puts back what it knows and Redis has lost.

A loss shows in four ways: with a beat, the epoch of a partition is not the one that this process
has seen; a claim is answered ``gone``; the connection of the channels was lost; or a Redis has
begun another history of writes, because it was started anew or a replica took over. The last two
may have cost nothing. Then, partition by partition,

1. every session that is served here is asserted (``storage/redis/lua/assert.lua``), and every
   session that ended here, or whose end waits in the outbox again, and that Postgres may lack;
2. the records that Postgres may lack are written to Postgres, or, if Postgres does not answer
   either, appended to the outbox again;
3. minutes that dead processes appended are made again (``recovery.missing_minutes``);
4. what else Postgres has and Redis lacks is brought to Redis (``recovery.record_catch_up``);
5. a while later, sessions that no process has put back are ended (``recovery.lost_sessions``).

All of that may be repeated. What fails is repeated after a wait that doubles. Meanwhile, for
``RECOVERY_MS``, the partition takes nothing else: sessions run on their grants.
"""

import asyncio
from collections.abc import Iterator, Mapping

import msgspec
import structlog
from redis.exceptions import RedisError

from protocol.limits import SAFE_INTEGER_MAX
from protocol.metering.assertion import Assertion, months_of_minutes
from protocol.metering.session import SessionState, free_key
from protocol.wire.errors import ProtocolError, ServiceError
from server import limits as server_limits
from server.counters.loading import Loader
from server.recovery.lost_sessions import LostSessions
from server.recovery.missing_minutes import MissingMinutes
from server.recovery.record_catch_up import RecordCatchUp
from server.recovery.replayed_ends import ReplayedEnds
from server.runtime.clock import Clock
from server.sessions.local_session import LocalSession
from server.sessions.registry import SessionRegistry
from server.sessions.step_pipeline import Retries
from server.sessions.unflushed import UnflushedEntries, UnflushedEntry
from storage import limits as storage_limits
from storage.postgres.records import Records, RejectedError, UnavailableError
from storage.redis.live import LiveError
from storage.redis.recovery import Restoring, is_of_older_copy
from storage.tasks import end

log = structlog.get_logger()

WATCHED_PARTITION = 0
"""Every process watches this partition, even without sessions. A Redis that comes back empty has
lost all partitions, perhaps with sessions that no process runs any more."""
EXPECTED = (ProtocolError, LiveError, RedisError)


class Recovery:
    """Puts back what Redis lost and this process knows."""

    def __init__(
        self, registry: SessionRegistry, loader: Loader, records: Records, clock: Clock
    ) -> None:
        self.registry = registry
        self.loader = loader
        self.records = records
        self.clock = clock
        self.restoring = Restoring(registry.live)
        self.unflushed: UnflushedEntries = registry.unflushed
        self.recovered = 0
        """Assertions from which Redis learned something."""
        self._epochs: dict[int, bytes | None] = {}
        """The last seen epoch of every partition that was served here."""
        self._lost: set[int] = set()
        """Partitions to recover."""
        self._new: set[int] = set()
        """Partitions newly served here: recovered once, in case they lost something before."""
        self._written_down: set[int] = set()
        """Partitions to recover whose records are written to Postgres already."""
        self._flushed: dict[int, bytes] = {}
        """The watermarks of quiet partitions when entries were last forgotten."""
        self._histories: dict[object, bytes | None] = {}
        """The last seen history of writes of each Redis."""
        self._record_due_at: int | None = None
        """Since when Redis may lack what Postgres has; None: not suspected."""
        self._assert_from = 0
        """Where the next assertions begin, after some failed."""
        self._again_at: dict[int, int] = {}
        """When a partition is recovered once more, after all processes have come back."""
        self._retries = Retries()
        """Partitions whose recovery failed."""
        self._record_catch_up = RecordCatchUp(self.restoring, records, loader)
        ends = ReplayedEnds(self.restoring, self._assert_ended, self.unflushed.end_of)
        self._replayed_ends = ends
        self._missing_minutes = MissingMinutes(records, registry.tenants)
        self._lost_sessions = LostSessions(self.restoring, records, loader, self._assert_ended)
        self._lost_sessions_at = clock.now() + storage_limits.LOST_SESSIONS_AFTER_MS
        """When to look for sessions that no process has put back."""
        self._forget_at = 0
        self._task: asyncio.Task[None] | None = None
        registry.pipeline.restore = self.restore
        registry.accounts.channels.resynchronised = self.suspect_loss
        loader.incomplete = self._suspect_record_loss

    async def begin(self) -> None:
        """Begins the epochs if no other process has anything to restore.

        If Postgres knows of a live session, the process that has it gets the time to do so.
        """
        self._suspect_record_loss()  # no process saw what Redis lost while none lived
        try:
            if await self.records.has_live_sessions():
                return
        except UnavailableError:
            return
        await self.restoring.begin_epochs()

    # --- Finding out -------------------------------------------------------------------

    def _partitions(self) -> set[int]:
        """The partitions of which this process knows sessions or entries."""
        return {self._partition_of(local) for local in self.registry} | self.unflushed.partitions

    async def look(self) -> None:
        """Checks with every beat whether Redis lost anything. Raises ``LiveError``."""
        now_ms = self.clock.now()
        seen = await self.restoring.look(self._partitions() | {WATCHED_PARTITION})
        is_another, behind = self._is_another(seen.histories), set[int]()
        if is_another:
            log.warning("redis_began_anew")
            self._lose(self._partitions() | {WATCHED_PARTITION})
            self._lost_sessions_at = now_ms + storage_limits.LOST_SESSIONS_AFTER_MS
        if self.unflushed.in_doubt:
            self._lose(self.unflushed.in_doubt)
            self.unflushed.in_doubt = set()
        flushed: dict[int, bytes] = {}
        for partition, (watermark, epoch) in seen.partitions.items():
            if epoch is None or self._epochs.get(partition, epoch) != epoch:
                self._lose({partition})
                behind |= {partition} if is_of_older_copy(epoch) else set()
                self._lost_sessions_at = now_ms + storage_limits.LOST_SESSIONS_AFTER_MS
            elif partition not in self._epochs:
                # This partition is newly served here, and may have lost something just before.
                # Redis mostly knows what is asserted then.
                self._new.add(partition)
            elif watermark is not None and partition not in self._lost and not self.busy:
                flushed[partition] = watermark
            self._epochs[partition] = epoch
        ended: list[SessionState] = []
        if now_ms >= self._forget_at:
            self._forget_at = now_ms + server_limits.WATERMARK_INTERVAL_MS
            # The watermarks of the time before: a loss is found before anything is forgotten.
            quiet = {one: at for one, at in self._flushed.items() if one in flushed}
            ended = self.unflushed.forget(quiet, now_ms - server_limits.RECOVERED_ENTRIES_MS)
            self._flushed = flushed
        for partition, at in list(self._again_at.items()):
            if now_ms >= at:
                del self._again_at[partition]
                self._lost.add(partition)
                self._suspect_record_loss()
        self.registry.turns.run(self, self._doubt(None if is_another else behind))
        self._work()
        await self.restoring.over(ended)

    def _doubt(self, behind: set[int] | None) -> Iterator[None]:
        """Reads accounts again whose partitions are ``behind``; None: all accounts."""
        for account in self.registry.accounts:
            partition = self.registry.live.keys.partition(account.projection.tenant)
            if behind is None or partition in behind:
                self.registry.accounts.doubt(account)
                yield

    def _is_another(self, histories: Mapping[object, bytes | None]) -> bool:
        """Whether a Redis that answered has a new history of writes."""
        known = self._histories
        self._histories = {place: one or known.get(place) for place, one in histories.items()}
        return bool(known) and not set(self._histories.values()) <= {*known.values(), None}

    def suspect_loss(self) -> None:
        """Asserts everything: another Redis may answer; mostly it knows all."""
        self._lose(self._partitions() | {WATCHED_PARTITION})
        self._work()

    def _suspect_record_loss(self) -> None:
        """Notes that Redis may lack young rows of Postgres."""
        if self._record_due_at is None:
            self._record_due_at = self.clock.now()

    def _lose(self, partitions: set[int]) -> None:
        self._lost |= partitions
        self._suspect_record_loss()
        self._written_down -= partitions
        for partition in partitions:
            self._flushed.pop(partition, None)
            self._retries.forget(partition)

    def _due(self, partitions: set[int]) -> set[int]:
        """The partitions whose recovery did not fail a moment ago."""
        now_ms = self.clock.now()
        return {one for one in partitions if self._retries.is_due(one, now_ms)}

    def _work(self) -> None:
        if self.busy:
            return
        is_due = self._record_due_at is not None or self._record_catch_up.is_due
        if is_due or self._due(self._lost | self._new):
            self._task = asyncio.create_task(self._recover())
        elif self.clock.now() >= self._lost_sessions_at:
            self._task = asyncio.create_task(self._end_lost_sessions())

    async def _end_lost_sessions(self) -> None:
        self._lost_sessions_at = SAFE_INTEGER_MAX  # until something is lost again
        try:
            await self._lost_sessions.end()
        except (*EXPECTED, UnavailableError) as error:
            log.warning("lost_sessions_not_ended", error=str(error))
            self._lost_sessions_at = self.clock.now() + storage_limits.LOST_SESSIONS_AFTER_MS
        except Exception:
            log.exception("lost_sessions_failed")

    async def idle(self) -> None:
        """Waits until nothing is being put back."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def stop(self) -> None:
        """Ends the recovery, before the connections to Redis are closed."""
        await end([self._task])

    @property
    def busy(self) -> bool:
        """Whether something is being put back."""
        return self._task is not None and not self._task.done()

    # --- Putting back --------------------------------------------------------------------

    async def _recover(self) -> None:
        partitions = self._due(self._lost)
        new = self._due(self._new) - partitions
        self._lost -= partitions
        self._new -= partitions | new
        due_at, self._record_due_at = self._record_due_at, None
        before = self.recovered + self._record_catch_up.learnt
        failed = partitions | new
        try:
            for partition in partitions:
                if self._epochs.get(partition, b"") is None:
                    await self.restoring.begin_lost_epochs(partition)
            await self._replayed_ends.find(partitions | new)
            # First what other processes wait for, then the rest.
            unasserted = await self._assert_all(partitions | new)
            unasserted |= await self._replayed_ends.put_back()
            for partition in sorted((partitions | new) - self._written_down):
                await self._write_down(partition)
                self._written_down.add(partition)
            if due_at is not None and await self._bring_record(due_at):
                due_at = None
            if self._record_catch_up.is_due:
                await self._record_catch_up.bring_put_off()
            failed = unasserted
        except (*EXPECTED, UnavailableError) as error:
            log.warning("not_recovered", error=str(error))
        except Exception:
            log.exception("recovery_failed")
        self._record_due_at = self._record_due_at if due_at is None else due_at
        learnt = self.recovered + self._record_catch_up.learnt - before
        self._conclude(partitions, new, learnt, failed)

    async def _bring_record(self, due_at: int) -> bool:
        """Completes Postgres, then Redis; False: Postgres does not answer."""
        known = [local.meter.session for local in self.registry if _runs(local)]
        for partition in self.unflushed.partitions:
            ended = self.unflushed.ended(partition)
            known += [kept.session for kept in ended if kept.session is not None]
        return await self._missing_minutes.complete(known) and await self._record_catch_up.bring(
            due_at
        )

    def _conclude(
        self, partitions: set[int], new: set[int], recovered: int, failed: set[int]
    ) -> None:
        """Notes what the next beats have to repeat."""
        now_ms, done = self.clock.now(), (partitions | new) - failed
        self._written_down -= done | self._lost  # some may have been lost once more
        self._lost |= failed & partitions
        self._new |= failed & new
        for partition in done:
            self._retries.forget(partition)
        for partition in failed:
            self._retries.failed(partition, now_ms)
        if recovered:
            log.warning("recovered", sessions=recovered, partitions=len(partitions | new))
            self._lost |= new
            if new:
                self._suspect_record_loss()
            again = partitions | new | {WATCHED_PARTITION}
            self._again_at |= dict.fromkeys(again, now_ms + 2 * storage_limits.RECOVERY_MS)
            self._lost_sessions_at = now_ms + storage_limits.LOST_SESSIONS_AFTER_MS

    async def _write_down(self, partition: int) -> None:
        """Writes unflushed entries to Postgres, or to the outbox again."""
        entries = [kept for kept in self.unflushed.entries(partition) if kept.written_at is None]
        away = False
        for first in range(0, len(entries), storage_limits.ASSERTIONS_PER_BATCH):
            batch = entries[first : first + storage_limits.ASSERTIONS_PER_BATCH]
            try:
                if away:
                    raise UnavailableError("Postgres did not answer a moment ago")
                await self.records.write([record for kept in batch for record in kept.whole])
            except (UnavailableError, RejectedError) as error:
                away = isinstance(error, UnavailableError)
                await self._replay(partition, batch)
            else:
                for kept in batch:
                    kept.written_at = self.clock.now()

    async def _replay(self, partition: int, batch: list[UnflushedEntry]) -> None:
        """Appends entries again: the flusher writes them or sorts them out."""
        ids = await self.restoring.replay(
            partition, [(kept.entry_id, kept.whole) for kept in batch]
        )
        for kept, entry_id in zip(batch, ids, strict=True):
            if kept.entry_id != entry_id:
                self.unflushed.replaced(partition, kept, entry_id)

    async def _assert_all(self, partitions: set[int]) -> set[int]:
        """Asserts all sessions known here; returns the partitions with a failure.

        If a whole batch fails, the others would fail too: the next attempt begins with them.
        """
        work: list[LocalSession | UnflushedEntry] = [
            local
            for local in self.registry
            if self._partition_of(local) in partitions and _runs(local)
        ]
        for partition in partitions:
            work += self.unflushed.ended(partition)
        failures: list[BaseException] = []
        unasserted: set[int] = set()
        self._assert_from = self._assert_from % len(work) if work else 0
        work = work[self._assert_from :] + work[: self._assert_from]
        for first in range(0, len(work), storage_limits.ASSERTIONS_PER_BATCH):
            batch = work[first : first + storage_limits.ASSERTIONS_PER_BATCH]
            results = await asyncio.gather(
                *(
                    self._assert_kept(one)
                    if isinstance(one, UnflushedEntry)
                    else self._assert_local(one)
                    for one in batch
                ),
                return_exceptions=True,
            )
            failed = [one for one, at in zip(batch, results, strict=True) if at is not None]
            unasserted |= set(map(self._partition_of, failed))
            failures += [result for result in results if result is not None]
            if len(failed) == len(batch):
                unasserted |= set(map(self._partition_of, work[first:]))
                self._assert_from += first + len(batch)
                break
        for expected in (True, False):
            errors = [one for one in failures if isinstance(one, EXPECTED) is expected]
            if errors:
                error = {"error": str(errors[0])} if expected else {"exc_info": errors[0]}
                log.warning("not_asserted", sessions=len(errors), **error)
        return unasserted

    def _partition_of(self, one: LocalSession | UnflushedEntry) -> int:
        session = one.session if isinstance(one, UnflushedEntry) else one.meter.session
        assert session is not None
        return self.registry.live.keys.partition(session.identity.tenant)

    async def restore(self, session: SessionState) -> None:
        """Puts back one session, and soon all others of its partition.

        Its step was answered ``gone``, or Redis has it running although it ended here. Raises
        ``LiveError`` or ``ServiceError`` if that cannot be done now.
        """
        ended = self.unflushed.end_of(session.key)
        local = self.registry.local_sessions.get(session.key)
        if ended is None and local is None:
            raise ServiceError("the session store has lost the session")
        partition = self.registry.live.keys.partition(session.identity.tenant)
        if partition not in self._retries:  # otherwise all others were tried a moment ago
            self._lose({partition})
        if ended is not None:
            await self._assert_kept(ended)
        elif local is not None:
            await self._assert_local(local)
        self._work()

    async def _assert_local(self, local: LocalSession) -> None:
        meter = local.meter
        assertion = Assertion(
            session=meter.session,
            notices=meter.notices.recent,
            minutes=self._minutes(meter.session, local),
            present=meter.sockets > 0,
        )
        if await self._assert(assertion, local.free_day()):
            await self.registry.channel_events.read_again(local)

    async def _assert_kept(self, kept: UnflushedEntry) -> None:
        assert kept.session is not None
        await self._assert_ended(kept.session, kept.notices)

    async def _assert_ended(self, session: SessionState, notices: tuple[bytes, ...]) -> bool:
        identity = session.identity
        calendar = await self.registry.tenants.calendar_of(identity)
        minutes = months_of_minutes(session, calendar.month)
        free_day = None
        if identity.terms.free_scope == "day":
            free_day = calendar.day_around(identity.started_at)
            if identity.free_key is None:  # the record is all that is left of a lost session
                day = calendar.day(identity.started_at).isoformat()
                key = free_key(identity.terms, identity.user_id, identity.counterpart_id, day)
                identity = msgspec.structs.replace(identity, free_key=key)
                session = msgspec.structs.replace(session, identity=identity)
        return await self._assert(Assertion(session, notices, minutes, present=False), free_day)

    @staticmethod
    def _minutes(session: SessionState, local: LocalSession) -> tuple[tuple[str, int], ...]:
        if not session.identity.terms.counts_minutes:
            return ()
        return months_of_minutes(session, local.calendar.month)

    async def _assert(self, assertion: Assertion, free_day: tuple[int, int] | None) -> bool:
        """Asserts a session. True: Redis has a different version of it.

        Another process has made a step that was not heard here, or a step of an older copy.
        """
        identity, is_forked = assertion.session.identity, False
        for _ in range(server_limits.LOADS_PER_STEP_MAX):
            status, cold = await self.restoring.put_back(assertion)
            if status == "forked":
                assertion, is_forked = assertion.after(int(cold[0])), True
            elif status != "cold":
                self.recovered += status == "ok"
                return is_forked or status == "other"
            await self.loader.load(identity, cold, free_day, asserting=True)
        raise ServiceError("Redis does not keep the counters")


def _runs(local: LocalSession) -> bool:
    """Whether this process has to assert a session.

    It has sockets of the session, or looks after its end. A process with observers only leaves that
    to the processes with sockets.
    """
    meter = local.meter
    standing = meter.session.standing
    active = meter.sockets or meter.is_busy or standing.grace_until is not None
    return bool(standing.version and active)
