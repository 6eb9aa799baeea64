"""Operations that are charged at once."""

from typing import Any, Literal, TypeAlias

from msgspec import UNSET, UnsetType

from protocol.metering.records import EntryPosted
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.counters.calendars import calendar
from server.credits.credit_grants import Grants
from server.credits.ledger_client import unanswered
from server.credits.outcomes import CanPerform, Limited, Short, Spent, credits_micros
from storage.redis.live import LiveError
from storage.redis.spending import AccountName, SpendingReply

Taken: TypeAlias = tuple[int, str | None]
"""The micro-credits that were taken, and the operation that was charged."""


class Spends(Grants):
    """Charges operations, and tells beforehand whether they could be charged."""

    async def spend(
        self,
        account: AccountName,
        *,
        entry_id: str,
        micros: int,
        operation: str | None = None,
        user_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        monthly_limit: int | UnsetType | None = UNSET,
        succeeded: bool = True,
        entry_kind: Literal["spend", "adjust"] = "spend",
        reason: str | None = None,
    ) -> Spent | Short | Limited:
        """Takes credits at once, once for each ``entry_id``.

        The spend may name an operation. The operation's monthly limit is that of the organisation's
        tier in the rate card, unless ``monthly_limit`` is given (None: no limit). An operation that
        did not succeed is recorded, costs nothing and counts in no month. A correction of metered
        time has the ``entry_kind`` ``adjust``, and a ``reason``. Raises ``ServiceError`` if the
        spend may or may not have been made: repeat the request with the same id.
        """
        before = await self.before(account, entry_id)
        if before.spent_micros is not None:
            taken = before.spent_micros, before.spent_operation
            return await self._spent(account, entry_id, taken, repeated=True)
        await self.ensure_monthly_allotment(account, before)
        now_ms = self.clock.now()
        month = calendar(before.timezone).month(now_ms)
        entry = EntryPosted(
            tenant=account.tenant,
            account_id=account.account_id,
            entry_id=entry_id,
            entry_kind=entry_kind,
            amount_micros=-micros if succeeded else 0,
            at=now_ms,
            reason=reason,
            operation=operation,
            metadata=metadata if succeeded else {**(metadata or {}), "success": False},
            user_id=user_id,
            month=month if operation is not None else None,
        )
        limit = self.monthly_limit(before.tier, operation, monthly_limit)
        answer = await self.decide(
            account,
            month,
            lambda recall: self.spending.spend(
                entry, counts=succeeded, monthly_limit=limit, recall=recall
            ),
        )
        match answer.status:
            case "ok" | "repeated":
                taken = await self._acknowledge(account, entry_id, answer)
                repeated = answer.status == "repeated"
                return await self._spent(account, entry_id, taken, answer, repeated=repeated)
            case "limit":
                return Limited(limit=limit or 0, used=answer.times)
            case _:
                return self.short(answer, micros)

    async def _acknowledge(
        self, account: AccountName, entry_id: str, answer: SpendingReply
    ) -> Taken:
        """Writes what was spent to Postgres, and returns it.

        For a repetition this is what the first request spent.
        """
        for record in answer.records:
            assert isinstance(record, EntryPosted)
            await self.write(answer.records)
            return -record.amount_micros, record.operation
        # Redis remembers the spend, and its entry has left the outbox: Postgres has it by now.
        before = await self.before(account, entry_id)
        if before.spent_micros is None:
            raise ServiceError("the record of this spend is being recovered")
        return before.spent_micros, before.spent_operation

    async def _spent(
        self,
        account: AccountName,
        entry_id: str,
        taken: Taken,
        answer: SpendingReply | None = None,
        *,
        repeated: bool,
    ) -> Spent:
        figures = answer.figures if answer is not None else None
        balance = await self.balance(account, figures)
        return Spent(entry_id, *taken, *balance, repeated)

    async def can_perform(self, account: AccountName, operation: str) -> CanPerform:
        """Whether a rate card's operation could be done now; no promise.

        Credits that sessions merely hold do not prevent it. Raises ``BadMessageError`` for an
        operation that the card does not have.
        """
        cost_micros = self.rates.operation_micros(operation)
        before = await self.before(account, "")
        await self.ensure_monthly_allotment(account, before)
        month = calendar(before.timezone).month(self.clock.now())
        limit = self.rates.operations_per_month(before.tier, operation)
        figures = await self.figures(account)
        balance = credits_micros(figures, self.clock.now())
        if limit is not None and await self._times(account, month, operation) >= limit:
            return CanPerform(False, "operation_limit", cost_micros, balance)
        if cost_micros > max(0, balance - figures.reserved_micros):
            return CanPerform(False, "insufficient_credits", cost_micros, balance)
        return CanPerform(True, None, cost_micros, balance)

    async def _times(self, account: AccountName, month: str, operation: str) -> int:
        """How often an operation was done in a month."""
        try:
            for _ in range(server_limits.LOADS_PER_STEP_MAX):
                times = await self.spending.operations(*account, month, operation)
                if times is not None:
                    return times
                await self.load_operations(account, month)
        except LiveError as error:
            raise unanswered() from error
        raise ServiceError("Redis does not keep the month")
