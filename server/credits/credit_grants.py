"""Money in: an entry is written to Postgres, then applied in Redis.

The two writes cannot be one. So the first leaves a note in Postgres (``account_inbox``), which is
removed when the second is done. If a process dies between them, another process finds the note.
Redis knows the entries that it took, so nothing counts twice.

Two kinds of grants have a name in the rate card. A package is granted because it was bought. An
allotment is what a tier gives for a month: every account that is used in the month gets it
automatically, once, and it expires with the month. A higher tier adds the difference; a lower tier
takes nothing back.
"""

import msgspec
import structlog

from protocol.metering.quota import month_after
from protocol.metering.records import EntryPosted
from protocol.rate_card import RateCard
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.counters.accounts import Account, Accounts
from server.counters.calendars import calendar
from server.credits.ledger_client import LedgerClient
from server.credits.outcomes import BalanceTooHighError
from server.runtime.clock import Clock
from server.runtime.isolation import for_each
from server.runtime.metrics import Metrics
from storage import limits as storage_limits
from storage.postgres.ledgers import BALANCE_CHECK
from storage.postgres.records import Records, RejectedError, UnavailableError
from storage.redis.live import Live, LiveError
from storage.redis.spending import AccountName
from storage.rows.accounts import BeforeOperation, GrantRow, InboxEntry
from storage.rows.idempotency import KeyClaim

log = structlog.get_logger()

DAY_MS = 24 * 3_600_000
PRIORITY_DEFAULT = 100
"""For grants without a priority; among equal ones, the grant that expires first burns first."""


class AllotmentState(msgspec.Struct, frozen=True):
    """An account whose allotment was ensured, and the plan at that time."""

    plan: tuple[str, str]
    """The tier, and the time zone in which its months begin."""
    month_ends_at: int
    fresh_until_at: int


class Grants(LedgerClient):
    """Grants credits: amounts, packages, and what a tier gives for a month."""

    def __init__(
        self,
        live: Live,
        records: Records,
        clock: Clock,
        accounts: Accounts,
        rates: RateCard,
        metrics: Metrics,
    ) -> None:
        super().__init__(live, records, clock, accounts, rates, metrics)
        self._allotments: dict[AccountName, AllotmentState] = {}

    async def enter(
        self,
        entry: EntryPosted,
        priority: int = 0,
        expires_at: int | None = None,
        claim: KeyClaim | None = None,
    ) -> bool:
        """Writes an entry and applies it.

        False: the same entry was there already, or the ``claim`` of its request is over.

        Raises ``ServiceError`` if Postgres does not answer, and ``BalanceTooHighError`` for an
        entry that would raise the account above the highest balance. If a failure follows the
        write, the entry stands, and is applied as soon as both stores answer.
        """
        name = (entry.tenant, entry.account_id, entry.entry_id)
        try:
            new = await self.records.post_entry(entry, priority, expires_at, claim)
            micros = entry.amount_micros if new else await self.records.inbox_micros(*name)
        except (UnavailableError, RejectedError) as error:
            raise _unwritten(error) from error
        if micros is None:
            # Redis has taken the entry, and remembers only the newest, so it is not applied again.
            return False
        await self._apply_now(*name, micros, entry.entry_kind)
        return new

    def package_entry(
        self, account: AccountName, package_id: str, *, entry_id: str, reason: str | None = None
    ) -> tuple[EntryPosted, int | None]:
        """A package of the rate card as an entry, and its expiry.

        Raises ``BadMessageError`` for a package that the card does not have.
        """
        package, now_ms = self.rates.package(package_id), self.clock.now()
        expires_at = None
        if package.expires_days is not None:
            expires_at = now_ms + package.expires_days * DAY_MS
        entry = EntryPosted(
            tenant=account.tenant,
            account_id=account.account_id,
            entry_id=entry_id,
            entry_kind="grant",
            amount_micros=package.credits_micros,
            at=now_ms,
            reason=reason or package.name,
            metadata={"name": f"package:{package_id}"},
        )
        return entry, expires_at

    async def ensure_monthly_allotment(
        self, account: AccountName, before: BeforeOperation | None = None
    ) -> None:
        """Ensures that the account has what its tier gives for this month.

        Call this wherever an account is used, and nowhere where it is only read: a request for an
        unknown name must not make an account. For a minute after a call, the record is not asked
        again, unless the plan has changed. ``before`` is what the record says, if it was read
        already. While Postgres does not answer, the account is used as it is, and gets its
        allotment with a later call.
        """
        if not self.rates.allotments:
            return
        now_ms, seen = self.clock.now(), self._allotments.get(account)
        if (
            seen is not None
            and now_ms < seen.fresh_until_at
            and (before is None or seen.plan == (before.tier, before.timezone))
        ):
            return
        try:
            before = before or await self.before(account, "")
            ends_at = await self._grant_allotment(account, before, now_ms)
        except (ServiceError, BalanceTooHighError) as error:
            log.warning("allotment_put_off", account=account.account_id, error=str(error))
            return
        if len(self._allotments) >= server_limits.ACCOUNTS_CACHED_MAX:
            self._allotments.clear()
        fresh_until_at = min(ends_at, now_ms + server_limits.ALLOTMENT_FRESH_MS)
        self._allotments[account] = AllotmentState(
            (before.tier, before.timezone), ends_at, fresh_until_at
        )

    async def ensure_allotment_at_start(self, account: AccountName) -> None:
        """Ensures the allotment before a session starts, with the current plan."""
        if self.rates.allotments:
            await self.ensure_monthly_allotment(account, await self.before(account, ""))

    async def allotment_due(self, account: AccountName, *, starts: bool = False) -> GrantRow | None:
        """What ``ensure_monthly_allotment`` would add to an existing account; None: nothing.

        Writes nothing. While Postgres does not answer, no allotment is known to be due.
        ``starts``: a start is asked about, which also makes an account that nothing knows.
        """
        if not self.rates.allotments:
            return None
        try:
            found = await self.records.allotments(*account)
        except UnavailableError as error:
            log.warning("allotment_not_known", account=account.account_id, error=str(error))
            return None
        if not (starts or found.is_known or self.accounts.get(*account)):
            return None
        now_ms = self.clock.now()
        month, ends_at = _month(found.timezone, now_ms)
        micros = self.rates.allotments.get(found.tier, 0) - found.given.get(month, 0)
        if micros <= 0:
            return None
        name = f"allotment:{found.tier}:{month}"
        return GrantRow(
            tenant=account.tenant,
            account_id=account.account_id,
            entry_id=name,
            amount_micros=micros,
            used_micros=0,
            expired_micros=0,
            priority=PRIORITY_DEFAULT,
            expires_at=ends_at,
            granted_at=now_ms,
            name=name,
        )

    async def ensure_served_allotments(self) -> None:
        """Ensures the allotments of accounts served here in a new month."""
        if not self.rates.allotments:
            return

        async def ensure_monthly_allotment(served: Account) -> None:
            account = AccountName(served.projection.tenant, served.projection.account_id)
            seen = self._allotments.get(account)
            if seen is None or seen.month_ends_at <= self.clock.now():
                await self.ensure_monthly_allotment(account)

        await for_each("allotment", self.accounts, ensure_monthly_allotment)

    def forget_allotments(self, tenant: str) -> None:
        """Forgets the allotments of a tenant whose tier has changed.

        The next call asks the record what the new tier gives.
        """
        for account in [account for account in self._allotments if account.tenant == tenant]:
            del self._allotments[account]

    async def _grant_allotment(
        self, account: AccountName, before: BeforeOperation, now_ms: int
    ) -> int:
        """Grants the rest of the month's allotment; returns the month's end."""
        month, ends_at = _month(before.timezone, now_ms)
        micros = self.rates.allotments.get(before.tier, 0)
        if not micros:
            return ends_at
        try:
            waiting = await self.records.post_allotment(
                account,
                before.tier,
                month,
                micros,
                at=now_ms,
                priority=PRIORITY_DEFAULT,
                expires_at=ends_at,
            )
        except (UnavailableError, RejectedError) as error:
            raise _unwritten(error) from error
        for entry in waiting:
            await self._apply_now(*account, entry.entry_id, entry.amount_micros, "grant")
        return ends_at

    async def apply_inbox(self, age_ms: int = 0) -> int:
        """Applies entries that may not have been applied; returns their number.

        Only entries that are at least ``age_ms`` old.
        """
        count = 0

        async def apply(noted: InboxEntry) -> None:
            nonlocal count
            if self.clock.now() - noted.created_at >= age_ms:
                name = (noted.tenant, noted.account_id, noted.entry_id)
                await self._apply(*name, noted.amount_micros, noted.entry_kind)
                count += 1

        await for_each("inbox", await self.records.inbox(storage_limits.FLUSH_BATCH_RECORDS), apply)
        return count

    async def _apply_now(
        self, tenant: str, account_id: str, entry_id: str, micros: int, kind: str
    ) -> None:
        """Applies an entry; after a failure, a later pass applies it."""
        try:
            await self._apply(tenant, account_id, entry_id, micros, kind)
        except (LiveError, UnavailableError) as error:
            log.warning("entry_not_applied_yet", entry_id=entry_id, error=str(error))

    async def _apply(
        self, tenant: str, account_id: str, entry_id: str, micros: int, kind: str
    ) -> None:
        await self.live.credit(tenant, account_id, entry_id, micros, kind, self.clock.now())
        await self.records.inbox_done([(tenant, account_id, entry_id)])


def _month(timezone: str, now_ms: int) -> tuple[str, int]:
    """The month of an instant (``2026-11``), and when it ends."""
    days = calendar(timezone)
    first_day = days.month(now_ms)
    return first_day[:7], days.start_at(month_after(first_day))


def _unwritten(error: UnavailableError | RejectedError) -> Exception:
    """The error for money in that was not written."""
    if isinstance(error, UnavailableError):
        return ServiceError("the ledger does not answer")
    return BalanceTooHighError() if error.constraint == BALANCE_CHECK else error
