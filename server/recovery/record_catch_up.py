"""Brings Postgres's young rows to a Redis that lost its last writes.

Postgres knows everything that was acknowledged except the time of sessions: entries of ledgers,
holds, the number of operations done, corrections of months, and limits. A replica that takes over
lacks the newest of them, also for tenants without live sessions, so the young rows of all tenants
are checked. Each row is brought to Redis once, by its id or by its total. What Redis already knows
is left alone, and what is cold is loaded complete.

Postgres in turn may not know yet how a hold ended: Redis decides that, and forgets the hold an hour
later by its own clock. So no hold counts as open while the outbox has a record that is old by
either clock. The hold waits until that record is in Postgres.
"""

from collections.abc import Container, Iterable

import structlog

from server import limits as server_limits
from server.counters.loading import Loader
from server.counters.plans import apply_member, apply_organization
from server.recovery.reported_sessions import ReportedSessions
from server.runtime.isolation import for_each
from storage import limits as storage_limits
from storage.postgres.records import Records, UnavailableError
from storage.redis.recovery import Restoring
from storage.redis.spending import AccountName, Spending
from storage.rows.accounts import HoldRow, OperationsDone, RecentEntry
from storage.rows.months import AdjustmentRow, LimitChange

log = structlog.get_logger()

ROWS_MAX = server_limits.RECOVERED_ENTRIES_MAX


class RecordCatchUp:
    """Brings the young rows of Postgres to Redis."""

    def __init__(self, restoring: Restoring, records: Records, loader: Loader) -> None:
        self.restoring = restoring
        self.live = restoring.live
        self.records = records
        self.loader = loader
        self.clock = loader.clock
        self.learnt = 0
        """Number of rows that Redis lacked."""
        self._spending = Spending(restoring.live)
        self._reported = ReportedSessions(records, loader)
        self._put_off: dict[int, int] = {}
        """Partitions whose holds wait for the record, with the instant from which holds count."""
        self._put_off_until = 0

    @property
    def is_due(self) -> bool:
        """Whether the holds that wait are due for another check."""
        return bool(self._put_off) and self.clock.now() >= self._put_off_until

    async def bring(self, suspected_at: int) -> bool:
        """Brings all young rows, if Redis may have lost some at ``suspected_at``.

        False: Postgres does not answer. Raises ``LiveError``. The call may be repeated, also some
        minutes later.
        """
        now_ms = self.clock.now()
        after_at = max(
            min(now_ms, suspected_at) - server_limits.RECOVERED_ENTRIES_MS,
            now_ms - server_limits.RECOVERED_ENTRIES_MS_MAX,
        )
        try:
            await self._bring_entries(await self.records.entries_since(after_at, ROWS_MAX))
            await self._bring_decided(after_at, await self._behind())
            await self._bring_adjustments(await self.records.newest_adjustments(after_at, ROWS_MAX))
            changed = await self.records.limits_since(now_ms - after_at, ROWS_MAX)
            await self._bring_limits(changed)
            # Last: it reads all pages of such sessions, and nothing else waits for that.
            self.learnt += await self._reported.bring()
        except UnavailableError:
            return False
        return True

    async def bring_put_off(self) -> None:
        """Brings the waiting holds of partitions whose record is complete.

        What Postgres has of these holds is right then, however old it is. Raises ``LiveError``; the
        call may be repeated.
        """
        behind = await self._behind()
        ready = {at: after for at, after in self._put_off.items() if at not in behind}
        if not ready:
            return
        try:
            await self._bring_decided(min(ready.values()), behind, only=ready)
        except UnavailableError:
            return
        self._put_off = {at: after for at, after in self._put_off.items() if at not in ready}

    async def _behind(self) -> set[int]:
        """The partitions whose record may lack ends of holds.

        Redis may have forgotten such an end before Postgres has it. The outboxes are read before
        Postgres, so that nothing is missing.
        """
        self._put_off_until = self.clock.now() + server_limits.RECORD_BEHIND_INTERVAL_MS
        return await self.loader.behind(storage_limits.HOLD_KEPT_MS)

    async def _bring_decided(
        self, after_at: int, behind: Container[int], only: Container[int] | None = None
    ) -> None:
        """Brings what Redis alone decides: holds, and the number of operations done.

        An open hold puts off its partition if the partition's record is behind.
        """

        def is_ready(tenant: str, *, is_open: bool) -> bool:
            partition = self.live.keys.partition(tenant)
            if only is not None and partition not in only:
                return False
            if not is_open or partition not in behind:
                return True
            self._put_off[partition] = min(after_at, self._put_off.get(partition, after_at))
            return False

        holds = await self.records.holds_since(after_at, ROWS_MAX)
        await self._bring_holds(
            hold for hold in holds if is_ready(hold.tenant, is_open=hold.state == "open")
        )
        # After the holds: a hold that is given back gives back its place in the month, too.
        operations = await self.records.operations_since(after_at, ROWS_MAX)
        await self._bring_operations(
            done for done in operations if is_ready(done.tenant, is_open=bool(done.holds))
        )

    async def _bring_entries(self, found: Iterable[RecentEntry]) -> None:
        """Applies the ledger's newest entries that accounts in Redis lack.

        It does so for all accounts: no session looks after an account that has none.
        """
        now_ms = self.clock.now()
        by_account: dict[AccountName, list[RecentEntry]] = {}
        for entry in found:
            name = AccountName(entry.tenant, entry.account_id)
            by_account.setdefault(name, []).append(entry)

        async def apply(found: tuple[AccountName, list[RecentEntry]]) -> None:
            name, entries = found
            applied = await self.restoring.apply_entries(name, entries, now_ms)
            if applied:
                log.warning("entries_recovered", account=name.account_id, entries=applied)
                self.learnt += applied

        await for_each("entries", by_account.items(), apply)

    async def _bring_holds(self, found: Iterable[HoldRow]) -> None:
        """Brings young holds in Redis to their state in Postgres.

        Credits that were reserved before a loss are reserved again; those of holds that have ended
        since are given back.
        """

        now_ms = self.clock.now()

        async def restore(hold: HoldRow) -> None:
            learnt = await self._spending.restore_hold(hold)
            if hold.state != "open":
                learnt |= await self._spending.amend_hold(hold, now_ms)
            if learnt:
                log.warning("hold_recovered", tenant=hold.tenant, hold=hold.hold_id)
                self.learnt += 1

        await for_each("hold", found, restore)

    async def _bring_operations(self, found: Iterable[OperationsDone]) -> None:
        """Adds to months in Redis the operations that they have forgotten."""

        async def recount(done: OperationsDone) -> None:
            if await self.restoring.recount(done):
                log.warning("operations_recovered", account=done.account_id)
                self.learnt += 1

        await for_each("operations", found, recount)

    async def _bring_adjustments(self, found: Iterable[AdjustmentRow]) -> None:
        """Applies adjustments to months in Redis that have forgotten them."""

        async def adjust(adjustment: AdjustmentRow) -> None:
            if await self._spending.adjust(adjustment):
                log.warning("adjustment_recovered", entry=adjustment.entry_id)
                self.learnt += 1

        await for_each("adjustment", found, adjust)

    async def _bring_limits(self, found: Iterable[LimitChange]) -> None:
        """Brings back limits of months, and permission for overage."""

        async def apply(change: LimitChange) -> None:
            if await self.restoring.has_limit(change):
                return
            # Postgres is read again, as for every change: the limit may have changed once more.
            if change.user_id:
                await apply_member(self.live, self.records, change.tenant, change.user_id)
            else:
                await apply_organization(self.live, self.records, change.tenant)
            log.warning("limit_recovered", tenant=change.tenant, user=change.user_id or None)
            self.learnt += 1

        await for_each("limit", found, apply)
