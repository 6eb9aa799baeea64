"""Loads cold counters: from Postgres into Redis, if Redis lacks them.

That is safe because of two bounds. A counter leaves Redis only when no live session has used it for
``ACCOUNT_IDLE_MS``. And no counter is loaded while the tenant's outbox holds a record older than
half of that. So every decision that was made before the counter left has reached Postgres by the
time the counter is read again.

When Redis comes back empty, all sessions of a counter ask for it at once. So each counter has one
load at a time, and no request that waits for the load can cancel it. A cancelled load would skip
its last part, which adds the changes that were written meanwhile, and the counter would lack them.
"""

import asyncio
import contextlib
import datetime
import functools
import zoneinfo
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any

from protocol.metering.quota import month_after
from protocol.metering.session import Identity
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.counters.calendars import Calendar
from server.runtime.clock import Clock
from storage import limits as storage_limits
from storage.postgres.records import Records, UnavailableError
from storage.redis.live import Live, Oldest
from storage.redis.recovery import Restoring
from storage.redis.spending import AccountName, Spending
from storage.rows.months import MemberRecord
from storage.tasks import end


class NotLoadedError(ServiceError):
    """No counter is loaded while the partition recovers from a loss."""


class Loader:
    """Loads cold counters. Raises ``ServiceError`` (retryable) if Postgres does not answer."""

    def __init__(self, live: Live, records: Records, clock: Clock) -> None:
        self.live = live
        self.records = records
        self.clock = clock
        self._restoring = Restoring(live)
        self._spending = Spending(live)
        self.incomplete: Callable[[], None] = lambda: None
        """Called when a loaded counter may lack changes that were written a moment ago."""
        self._loading: dict[tuple[str, bool], asyncio.Task[None]] = {}
        """Loads under way, by the counter's key and whether the request is asserting."""

    @property
    def busy(self) -> bool:
        """Whether a load is under way."""
        return bool(self._loading)

    async def stop(self) -> None:
        """Ends all loads."""
        await end(self._loading.values())

    async def load(
        self,
        identity: Identity,
        cold: Collection[str],
        free_day: tuple[int, int] | None = None,
        *,
        asserting: bool = False,
    ) -> None:
        """Loads a session's counters that a script has named as cold.

        ``cold`` contains ``account``, ``member``, ``org`` and ``free``, as in the script's answer.
        ``free_day`` is the day of the start, as (begin, end), if free time is daily.
        """
        if "account" in cold:
            await self.account(identity.tenant, identity.account_id, asserting=asserting)
        if "member" in cold or "org" in cold:
            await self.months(identity.tenant, identity.user_id, asserting=asserting)
        if "free" in cold:
            await self.free_time(identity, free_day, asserting=asserting)

    async def account(self, tenant: str, account_id: str, *, asserting: bool = False) -> None:
        """Loads a credit account from the ledger.

        While the tenant's partition recovers from a loss in Redis, only requests that are
        ``asserting`` sessions are served.
        """
        replayed = await self._refuse_early(tenant, asserting)
        load = functools.partial(self._load_account, tenant, account_id, asserting, replayed)
        await self._unless_warm(self.live.keys.account(tenant, account_id), asserting, load)

    async def _load_account(
        self, tenant: str, account_id: str, asserting: bool, replayed: str | None
    ) -> None:
        try:
            found = await self.records.load_account(tenant, account_id, self._ended_after())
            now_ms = self.clock.now()
            with self._completing():
                _check(
                    await self.live.load_account(
                        tenant,
                        account_id,
                        found,
                        asserting=asserting,
                        now_ms=now_ms,
                        replayed=replayed,
                    )
                )
                # Changes that were written meanwhile found no account in Redis to apply to.
                missed = await self.records.entries_after(tenant, account_id, found.position)
                if missed:
                    name = AccountName(tenant, account_id)
                    await self._restoring.apply_entries(name, missed, self.clock.now())
        except UnavailableError as error:
            raise ServiceError("the account cannot be loaded now") from error

    async def member(
        self,
        tenant: str,
        user_id: str,
        *,
        ended_after: int | None = None,
        everybody: bool = False,
        adjusted_after: int | None = None,
    ) -> MemberRecord:
        """The limits and months of a member and organisation, from Postgres.

        See ``Records.load_member``.
        """
        month = Calendar(zoneinfo.ZoneInfo("UTC")).month(self.clock.now())
        months = [month, month_after(month)]
        # A time zone ahead of or behind UTC may be in another month than UTC.
        earlier = (datetime.date.fromisoformat(month) - datetime.timedelta(days=1)).replace(day=1)
        try:
            return await self.records.load_member(
                tenant,
                user_id,
                [earlier, *map(datetime.date.fromisoformat, months)],
                ended_after=ended_after,
                everybody=everybody,
                adjusted_after=adjusted_after,
            )
        except UnavailableError as error:
            raise ServiceError("the month cannot be loaded now") from error

    async def months(self, tenant: str, user_id: str, *, asserting: bool = False) -> None:
        """Loads the months' counters of a member and of the organisation."""
        replayed = await self._refuse_early(tenant, asserting)
        keys = self.live.keys
        # The organisation's first: that load brings the member's months, too.
        for everybody in (True, False):
            key = keys.organization(tenant) if everybody else keys.member(tenant, user_id)
            load = functools.partial(
                self._load_months, tenant, user_id, everybody, asserting, replayed
            )
            await self._unless_warm(key, asserting, load)

    async def _load_months(
        self, tenant: str, user_id: str, everybody: bool, asserting: bool, replayed: str | None
    ) -> None:
        """Loads a member's months, and with ``everybody`` the organisation's, too.

        The organisation's sessions are asked for once, not with every member.
        """
        keys = self.live.keys
        adjusted_after = self.clock.now() - server_limits.RECOVERED_ENTRIES_MS
        found = await self.member(
            tenant,
            user_id,
            ended_after=self._ended_after(),
            everybody=everybody,
            adjusted_after=adjusted_after,
        )
        member: dict[str, str | int] = {"limit": _limit(found.member_limit_minutes), "overage": 0}
        org: dict[str, str | int] = {
            "limit": _limit(found.org_limit_minutes),
            "overage": int(found.allow_overage),
        }
        for adjustment_id in found.adjustment_ids:
            member[f"a:{adjustment_id}"] = org[f"a:{adjustment_id}"] = 1
        for used in found.months:
            member[f"used:{used.month.isoformat()}"] = used.member_minutes
            org[f"used:{used.month.isoformat()}"] = used.org_minutes
        for session in found.recorded:
            org[f"i:{session.session_id}"] = session.minutes
            if session.user_id == user_id:
                member[f"i:{session.session_id}"] = session.minutes
        with self._completing():
            how: dict[str, Any] = {"asserting": asserting, "replayed": replayed}
            name = keys.member(tenant, user_id)
            _check(await self.live.load_month(tenant, name, member, **how))
            if everybody:
                name = keys.organization(tenant)
                _check(await self.live.load_month(tenant, name, org, **how))
            await self._catch_up(tenant, user_id, found, adjusted_after)

    async def _catch_up(
        self, tenant: str, user_id: str, loaded: MemberRecord, adjusted_after: int
    ) -> None:
        """Brings the changes that were made while the months were being loaded.

        Those changes found no counter in Redis to apply to.
        """
        try:
            for adjustment in await self.records.adjustments_since(tenant, adjusted_after):
                await self._spending.adjust(adjustment)
            now = await self.records.load_member(tenant, user_id, [])
        except UnavailableError as error:
            raise ServiceError("the month cannot be loaded now") from error
        org = (now.org_limit_minutes, now.allow_overage)
        if org != (loaded.org_limit_minutes, loaded.allow_overage):
            await self.live.change_limit(tenant, None, org[0], overage=org[1])
        if now.member_limit_minutes != loaded.member_limit_minutes:
            limit_minutes = now.member_limit_minutes
            await self.live.change_limit(tenant, user_id, limit_minutes, overage=False)

    async def free_time(
        self, identity: Identity, day: tuple[int, int] | None, *, asserting: bool = False
    ) -> None:
        """Loads what a user has used of a shared free allowance."""
        replayed = await self._refuse_early(identity.tenant, asserting)
        load = functools.partial(self._load_free_time, identity, day, asserting, replayed)
        await self._unless_warm(self._free_key(identity), asserting, load)

    async def _load_free_time(
        self, identity: Identity, day: tuple[int, int] | None, asserting: bool, replayed: str | None
    ) -> None:
        try:
            found = await self.records.free_used(
                identity.tenant,
                identity.user_id,
                identity.counterpart_id if identity.terms.free_scope == "pair" else None,
                identity.kind,
                day,
                ended_after=self._ended_after(),
            )
        except UnavailableError as error:
            raise ServiceError("the free time cannot be loaded now") from error
        fields: dict[str, str | int] = {"used": found.used_ms}
        fields |= {f"i:{session.session_id}": session.free_ms for session in found.recorded}
        key = self._free_key(identity)
        how: dict[str, Any] = {"asserting": asserting, "replayed": replayed}
        _check(await self.live.load_month(identity.tenant, key, fields, **how))

    def _free_key(self, identity: Identity) -> str:
        return self.live.keys.free(identity.tenant, identity.free_key or "")

    async def _unless_warm(
        self, key: str, asserting: bool, load: Callable[[], Awaitable[None]]
    ) -> None:
        """Loads a counter that Redis lacks; concurrent requests share one load."""
        name = (key, asserting)
        task = self._loading.get(name)
        if task is None:
            task = self._loading[name] = asyncio.create_task(self._load_cold(key, load))
            task.add_done_callback(functools.partial(self._loaded, name))
        await asyncio.shield(task)

    async def _load_cold(self, key: str, load: Callable[[], Awaitable[None]]) -> None:
        if not await self.live.is_warm(key):
            await load()

    def _loaded(self, name: tuple[str, bool], task: "asyncio.Task[None]") -> None:
        del self._loading[name]
        if not task.cancelled():
            task.exception()  # each waiting request has had the error, or has gone

    @contextlib.contextmanager
    def _completing(self) -> Iterator[None]:
        """Calls ``incomplete`` if the steps that complete a loaded counter fail."""
        try:
            yield
        except NotLoadedError:
            raise
        except BaseException:
            self.incomplete()
            raise

    def _ended_after(self) -> int:
        """Sessions that ended before this instant are not among those asked for.

        No process asserts such a session: either Postgres has had its end for long, or Postgres is
        further behind than any load allows. A cold counter has few sessions that ended later.
        """
        return self.clock.now() - storage_limits.ACCOUNT_IDLE_MS

    async def _refuse_early(self, tenant: str, asserting: bool) -> str | None:
        """Raises ``ServiceError`` before Postgres is asked, if a load would fail anyway.

        After a loss Postgres has enough to do for the requests that are asserting. Others load
        nothing while records that were appended again wait, for the process that appended them may
        be dead; who asserts puts back such ends too (``recovery.replayed_ends``). Returns the
        newest such record that what is read will contain; None: it need not.
        """
        if not asserting:
            _check(not await self.live.is_recovering(tenant))
        waiting = await self.live.waiting(tenant)
        self._check_not_behind(waiting.oldest, storage_limits.ACCOUNT_IDLE_MS)
        if asserting:
            return None
        _check(not waiting.is_replaying)
        return waiting.replayed

    async def refuse_behind(
        self, tenant: str, kept_ms: int = storage_limits.ACCOUNT_IDLE_MS
    ) -> str:
        """Raises ``ServiceError`` while Postgres may lack records that Redis has forgotten.

        That is so while a record in the tenant's outbox is older than half of ``kept_ms``, the time
        for which Redis keeps what is loaded. Returns the partition's epoch.

        The record's age counts from when it was appended, not from the time that the record is
        about: a session that ends while it is paused has stood still since long before.
        """
        waiting = await self.live.waiting(tenant)
        self._check_not_behind(waiting.oldest, kept_ms)
        return waiting.epoch

    def _check_not_behind(self, oldest: Oldest | None, kept_ms: int) -> None:
        if self._is_behind(oldest, kept_ms):
            raise ServiceError("the record is too far behind to load from")

    async def behind(self, kept_ms: int) -> set[int]:
        """The partitions in which ``refuse_behind`` would raise.

        Ask before Postgres is read: a record that waits now and is flushed meanwhile is then in
        what is read. Raises ``LiveError``.
        """
        found: set[int] = set()
        every = range(self.live.keys.partitions)
        # A few at a time, so that other work has its turn between the replies.
        for first in range(0, len(every), storage_limits.OUTBOXES_PER_PIPELINE):
            asked = every[first : first + storage_limits.OUTBOXES_PER_PIPELINE]
            answers = await asyncio.gather(*map(self.live.waiting_in, asked))
            found.update(
                partition
                for partition, waiting in zip(asked, answers, strict=True)
                if self._is_behind(waiting.oldest, kept_ms)
            )
        return found

    def _is_behind(self, oldest: Oldest | None, kept_ms: int) -> bool:
        if oldest is None:
            return False
        # By both clocks: keys expire by the clock of Redis, and that clock alone may have been
        # stepped.
        return max(self.clock.now() - oldest.made_at, oldest.age_ms) > kept_ms // 2


def _check(loaded: bool) -> None:
    """Raises :class:`NotLoadedError` if Redis did not take a counter yet."""
    if not loaded:
        raise NotLoadedError("the session store has lost its last writes and is being restored")


def _limit(minutes: int | None) -> str | int:
    return "" if minutes is None else minutes
