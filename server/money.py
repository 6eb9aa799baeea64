"""Credits of accounts: money in, operations that are charged, and holds for them.

Money in is an entry in Postgres first, and then in Redis. The two writes cannot be one, so
the first leaves a note in Postgres (``account_inbox``) that is taken away when the second
is done. A process that dies between them is followed by one that finds the note; Redis
knows the entries that it took, so nothing counts twice.

Money out is in ``server.spends`` and ``server.holds``, what expires in ``server.expiry``.
"""

import asyncio

import msgspec
import structlog

from protocol import limits
from protocol.errors import ServiceError
from protocol.events import EntryPosted
from protocol.grants import month_after
from protocol.rates import RateCard
from server.accounts import Accounts
from server.adjustments import Adjusted, Adjustments
from server.charges import (
    CanPerform,
    Exceeds,
    Held,
    HoldGone,
    Limited,
    Posted,
    Short,
    Spent,
    Voided,
)
from server.clock import Clock
from server.expiry import Expiry
from server.holds import Holds
from server.loading import calendar
from server.spends import Spends
from storage.live import Live, LiveError
from storage.records import Records, UnavailableError
from storage.spending import AccountName

__all__ = [
    "AccountName",
    "Adjusted",
    "CanPerform",
    "Exceeds",
    "Held",
    "HoldGone",
    "Limited",
    "Money",
    "Posted",
    "Short",
    "Spent",
    "Voided",
]

log = structlog.get_logger()

DAY_MS = 24 * 3_600_000
PRIORITY_DEFAULT = 100
"""Of grants that name none; of these, the one that expires first burns first."""
INBOX_INTERVAL_S = 5.0
"""How often notes are looked for that a dead process left."""
INBOX_AGE_MS = 2_000
"""Younger notes are about to be taken away by whoever wrote them."""


class Money(Spends, Holds, Adjustments):
    """Moves credits in and out of accounts; what they come to is in ``server.charges``."""

    def __init__(
        self, live: Live, records: Records, clock: Clock, accounts: Accounts, rates: RateCard
    ) -> None:
        super().__init__(live, records, clock, accounts, rates)
        self.expiry = Expiry(self)

    async def enter(
        self, entry: EntryPosted, priority: int = 0, expires_at: int | None = None
    ) -> bool:
        """Writes an entry and applies it. False: it was there already, and applied.

        Raises ``ServiceError`` when Postgres does not answer. When only Redis does not,
        the entry stands, and is applied when Redis is back.
        """
        try:
            new = await self.records.post_entry(entry, priority, expires_at)
            name = (entry.tenant, entry.account_id, entry.entry_id)
            # What Redis has confirmed it may have forgotten to have taken, days ago.
            is_due = new or await self.records.inbox_has(*name)
        except UnavailableError as error:
            raise ServiceError("the ledger does not answer") from error
        try:
            if is_due:
                await self._apply(entry)
        except LiveError as error:
            log.warning("entry_not_applied_yet", entry_id=entry.entry_id, error=str(error))
        return new

    async def grant_package(
        self, account: AccountName, package_id: str, *, entry_id: str, reason: str | None = None
    ) -> EntryPosted:
        """Grants a package of the rate card under its name, once for each ``entry_id``.

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
        await self.enter(entry, PRIORITY_DEFAULT, expires_at)
        return entry

    async def grant_allotment(self, account: AccountName) -> EntryPosted | None:
        """Grants what the organisation's tier gives for this month, once a month.

        It expires with the month, by the organisation's calendar. None: the tier gives
        nothing.
        """
        before = await self.before(account, "")
        micros = self.rates.allotments.get(before.tier, 0)
        if not micros:
            return None
        days = calendar(before.timezone)
        month = days.month(self.clock.now())
        name = f"allotment:{before.tier}:{month[:7]}"
        entry = EntryPosted(
            tenant=account.tenant,
            account_id=account.account_id,
            entry_id=name,
            entry_kind="grant",
            amount_micros=micros,
            at=self.clock.now(),
            reason=f"{before.tier}, {month[:7]}",
            metadata={"name": name},
        )
        await self.enter(entry, PRIORITY_DEFAULT, days.start_at(month_after(month)))
        return entry

    async def _apply(self, entry: EntryPosted) -> None:
        await self.live.credit(
            entry.tenant,
            entry.account_id,
            entry.entry_id,
            entry.amount_micros,
            entry.entry_kind,
            self.clock.now(),
        )
        await self.records.inbox_done([(entry.tenant, entry.account_id, entry.entry_id)])

    async def apply_inbox(self, age_ms: int = 0) -> int:
        """Applies what was written and perhaps not applied; how many entries that were."""
        count = 0
        for noted in await self.records.inbox(limits.FLUSH_BATCH_RECORDS):
            if self.clock.now() - noted.created_at < age_ms:
                continue
            await self._apply(
                EntryPosted(
                    tenant=noted.tenant,
                    account_id=noted.account_id,
                    entry_id=noted.entry_id,
                    entry_kind=noted.entry_kind,
                    amount_micros=noted.amount_micros,
                    at=noted.created_at,
                )
            )
            count += 1
        return count

    async def run(self) -> None:
        """Looks for forgotten notes, and for what expires, for as long as the process lives."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._apply_forgotten())
            tasks.create_task(self.expiry.run())

    async def _apply_forgotten(self) -> None:
        while True:
            await asyncio.sleep(INBOX_INTERVAL_S)
            try:
                applied = await self.apply_inbox(INBOX_AGE_MS)
                adjusted = await self.apply_adjustments(INBOX_AGE_MS)
                if applied or adjusted:
                    log.info("inbox_applied", entries=applied, adjustments=adjusted)
            except (LiveError, UnavailableError, msgspec.MsgspecError) as error:
                log.warning("inbox_not_read", error=str(error))
            except Exception:
                # Money that came in waits for the next look, not for ever.
                log.exception("inbox_failed")
