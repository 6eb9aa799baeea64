"""Adjustments of a user's monthly minutes: entries of their own, not edits.

Like money in, an adjustment is written to Postgres first and then applied in Redis; its row says
whether Redis has it. Live sessions get a message, and ask again for what is left to them, more or
less.
"""

import msgspec
import structlog

from protocol.wire.errors import BadMessageError, ServiceError
from server.counters.calendars import calendar
from server.credits.ledger_client import LedgerClient
from server.runtime.isolation import for_each
from storage import limits as storage_limits
from storage.postgres.records import RejectedError, UnavailableError
from storage.redis.live import LiveError
from storage.rows.idempotency import KeyClaim
from storage.rows.months import AdjustmentRow

log = structlog.get_logger()


class Adjusted(msgspec.Struct, frozen=True):
    """The month is adjusted."""

    entry_id: str
    month: str
    """The month, named by its first day."""
    minutes: int
    """The minutes that were added: for a repetition, by the first request."""
    reason: str
    repeated: bool


class ClaimOverError(Exception):
    """The request's key was answered meanwhile, or another attempt has it."""


class Adjustments(LedgerClient):
    """Adjusts the months of members, and the organisation's with them."""

    async def adjust_minutes(
        self,
        tenant: str,
        user_id: str,
        *,
        entry_id: str,
        minutes: int,
        reason: str,
        month: str | None = None,
        claim: KeyClaim | None = None,
    ) -> Adjusted:
        """Adds minutes to a user's month, once for each ``entry_id``.

        Negative minutes take away. ``month`` is named by its first day; default is the current
        month in the organisation's time zone. Raises ``BadMessageError`` if more is taken away than
        was used, ``ClaimOverError`` if the ``claim`` of the request is over, and
        ``ServiceError`` if Postgres does not answer.
        """
        try:
            if month is None:
                found = await self.loader.member(tenant, user_id)
                month = calendar(found.timezone).month(self.clock.now())
            adjustment = AdjustmentRow(
                tenant=tenant,
                user_id=user_id,
                entry_id=entry_id,
                month=month,
                minutes=minutes,
                reason=reason,
                created_at=self.clock.now(),
            )
            new = await self.records.adjust_minutes(adjustment, claim)
            made = await self.records.adjustment(tenant, user_id, entry_id)
        except UnavailableError as error:
            raise ServiceError("the ledger does not answer") from error
        except RejectedError as error:
            raise BadMessageError(
                "minutes: the adjustment takes away more than the month has"
            ) from error
        if made is None:
            raise ClaimOverError
        try:
            if not made.is_applied:
                await self._apply_adjustment(made)
        except (LiveError, UnavailableError) as error:
            log.warning("adjustment_not_applied_yet", entry_id=entry_id, error=str(error))
        return Adjusted(entry_id, made.month, made.minutes, made.reason, repeated=not new)

    async def apply_adjustments(self, age_ms: int = 0) -> int:
        """Applies adjustments that may not have been applied; returns their number.

        Only adjustments that are at least ``age_ms`` old.
        """
        count = 0

        async def apply(waiting: AdjustmentRow) -> None:
            nonlocal count
            if self.clock.now() - waiting.created_at >= age_ms:
                await self._apply_adjustment(waiting)
                count += 1

        found = await self.records.adjustments_waiting(storage_limits.FLUSH_BATCH_RECORDS)
        await for_each("adjustment", found, apply)
        return count

    async def _apply_adjustment(self, made: AdjustmentRow) -> None:
        await self.spending.adjust(made)
        await self.records.adjustment_applied(made.tenant, made.user_id, made.entry_id)
