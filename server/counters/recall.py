"""Recall: no spend fails because of credits that sessions merely hold.

Sessions hold credits ahead of their time, so that they run on while a claim is on its way. If only
these holds prevent a spend, the sessions are recalled: they settle, and keep no more than they need
to run on (DESIGN section 2). The spend is tried again when they have done so. A waiting spend
learns that from the account's channel, like every other listener.
"""

import asyncio
from collections.abc import Awaitable, Callable, Container
from typing import Any

from protocol import limits
from protocol.metering.quota import keeps_more, keeps_more_minutes
from protocol.metering.session import SessionState, session_key
from protocol.wire.errors import ServiceError
from server.counters.accounts import Account, Accounts
from storage.redis.live import Live
from storage.redis.spending import AccountName, SpendingReply

Attempt = Callable[[bool], Awaitable[SpendingReply]]
"""Makes one attempt. True: the attempt also recalls the holders."""


class Recall:
    """Repeats an attempt until sessions' holds do not prevent it any more."""

    def __init__(self, accounts: Accounts, wait_ms: int = limits.RECALL_WAIT_MS) -> None:
        self._accounts = accounts
        self.wait_ms = wait_ms

    async def until(self, name: AccountName, attempt: Attempt) -> SpendingReply:
        """The first reply not ``held``, or the last after the wait.

        A session keeps what it needs to run on, so credits that are still ``held`` at the end are
        not there to spend. Raises ``unavailable`` if a holder has not answered, and ``LiveError``.
        """
        loop = asyncio.get_running_loop()
        account = await self._accounts.open(*name)
        told = asyncio.Event()

        def listen(_: Account, message: dict[str, Any]) -> None:
            if may_free(message):
                told.set()

        account.listeners[listen] = None
        try:
            # The listener is in place before the holders are recalled, and the wait begins after.
            answer = await attempt(True)
            over_at = loop.time() + self.wait_ms / 1000
            while answer.status == "held":
                try:
                    async with asyncio.timeout_at(over_at):
                        await told.wait()
                except TimeoutError:
                    answer = await attempt(False)
                    if answer.status == "held":
                        await self._refuse_unanswered(name)
                    return answer
                told.clear()
                answer = await attempt(False)
            return answer
        finally:
            del account.listeners[listen]
            await self._accounts.close(account)

    async def _refuse_unanswered(self, name: AccountName) -> None:
        if await is_unanswered(self._accounts.live, name, self._accounts.loader.clock.now()):
            raise holders_silent()


async def sessions_of_account(
    live: Live, name: AccountName, beside: Container[str] = ()
) -> list[SessionState]:
    """The present state of an account's live sessions.

    ``beside`` has the keys of sessions that are left out. Raises ``LiveError``.
    """
    figures = await live.account(*name)
    if figures is None:
        return []
    asked = [one for one in figures.lines if session_key(name.tenant, one) not in beside]
    return await live.sessions(name.tenant, asked)


async def is_unanswered(live: Live, name: AccountName, now_ms: int) -> bool:
    """Whether a recalled session still holds more credits than it needs.

    Then the session's process has not answered, and the rest of the credits is unknown. Raises
    ``LiveError``.
    """
    return any(keeps_more(one, now_ms) for one in await sessions_of_account(live, name))


async def are_minutes_unanswered(live: Live, tenant: str, user_id: str | None, now_ms: int) -> bool:
    """Whether a recalled session still holds more minutes than it needs.

    Only sessions of the user ``user_id`` are checked; None: all of the organisation. Otherwise like
    ``is_unanswered``.
    """
    async for found in live.sessions_of_tenant(tenant):
        for session in found:
            is_theirs = user_id is None or session.identity.user_id == user_id
            if is_theirs and keeps_more_minutes(session, now_ms):
                return True
    return False


def holders_silent() -> ServiceError:
    """The error for holders that have not answered.

    This is no refusal: another try may succeed.
    """
    return ServiceError("sessions hold the credits or minutes and have not answered; ask again")


def may_free(message: dict[str, Any]) -> bool:
    """Whether there may be more to spend after this message.

    A mere recall, a spend and a hold free nothing.
    """
    credit = message.get("credit")
    if credit is not None and credit["reason"] in {"spend", "hold"}:
        return False
    return not message.get("recall") or bool(message.get("bumped"))
