"""The tenants served here: their calendars, and changes of limits."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, Protocol

from server.counters.accounts import Accounts
from server.counters.calendars import Calendar, calendar
from server.counters.loading import Loader
from server.runtime.isolation import isolated
from storage.redis.live import Live

LimitEvent = Literal["recalled", "freed", "adjusted", "changed"]
"""An event of the month's limits.

Minutes that are merely held are recalled, minutes were given back, a month was corrected, or limits
or the time zone changed.
"""
Listener = Callable[[str, LimitEvent, str | None], None]
"""Called with the tenant, the event, and the user concerned; None: all users."""


class OfTenant(Protocol):
    """A session, or a member: anything of a tenant's user."""

    @property
    def tenant(self) -> str:
        """The tenant."""

    @property
    def org_id(self) -> str | None:
        """The organisation; None for a user without one."""

    @property
    def user_id(self) -> str:
        """The user."""


class Tenants:
    """The tenants of a process, with each one's number of sessions."""

    def __init__(self, live: Live, loader: Loader, accounts: Accounts) -> None:
        self.live = live
        self.loader = loader
        self.accounts = accounts
        self.listeners: list[Listener] = []
        """Called when limits change."""
        self._sessions: Counter[str] = Counter()
        self._calendars: dict[str, Calendar] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}
        """Events of those that wait for minutes that sessions hold, by the tenant."""
        self._changes: Counter[str] = Counter()
        """How often each tenant's limits, or its time zone, changed while it was served."""

    async def enter(self, identity: OfTenant) -> Calendar:
        """Begins to serve a session of a tenant; returns the session's calendar.

        Only an organisation has a time zone, and limits whose changes need a subscription.
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

    async def calendar_of(self, identity: OfTenant) -> Calendar:
        """The calendar of a session, kept while its tenant is served here."""
        if identity.org_id is None:
            return calendar("UTC")
        tenant = identity.tenant
        known = self._calendars.get(tenant)
        while known is None:
            changes = self._changes[tenant]
            found = await self.loader.member(tenant, identity.user_id)
            # A calendar that was read before the newest change is read again.
            if changes == self._changes[tenant]:
                known = calendar(found.timezone)
                if self._sessions[tenant]:
                    self._calendars[tenant] = known
        return known

    def is_current(self, identity: OfTenant, days: Calendar) -> bool:
        """Whether ``days`` is still the calendar that the session counts by."""
        return identity.org_id is None or self._calendars.get(identity.tenant) is days

    async def leave(self, identity: OfTenant) -> None:
        """Ends the service of a session of a tenant."""
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
    async def listening(self, identity: OfTenant) -> AsyncIterator[asyncio.Event]:
        """Listens to a tenant's limits.

        The event is set when a month may have more left.
        """
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
            self._tell(tenant, "recalled", told.get("user_id"))
        elif "freed" in told:
            self._tell(tenant, "freed", None)
        elif "adjusted" in told:
            self._tell(tenant, "adjusted", None)
        else:
            self._changes[tenant] += 1
            self._calendars.pop(tenant, None)
            self._tell(tenant, "changed", None)

    def _tell(self, tenant: str, event: LimitEvent, user_id: str | None) -> None:
        for listener in self.listeners:
            isolated("limits", listener, tenant, event, user_id)
