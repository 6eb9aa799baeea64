"""The credit ledger: money in, charged operations, and holds for them.

Money in is in ``server.credits.credit_grants``, money out in ``server.credits.spends`` and
``server.credits.holds``, and what expires in ``server.credits.expiry``. This module has what a
process does for all of them by itself.
"""

import asyncio

import structlog

from protocol.rate_card import RateCard
from server import limits as server_limits
from server.counters.accounts import Accounts
from server.credits.expiry import Expiry
from server.credits.holds import Holds
from server.credits.minute_adjustments import Adjusted, Adjustments
from server.credits.outcomes import (
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
from server.credits.spends import Spends
from server.runtime.clock import Clock
from server.runtime.isolation import alone
from server.runtime.metrics import Metrics
from storage.postgres.records import Records
from storage.redis.live import Live
from storage.redis.spending import AccountName

__all__ = [
    "AccountName",
    "Adjusted",
    "CanPerform",
    "CreditLedger",
    "Exceeds",
    "Held",
    "HoldGone",
    "Limited",
    "Posted",
    "Short",
    "Spent",
    "Voided",
]

log = structlog.get_logger()


class CreditLedger(Spends, Holds, Adjustments):
    """Moves credits in and out of accounts; the results are in ``server.credits.outcomes``."""

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
        self.expiry = Expiry(self)

    async def run(self) -> None:
        """Applies forgotten notes, expiries and new allotments while the process lives."""
        # A task group would pass a cancellation on only once; see ``storage.tasks``.
        await asyncio.gather(self._apply_forgotten(), self.expiry.run())

    async def _apply_forgotten(self) -> None:
        while True:
            await asyncio.sleep(server_limits.INBOX_INTERVAL_S)
            # Each part is guarded by itself: after a failure, money in waits for the next pass at
            # most.
            applied = adjusted = 0
            with alone("inbox"):
                applied = await self.apply_inbox(server_limits.INBOX_AGE_MS_MIN)
            with alone("adjustments"):
                adjusted = await self.apply_adjustments(server_limits.INBOX_AGE_MS_MIN)
            with alone("allotments"):
                await self.ensure_served_allotments()
            if applied or adjusted:
                log.info("inbox_applied", entries=applied, adjustments=adjusted)
