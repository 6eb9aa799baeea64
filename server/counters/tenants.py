"""The tenants that this process serves: their calendars, and the news of their limits."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from protocol.metering.session import Identity
from server.counters.accounts import Accounts
from server.counters.calendars import Calendar, calendar
from server.counters.loading import Loader
from storage.redis.live import Live

LimitEvent = Literal["recalled", "freed", "adjusted", "changed"]
"""Somebody lacks minutes that are merely held, some were given back, a month was corrected, or
limits or the time zone changed."""
Listener = Callable[[str, LimitEvent, str | None], None]
"""Told the tenant, what happened to its limits, and to which user's; None: to all."""


class Tenants:
    """The tenants of a process, by the number of sessions that it serves of each."""

    def __init__(self, live: Live, loader: Loader, accounts: Accounts) -> None:
        self.live = live
        self.loader = loader
        self.accounts = accounts
        self.listener: Listener = lambda *_: None
        """Hears of changed limits."""
        self._sessions: Counter[str] = Counter()
        self._calendars: dict[str, Calendar] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}
        """Who waits for minutes that sessions hold."""
        self._changes: Counter[str] = Counter()
        """How often each tenant's limits, or its time zone, changed while it was served."""

    async def enter(self, identity: Identity) -> Calendar:
        """A session of a tenant is served from now on; the calendar that it counts by.

        Only an organisation has limits of its own to listen for, and a time zone.
        """
        tenant = identity.tenant
        self._sessions[tenant] += 1
        if identity.org_id is None:
            return calendar("UTC")
        try:
            if self._sessions[tenant] == 1:
                await self.accounts.channels.subscribe(
                    self.live.keys.limits_channel(tenant),
                    lambda message: self._changed(tenant, message),
                )
            return await self.calendar_of(identity)
        except BaseException:
            await self.leave(identity)
            raise

    async def calendar_of(self, identity: Identity) -> Calendar:
        """The calendar that a session counts by, kept while its tenant is served here."""
        if identity.org_id is None:
            return calendar("UTC")
        tenant = identity.tenant
        known = self._calendars.get(tenant)
        while known is None:
            changes = self._changes[tenant]
            found = await self.loader.member(tenant, identity.user_id)
            # What was read before the newest change was told is read anew.
            if changes == self._changes[tenant]:
                known = calendar(found.timezone)
                if self._sessions[tenant]:
                    self._calendars[tenant] = known
        return known

    def is_current(self, identity: Identity, days: Calendar) -> bool:
        """Whether no change was told since ``days`` were the session's calendar."""
        return identity.org_id is None or self._calendars.get(identity.tenant) is days

    async def leave(self, identity: Identity) -> None:
        """A session of a tenant is not served any more."""
        tenant = identity.tenant
        self._sessions[tenant] -= 1
        if self._sessions[tenant] > 0:
            return
        del self._sessions[tenant]
        self._calendars.pop(tenant, None)
        self._changes.pop(tenant, None)
        if identity.org_id is not None:
            await self.accounts.channels.unsubscribe(self.live.keys.limits_channel(tenant))

    @asynccontextmanager
    async def listening(self, identity: Identity) -> AsyncIterator[asyncio.Event]:
        """Listens to a tenant's limits; the event is set when there may be more of a month."""
        await self.enter(identity)
        freed, waiting = asyncio.Event(), self._waiting.setdefault(identity.tenant, set())
        waiting.add(freed)
        try:
            yield freed
        finally:
            waiting.discard(freed)
            if not waiting:
                self._waiting.pop(identity.tenant, None)
            await self.leave(identity)

    def _changed(self, tenant: str, message: object) -> None:
        told = message if isinstance(message, dict) else {}
        if "recall" not in told:
            for freed in self._waiting.get(tenant, ()):
                freed.set()
        if "recall" in told:
            self.listener(tenant, "recalled", told.get("user_id"))
        elif "freed" in told:
            self.listener(tenant, "freed", None)
        elif "adjusted" in told:
            self.listener(tenant, "adjusted", None)
        else:
            self._changes[tenant] += 1
            self._calendars.pop(tenant, None)
            self.listener(tenant, "changed", None)
