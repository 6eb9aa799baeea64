"""Expiry: ends overdue holds, and takes the rest of expired grants.

Every process looks after all of them, so none is lost with the process that made it. Several may do
so at once: a hold leaves its state once, and an expiry has an id.

Grants are attributed in Postgres. So the rest of a grant is known when everything that was used
before the grant's end is in Postgres. Until then nothing is taken, which is in the user's favour.
Redis decides what is taken, like a spend: what sessions and operations hold is left to them, and is
taken in a later pass.
"""

import asyncio

import structlog

from protocol.metering.records import EntryPosted
from protocol.wire.errors import ProtocolError
from server import limits as server_limits
from server.credits.holds import Holds
from server.runtime.isolation import alone, for_each
from storage import limits as storage_limits
from storage.redis.spending import AccountName
from storage.rows.accounts import GrantRow, HoldRow

log = structlog.get_logger()


class Expiry:
    """Ends what has expired, while the process lives."""

    def __init__(self, holds: Holds) -> None:
        self._holds = holds

    async def run(self) -> None:
        """Checks holds every second, and grants every few seconds."""
        clock = asyncio.get_running_loop()
        grants_at = clock.time()
        while True:
            await asyncio.sleep(server_limits.HOLD_EXPIRY_INTERVAL_S)
            # A failure is tried again in the next pass.
            with alone("holds"):
                await self.expire_holds()
            if clock.time() >= grants_at:
                grants_at = clock.time() + server_limits.GRANT_EXPIRY_INTERVAL_S
                with alone("forgotten holds"):
                    await self.expire_forgotten_holds()
                with alone("grants"):
                    await self.expire_grants()

    async def expire_holds(self) -> int:
        """Ends the holds whose time is over; returns their number."""
        holds = self._holds
        count = 0

        async def end(name: tuple[str, str]) -> None:
            nonlocal count
            count += await self._expire_hold(*name)

        await for_each("hold", await holds.spending.holds_due(holds.clock.now()), end)
        return count

    async def expire_forgotten_holds(self) -> int:
        """Ends overdue holds that Redis has forgotten; returns their number."""
        holds = self._holds
        before_at = holds.clock.now() - server_limits.HOLD_OVERDUE_MS
        count = 0

        async def end(hold: HoldRow) -> None:
            nonlocal count
            count += await self._expire_hold(hold.tenant, hold.hold_id)

        overdue = await holds.records.holds_overdue(before_at, storage_limits.FLUSH_BATCH_RECORDS)
        await for_each("hold", overdue, end)
        return count

    async def _expire_hold(self, tenant: str, hold_id: str) -> bool:
        try:
            return await self._holds.expire_hold(tenant, hold_id)
        except ProtocolError as error:
            # The other holds do not wait for this one.
            log.warning("hold_not_expired", tenant=tenant, hold=hold_id, error=str(error))
            return False

    async def expire_grants(self) -> int:
        """Takes the rest of expired grants; returns how many had one."""
        holds = self._holds
        # The outboxes are read before the rests of grants, so that no use is missing.
        written = await holds.live.written_until()
        before_at = holds.clock.now() - server_limits.GRANT_EXPIRY_LATE_MS
        page, count = await holds.records.grants_due(before_at, storage_limits.PAGE_ROWS_MAX), 0

        async def end(grant: GrantRow) -> None:
            nonlocal count
            until_at = written[holds.live.keys.partition(grant.tenant)]
            assert grant.expires_at is not None
            ended_at = grant.expires_at + server_limits.GRANT_EXPIRY_LATE_MS
            if until_at is None or until_at >= ended_at:
                count += await self._expire(grant)

        while page:
            await for_each("grant", page, end)
            page = await holds.records.grants_due(before_at, storage_limits.PAGE_ROWS_MAX, page[-1])
        return count

    async def _expire(self, grant: GrantRow) -> bool:
        """Takes what is left of one grant and is not held."""
        holds = self._holds
        account = AccountName(grant.tenant, grant.account_id)
        figures = await holds.figures(account)
        micros = min(grant.left_micros, figures.available_micros)
        if micros <= 0:
            return False
        now_ms = holds.clock.now()
        entry = EntryPosted(
            tenant=grant.tenant,
            account_id=grant.account_id,
            # One entry for each part, however many processes take it and however often.
            entry_id=f"expire:{grant.entry_id}:{grant.expired_micros}",
            entry_kind="expire",
            amount_micros=-micros,
            at=now_ms,
            reason="the grant has expired",
            metadata={"grant": grant.entry_id},
        )
        answer = await holds.spending.spend(entry)
        if answer.status != "ok":
            return False
        await holds.write(answer.records)
        log.info("grant_expired", tenant=grant.tenant, grant=grant.entry_id, micros=micros)
        return True
