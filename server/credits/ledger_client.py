"""Shared by spends and holds: asking Redis, loading, writing to Postgres.

Redis decides both, in one atomic step that appends their records to the outbox. Both are
acknowledged once these records are in Postgres: the process that decided writes the same records
there itself, at once. A repeated request with the same id gets what was done, at whatever point the
first attempt broke off.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import date

from msgspec import UNSET, UnsetType

from protocol.metering.records import Record
from protocol.rate_card import RateCard
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.counters.accounts import Accounts
from server.counters.recall import Recall
from server.credits.outcomes import AccountBalance, Short, credits_micros
from server.runtime.clock import Clock
from server.runtime.metrics import Metrics
from storage import limits as storage_limits
from storage.postgres.group_commit import GroupCommitWriter
from storage.postgres.records import Records, UnavailableError
from storage.redis.figures import AccountFigures
from storage.redis.live import Live, LiveError
from storage.redis.recovery import Restoring
from storage.redis.spending import AccountName, Spending, SpendingReply
from storage.rows.accounts import BeforeOperation

Attempt = Callable[[bool], Awaitable[SpendingReply]]
"""Makes one attempt. True: the attempt also recalls the holders."""


class LedgerClient:
    """Credits of accounts, as one process moves them. ``CreditLedger`` is the API."""

    def __init__(
        self,
        live: Live,
        records: Records,
        clock: Clock,
        accounts: Accounts,
        rates: RateCard,
        metrics: Metrics,
    ) -> None:
        self.metrics = metrics
        self.live = live
        self.records = records
        self.clock = clock
        self.accounts = accounts
        self.rates = rates
        self.spending = Spending(live)
        self.restoring = Restoring(live)
        self.loader = accounts.loader
        self.recall = Recall(accounts)
        self._writer = GroupCommitWriter(records)

    def monthly_limit(
        self, tier: str, operation: str | None, given: int | UnsetType | None
    ) -> int | None:
        """How often an operation may be done in a month; None: unlimited.

        It is the given limit, otherwise that of the tier.
        """
        if given is not UNSET:
            return given
        return None if operation is None else self.rates.operations_per_month(tier, operation)

    async def decide(self, account: AccountName, month: str, attempt: Attempt) -> SpendingReply:
        """Asks Redis, loads what is cold, and recalls holders if needed."""

        async def warmed(recall: bool) -> SpendingReply:
            return await self.warm(account, month, lambda: attempt(recall))

        try:
            answer = await warmed(False)
            if answer.status == "held":
                answer = await self.recall.until(account, warmed)
        except LiveError as error:
            self.metrics.spends.labels("unanswered").inc()
            raise unanswered() from error
        self.metrics.spends.labels(answer.status).inc()
        return answer

    async def warm(
        self, account: AccountName, month: str, ask: Callable[[], Awaitable[SpendingReply]]
    ) -> SpendingReply:
        """Asks, and loads what is cold, until nothing is cold."""
        for _ in range(server_limits.LOADS_PER_STEP_MAX):
            answer = await ask()
            if answer.status == "late":
                raise ServiceError("too many records wait for the ledger already")
            if answer.status != "cold":
                return answer
            if answer.cold == "account":
                await self.loader.account(*account)
            else:
                await self.load_operations(account, month)
        raise ServiceError("Redis does not keep the account")

    async def load_operations(self, account: AccountName, month: str) -> None:
        """Loads into Redis how often operations were done in a month."""
        await self.loader.refuse_behind(account.tenant)
        first = date.fromisoformat(month)
        try:
            found = await self.records.operations_of_month(*account, first)
            if found.holds:
                # Redis knows how these holds ended. Ends that Redis has forgotten must be in
                # Postgres.
                await self.loader.refuse_behind(account.tenant, storage_limits.HOLD_KEPT_MS)
                found = await self.records.operations_of_month(*account, first)
        except UnavailableError as error:
            raise ServiceError("the month cannot be loaded now") from error
        await self.spending.load_operations(*account, month, found.times, found.holds)

    async def before(self, account: AccountName, entry_id: str) -> BeforeOperation:
        """What the record says before an operation is charged or reserved for."""
        try:
            return await self.records.before_operation(*account, entry_id)
        except UnavailableError as error:
            raise ServiceError("the ledger does not answer") from error

    async def write(self, records: Sequence[Record]) -> None:
        """Writes to Postgres what Redis has decided, before it is acknowledged."""
        try:
            await self._writer.write(records)
        except UnavailableError as error:
            raise ServiceError(
                "the ledger does not answer; the change is recorded as soon as it does"
            ) from error

    async def figures(self, account: AccountName) -> AccountFigures:
        """The account, loaded from the ledger if it is cold."""
        try:
            for _ in range(server_limits.LOADS_PER_STEP_MAX):
                figures = await self.live.account(*account)
                if figures is not None:
                    return figures
                await self.loader.account(*account)
        except LiveError as error:
            raise unanswered() from error
        raise ServiceError("Redis does not keep the account")

    async def balance(self, account: AccountName, figures: AccountFigures | None) -> AccountBalance:
        """The account's balance at this instant; reads ``figures`` if there are none."""
        if figures is None:
            figures = await self.figures(account)
        balance = credits_micros(figures, self.clock.now())
        return AccountBalance(balance, max(0, min(balance, figures.available_micros)))

    def short(self, answer: SpendingReply, micros: int) -> Short:
        """What is missing after the sessions' burn until now.

        Settled amounts alone would leave out that burn.
        """
        assert answer.figures is not None
        assert answer.status in ("short", "held")
        balance = credits_micros(answer.figures, self.clock.now())
        spendable = balance - answer.figures.reserved_micros
        if answer.status == "held":
            spendable = min(spendable, answer.figures.available_micros)
        return Short(max(1, micros - spendable), balance)


def unanswered() -> ServiceError:
    """The error if Redis did not answer; the request may be done."""
    return ServiceError("the store of credits does not answer; ask again with the same key")
