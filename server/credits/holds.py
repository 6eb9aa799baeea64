"""Holds: credits reserved before an expensive operation and charged afterwards."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from protocol.metering.records import EntryPosted, HoldChanged, Record
from protocol.wire.errors import ErrorCode, PeerError, ServiceError
from server import limits as server_limits
from server.counters.calendars import calendar
from server.credits.credit_grants import Grants
from server.credits.ledger_client import unanswered
from server.credits.outcomes import Exceeds, Held, HoldGone, Limited, Posted, Short, Voided
from storage import limits as storage_limits
from storage.postgres.records import UnavailableError
from storage.redis.figures import AccountFigures
from storage.redis.live import LiveError
from storage.redis.spending import AccountName, SpendingReply, change_of, posted_id, posted_records
from storage.rows.accounts import HoldRow, RecentEntry


class Holds(Grants):
    """Opens holds, and ends each of them once: posted, voided or expired."""

    async def hold(
        self,
        account: AccountName,
        *,
        hold_id: str,
        micros: int,
        ttl_ms: int,
        operation: str | None = None,
        user_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        monthly_limit: int | UnsetType | None = UNSET,
    ) -> Held | Short | Limited:
        """Reserves credits for a later charge, once for each ``hold_id``.

        The hold expires by itself after ``ttl_ms``. The operation counts in this month from now on,
        unless the hold is voided or expires. Raises ``rate_limited`` if the account has its most
        open holds already, and ``ServiceError`` as ``spend`` does.
        """
        known = await self.hold_of(account.tenant, hold_id)
        if known is not None:
            return await self._held(known, None, repeated=True)
        before = await self.before(account, "")
        await self.ensure_monthly_allotment(account, before)
        now_ms = self.clock.now()
        change = HoldChanged(
            tenant=account.tenant,
            account_id=account.account_id,
            hold_id=hold_id,
            state="open",
            amount_micros=micros,
            posted_micros=0,
            operation=operation,
            user_id=user_id,
            month=calendar(before.timezone).month(now_ms),
            created_at=now_ms,
            expires_at=now_ms + ttl_ms,
            changed_at=now_ms,
            metadata=metadata,
        )
        limit = self.monthly_limit(before.tier, operation, monthly_limit)
        answer = await self.decide(
            account,
            change.month,
            lambda recall: self.spending.hold(change, monthly_limit=limit, recall=recall),
        )
        match answer.status:
            case "ok" | "repeated":
                assert answer.hold is not None
                repeated = answer.status == "repeated"
                return await self._held(answer.hold, answer.figures, repeated=repeated)
            case "limit":
                return Limited(limit=limit or 0, used=answer.times)
            case "full":
                raise PeerError(ErrorCode.RATE_LIMITED, "the account has too many open holds")
            case _:
                return self.short(answer, micros)

    async def hold_of(self, tenant: str, hold_id: str) -> HoldRow | None:
        """The hold of that id, open or ended; None if unknown.

        A hold that Redis has as open may have ended in the record: a replica lacks that end, which
        was acknowledged. Then the end counts, and is brought to Redis. While Postgres does not
        answer, Redis is believed: what Redis decides is not acknowledged before the record has the
        same.
        """
        try:
            found = await self.spending.find_hold(tenant, hold_id)
            if found is None:
                return await self._recorded_hold(tenant, hold_id)
            if found.state == "open" and (ended := await self._recorded_end(found)) is not None:
                await self._bring(ended)
                return ended
        except LiveError as error:
            raise unanswered() from error
        return found

    async def post(
        self,
        tenant: str,
        hold_id: str,
        micros: int,
        metadata: dict[str, Any] | None = None,
    ) -> Posted | HoldGone | Exceeds:
        """Charges up to the held amount, and gives back the rest.

        ``metadata`` is added to the hold's metadata. For a hold that was posted already, the result
        has what was charged then. Raises ``ServiceError`` as ``spend`` does.
        """
        hold = await self.hold_of(tenant, hold_id)
        if hold is None:
            return HoldGone(None)
        metadata = {**(hold.metadata or {}), **(metadata or {})} or None
        entry = _entry_of(hold, micros, self.clock.now(), metadata)
        answer = await self._change(hold, lambda: self.spending.post(hold, entry))
        assert answer.hold is not None
        match answer.status:
            case "exceeds":
                return Exceeds(hold.amount_micros)
            case "due":
                await self.expire_hold(tenant, hold_id)
                return HoldGone("expired")
            case "closed" if answer.hold.state != "posted":
                return HoldGone(answer.hold.state)
        # Also for a repetition, because the first attempt may have broken off here.
        made = answer.hold
        entry = _entry_of(made, made.posted_micros, made.changed_at, made.metadata)
        kept = await self._written(made, posted_records(made, entry))
        if kept.state != "posted":
            return HoldGone(kept.state)
        is_made = kept is made
        balance = await self.balance(_account_of(made), answer.figures if is_made else None)
        return Posted(
            hold_id,
            entry.entry_id,
            kept.amount_micros,
            kept.posted_micros,
            *balance,
            repeated=answer.status != "ok" or not is_made,
        )

    async def void(self, tenant: str, hold_id: str) -> Voided | HoldGone:
        """Gives back the held credits.

        A hold that was voided already has the same result.
        """
        hold = await self.hold_of(tenant, hold_id)
        if hold is None:
            return HoldGone(None)
        now_ms = self.clock.now()
        answer = await self._change(hold, lambda: self.spending.void(hold, now_ms))
        assert answer.hold is not None
        if answer.status == "due":
            await self.expire_hold(tenant, hold_id)
            return HoldGone("expired")
        made = kept = answer.hold
        if made.state == "voided":
            kept = await self._written(made, [change_of(made, "voided", made.changed_at)])
        if kept.state != "voided":
            return HoldGone(kept.state)
        is_made = kept is made
        balance = await self.balance(_account_of(hold), answer.figures if is_made else None)
        return Voided(
            hold_id, hold.amount_micros, *balance, repeated=answer.status != "ok" or not is_made
        )

    async def expire_hold(self, tenant: str, hold_id: str) -> bool:
        """Ends a hold whose time is over.

        False: it is not over yet, or the hold is not open any more.
        """
        hold = await self.hold_of(tenant, hold_id)
        if hold is None or hold.state != "open":
            await self.spending.forget_hold(tenant, hold_id)
            return False
        now_ms = self.clock.now()
        answer = await self._change(hold, lambda: self.spending.void(hold, now_ms, "expired"))
        return answer.status == "ok"

    # --- How it is done ---------------------------------------------------------------

    async def _change(
        self, hold: HoldRow, ask: Callable[[], Awaitable[SpendingReply]]
    ) -> SpendingReply:
        """Makes a step of a hold, restored first if Redis needs it.

        Redis needs it when it lacks the hold or does not reserve it.
        """
        if hold.state != "open":
            return SpendingReply(status="closed", figures=None, hold=hold)
        try:
            for _ in range(server_limits.LOADS_PER_STEP_MAX):
                answer = await self.warm(_account_of(hold), hold.month, ask)
                if answer.status != "absent":
                    return answer
                hold = await self._restore(hold)
                if hold.state != "open":
                    return SpendingReply(status="closed", figures=None, hold=hold)
        except LiveError as error:
            raise unanswered() from error
        raise ServiceError("Redis does not keep the hold")

    async def _restore(self, hold: HoldRow) -> HoldRow:
        # Redis forgets a hold that has ended, and Postgres must have the end by then.
        await self.loader.refuse_behind(hold.tenant, storage_limits.HOLD_KEPT_MS)
        recorded = await self._recorded_hold(hold.tenant, hold.hold_id)
        if recorded is None:
            raise ServiceError("the hold is on its way to the record")
        if recorded.state == "open":
            await self.spending.restore_hold(recorded)
        else:
            await self._bring(recorded)
        return recorded

    async def _recorded_end(self, hold: HoldRow) -> HoldRow | None:
        """The recorded hold if ended; None also while Postgres is away."""
        try:
            recorded = await self.records.hold(hold.tenant, hold.hold_id)
        except UnavailableError:
            return None
        return recorded if recorded is not None and recorded.state != "open" else None

    async def _bring(self, ended: HoldRow) -> None:
        """Ends a hold in Redis that has ended in the record."""
        account = _account_of(ended)
        entry_id = posted_id(ended.hold_id)
        try:
            entry = await self.records.entry(*account, entry_id)
        except UnavailableError as error:
            raise ServiceError("the ledger does not answer") from error
        if entry is not None:
            lacked = RecentEntry(*account, entry_id, entry.amount_micros, entry.position)
            await self.restoring.apply_entries(account, [lacked], self.clock.now())
        await self.spending.restore_hold(ended)

    async def _written(self, made: HoldRow, records: Sequence[Record]) -> HoldRow:
        """Writes the end of a hold to Postgres; returns ``made``.

        If the record has another end already, the result is that one: Redis has then decided on a
        copy that lacked this end, and is brought to it.
        """
        await self.write(records)
        kept = await self._recorded_hold(made.tenant, made.hold_id)
        if kept is None or (kept.state, kept.posted_micros) == (made.state, made.posted_micros):
            return made
        try:
            await self.spending.amend_hold(kept, self.clock.now())
        except LiveError as error:
            raise unanswered() from error
        return kept

    async def _recorded_hold(self, tenant: str, hold_id: str) -> HoldRow | None:
        try:
            return await self.records.hold(tenant, hold_id)
        except UnavailableError as error:
            raise ServiceError("the ledger does not answer") from error

    async def _held(self, hold: HoldRow, figures: AccountFigures | None, *, repeated: bool) -> Held:
        """Acknowledges a hold after Postgres has it as it was made.

        That is so for a repetition, too: the first attempt may have broken off before the write.
        """
        await self.write([change_of(hold, "open", hold.created_at)])
        balance = await self.balance(_account_of(hold), figures)
        return Held(
            hold.hold_id, hold.state, hold.amount_micros, hold.expires_at, *balance, repeated
        )


def _account_of(hold: HoldRow) -> AccountName:
    return AccountName(hold.tenant, hold.account_id)


def _entry_of(hold: HoldRow, micros: int, at: int, metadata: dict[str, Any] | None) -> EntryPosted:
    """The ledger's entry of a hold that is posted."""
    return EntryPosted(
        tenant=hold.tenant,
        account_id=hold.account_id,
        entry_id=posted_id(hold.hold_id),
        entry_kind="post",
        amount_micros=-micros,
        at=at,
        operation=hold.operation,
        metadata=metadata,
        user_id=hold.user_id,
        month=hold.month if hold.operation is not None else None,
    )
