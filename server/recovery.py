"""Recovery: what this process knows is put back where Redis has lost it.

How it works
------------
A loss shows in three ways: the epoch of a partition is not the one that this process has
seen (read with every beat), a claim is answered ``gone``, or the line of the channels was
down, after which Redis may be another one. Then, partition by partition,

1. every session that is served here is asserted (``storage/lua/assert.lua``), and every
   one that ended here and is not written down;
2. the records that Postgres may not have are written down, or, where Postgres is away too,
   appended to the outbox again;
3. entries of the ledger that Redis lacks are applied to their accounts, and holds restored;
4. a while later, sessions that nobody has put back are ended (``server.lost``).

All of that may be repeated, and whatever fails is, with the next beat. Meanwhile, for
``RECOVERY_MS``, the partition takes nothing else: sessions run on what they were granted.
"""

import asyncio
from collections.abc import Iterable

import msgspec
import structlog
from redis.exceptions import RedisError

from protocol import limits
from protocol.assertion import Assertion, months_of_minutes
from protocol.errors import ProtocolError, ServiceError
from protocol.limits import SAFE_INTEGER_MAX
from protocol.session import Session, free_key
from server.clock import Clock
from server.hub import Hub
from server.loading import Loader
from server.lost import LostSessions
from server.seats import Seat
from server.unflushed import Kept, Unflushed
from storage.live import LiveError
from storage.records import Records, RefusedError, UnavailableError
from storage.recovery import Restoring
from storage.rows import HoldRow, RecentEntry
from storage.spending import AccountName, Spending

log = structlog.get_logger()

WATCHED_PARTITION = 0
"""Every process looks at this one, also one without sessions: a Redis that comes back empty
has lost all of them, and with them perhaps sessions that nobody runs any more."""
EXPECTED = (ProtocolError, LiveError, RedisError)
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
        """The epoch of every partition that was served here, when it was looked at last."""
        self._lost: set[int] = set()
        """Partitions that are to be looked after."""
        self._new: set[int] = set()
        """Partitions that are served here now: what is known of them is put back to be sure."""
        self._written_down: set[int] = set()
        """Partitions that are to be looked after, what they lost being written down already."""
        self._flushed: dict[int, bytes] = {}
        """The watermarks of quiet partitions, when anything was forgotten last."""
        self._is_ledger_due = False
        """The ledger is to be looked at, which has failed for want of Postgres."""
        self._assert_from = 0
        """Where to begin with the assertions, after some could not be made."""
        self._again_at: dict[int, int] = {}
        """When a partition's ledger is looked at once more, after everybody has come back."""
        self._spending = Spending(hub.live)
        self._lost_sessions = LostSessions(self.restoring, records, clock, self._assert_ended)
        self._lost_sessions_at = clock.now() + limits.LOST_SESSIONS_AFTER_MS
        """When sessions are looked for that nobody has put back."""
        self._forget_at = 0
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
        now_ms = self.clock.now()
        found = await self.restoring.epochs(self._partitions() | {WATCHED_PARTITION})
        flushed: dict[int, bytes] = {}
        for partition, (watermark, epoch) in found.items():
            if epoch is None or self._epochs.get(partition, epoch) != epoch:
                self._lose({partition})
                self._lost_sessions_at = now_ms + limits.LOST_SESSIONS_AFTER_MS
            elif partition not in self._epochs:
                # It was not served here a moment ago, and may have been lost since: what is
                # asserted then Redis knows, mostly.
                self._new.add(partition)
            elif watermark is not None and partition not in self._lost and not self.busy:
                flushed[partition] = watermark
            self._epochs[partition] = epoch
        ended: list[Session] = []
        if now_ms >= self._forget_at:
            self._forget_at = now_ms + limits.WATERMARK_INTERVAL_MS
            # Those of the time before, so that a loss is found before anything is forgotten.
            quiet = {one: at for one, at in self._flushed.items() if one in flushed}
            ended = self.unflushed.forget(quiet, now_ms - limits.RECOVERED_ENTRIES_MS)
            self._flushed = flushed
        self._lost |= {one for one, at in self._again_at.items() if now_ms >= at}
        self._work()
        await self.restoring.over(ended)

    def suspect(self) -> None:
        """Redis may be another one: everything is asserted, which it mostly knows. Money may be
        lacking there of which nobody serves a session."""
        self._lose(self._partitions())
        self._is_ledger_due = True
        self._work()

    def _lose(self, partitions: set[int]) -> None:
        self._lost |= partitions
        self._written_down -= partitions
        for partition in partitions:
            self._flushed.pop(partition, None)

    def _work(self) -> None:
        if self.busy:
            return
        if self._lost or self._new or self._is_ledger_due:
            self._task = asyncio.create_task(self._recover())
        elif self.clock.now() >= self._lost_sessions_at:
            self._task = asyncio.create_task(self._end_lost_sessions())

    async def _end_lost_sessions(self) -> None:
        self._lost_sessions_at = SAFE_INTEGER_MAX  # until something is lost again
        try:
            await self._lost_sessions.end()
        except (*EXPECTED, UnavailableError) as error:
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
        new, self._new = self._new - partitions, set()
        before = self.recovered
        done = False
        try:
            for partition in partitions:
                if self._epochs.get(partition, b"") is None:
                    await self.restoring.begin_epoch(partition)
            # First what others wait for, then what can wait.
            done = await self._assert_all(partitions | new)
            for partition in sorted((partitions | new) - self._written_down):
                await self._write_down(partition)
                self._written_down.add(partition)
            self._is_ledger_due = self._is_ledger_due or bool(partitions)
            if self._is_ledger_due and await self._apply_ledger():
                self._is_ledger_due = False
        except (*EXPECTED, UnavailableError) as error:
            log.warning("not_recovered", error=str(error))
            done = False
        except Exception:
            log.exception("recovery_failed")
            done = False
        self._conclude(partitions, new, self.recovered - before, done=done)

    def _conclude(self, partitions: set[int], new: set[int], recovered: int, *, done: bool) -> None:
        """What is to be done with the beats that follow."""
        now_ms = self.clock.now()
        if not done:
            self._lost |= partitions
            self._new |= new
        if recovered:
            log.warning("recovered", sessions=recovered, partitions=len(partitions | new))
            self._lost |= new
            again_at = now_ms + 2 * limits.RECOVERY_MS
            self._again_at |= dict.fromkeys(partitions | new, again_at)
            self._lost_sessions_at = now_ms + limits.LOST_SESSIONS_AFTER_MS
        elif done:
            self._again_at = {one: at for one, at in self._again_at.items() if at > now_ms}
        if done:
            self._written_down -= partitions | new

    async def _write_down(self, partition: int) -> None:
        """Brings to Postgres what is not there for sure, or at least back into the outbox."""
        entries = [kept for kept in self.unflushed.entries(partition) if kept.written_at is None]
        away = False
        for first in range(0, len(entries), limits.ASSERTIONS_PER_BATCH):
            batch = entries[first : first + limits.ASSERTIONS_PER_BATCH]
            try:
                if away:
                    raise UnavailableError("Postgres did not answer a moment ago")
                await self.records.write([record for kept in batch for record in kept.whole])
            except (UnavailableError, RefusedError) as error:
                away = isinstance(error, UnavailableError)
                await self._replay(partition, batch)
            else:
                for kept in batch:
                    kept.written_at = self.clock.now()

    async def _replay(self, partition: int, batch: list[Kept]) -> None:
        """Appends again what the flusher is to bring to Postgres, and sorts out what it
        refuses."""
        ids = await self.restoring.replay(
            partition, [(kept.entry_id, kept.whole) for kept in batch]
        )
        for kept, entry_id in zip(batch, ids, strict=True):
            if kept.entry_id != entry_id:
                self.unflushed.replaced(partition, kept, entry_id)

    async def _assert_all(self, partitions: set[int]) -> bool:
        """Asserts everything that is known here; whether all could be.

        When a whole batch fails, so would the others: they are tried with the next beat,
        and before this one.
        """
        keys = self.hub.live.keys
        work: list[Seat | Kept] = [
            seat
            for seat in self.hub
            if keys.partition(seat.meter.session.identity.tenant) in partitions and _runs(seat)
        ]
        for partition in partitions:
            work += self.unflushed.ended(partition)
        failures: list[BaseException] = []
        self._assert_from = self._assert_from % len(work) if work else 0
        work = work[self._assert_from :] + work[: self._assert_from]
        for first in range(0, len(work), limits.ASSERTIONS_PER_BATCH):
            batch = work[first : first + limits.ASSERTIONS_PER_BATCH]
            results = await asyncio.gather(
                *(
                    self._assert_kept(one) if isinstance(one, Kept) else self._assert_seat(one)
                    for one in batch
                ),
                return_exceptions=True,
            )
            failed = [result for result in results if result is not None]
            failures += failed
            if len(failed) == len(batch):
                self._assert_from += first + len(batch)
                break
        for expected in (True, False):
            errors = [one for one in failures if isinstance(one, EXPECTED) is expected]
            if errors:
                error = {"error": str(errors[0])} if expected else {"exc_info": errors[0]}
                log.warning("not_asserted", sessions=len(errors), **error)
        return not failures

    async def restore(self, session: Session) -> None:
        """Puts back one session, whose step was answered ``gone``; and soon all others.

        Raises ``LiveError`` or ``ServiceError`` where that cannot be done now.
        """
        seat = self.hub.seats.get(session.key)
        if seat is None:
            raise ServiceError("the session store has lost the session")
        self._lose({self.hub.live.keys.partition(session.identity.tenant)})
        await self._assert_seat(seat)
        self._work()

    async def _assert_seat(self, seat: Seat) -> None:
        meter = seat.meter
        assertion = Assertion(
            session=meter.session,
            notices=meter.notices.recent,
            minutes=self._minutes(meter.session, seat),
            present=meter.sockets > 0,
        )
        await self._assert(assertion, seat.free_day())

    async def _assert_kept(self, kept: Kept) -> None:
        assert kept.session is not None
        await self._assert_ended(kept.session, kept.notices)

    async def _assert_ended(self, session: Session, notices: tuple[bytes, ...]) -> None:
        identity = session.identity
        calendar = await self.hub.tenants.calendar_of(identity)
        minutes = months_of_minutes(session, calendar.month)
        free_day = None
        if identity.terms.free_scope == "day":
            free_day = calendar.day_around(identity.started_at)
            if identity.free_key is None:  # all that a lost session has left is its record
                day = calendar.day(identity.started_at).isoformat()
                key = free_key(identity.terms, identity.user_id, identity.counterpart_id, day)
                identity = msgspec.structs.replace(identity, free_key=key)
                session = msgspec.structs.replace(session, identity=identity)
        await self._assert(Assertion(session, notices, minutes, present=False), free_day)

    @staticmethod
    def _minutes(session: Session, seat: Seat) -> tuple[tuple[str, int], ...]:
        if not session.identity.terms.counts_minutes:
            return ()
        return months_of_minutes(session, seat.calendar.month)

    async def _assert(self, assertion: Assertion, free_day: tuple[int, int] | None) -> None:
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
                await self.loader.free_time(identity, free_day, asserting=True)
        raise ServiceError("the counters do not stay in Redis")

    async def _apply_ledger(self) -> bool:
        """Brings to Redis what the ledger has and it lacks; False: Postgres is away."""
        after_at = self.clock.now() - limits.RECOVERED_ENTRIES_MS
        try:
            entries = await self.records.entries_since(after_at, limits.RECOVERED_ENTRIES_MAX)
            holds = await self.records.holds_since(after_at, limits.RECOVERED_ENTRIES_MAX)
        except UnavailableError:
            return False
        await self._apply_entries(entries)
        await self._apply_holds(holds)
        return True

    async def _apply_entries(self, found: Iterable[RecentEntry]) -> None:
        """Applies what of the ledger's newest entries accounts in Redis lack, of all of them:
        of an account without sessions nobody else would look after it."""
        now_ms = self.clock.now()
        by_account: dict[AccountName, list[RecentEntry]] = {}
        for entry in found:
            name = AccountName(entry.tenant, entry.account_id)
            by_account.setdefault(name, []).append(entry)
        for name, entries in by_account.items():
            applied = await self.restoring.apply_entries(name, entries, now_ms)
            if applied:
                log.warning("entries_recovered", account=name.account_id, entries=applied)
                self.recovered += applied

    async def _apply_holds(self, found: Iterable[HoldRow]) -> None:
        """Brings young holds in Redis to what Postgres says of them: what was reserved before a
        loss is so again, and what has ended since is given back."""
        for hold in found:
            if await self._spending.restore_hold(hold):
                log.warning("hold_recovered", tenant=hold.tenant, hold=hold.hold_id)
                self.recovered += 1


def _runs(seat: Seat) -> bool:
    """Whether this process has anything to say of a session: it has sockets of it, or looks
    after its end. Who only watches leaves it to those who have."""
    meter = seat.meter
    standing = meter.session.standing
    active = meter.sockets or meter.asked or standing.grace_until is not None
    return bool(standing.version and active)
