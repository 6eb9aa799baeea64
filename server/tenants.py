"""The tenants that this process serves: their calendars, and the news of their limits."""

from collections import Counter
from collections.abc import Callable

from protocol.session import Identity
from server.accounts import Accounts
from server.loading import Calendar, Loader, calendar
from storage.live import Live

Listener = Callable[[str, bool], None]
"""Told the tenant, and whether only held minutes were given back (or limits changed)."""


class Tenants:
    """The tenants of a process, by the number of sessions that it serves of each."""

    def __init__(self, live: Live, loader: Loader, accounts: Accounts, listener: Listener) -> None:
        self.live = live
        self.loader = loader
        self.accounts = accounts
        self._listener = listener
        self._sessions: Counter[str] = Counter()
        self._calendars: dict[str, Calendar] = {}

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
                await self.accounts.subscribe(
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
        known = self._calendars.get(identity.tenant)
        if known is None:
            found = await self.loader.member(identity.tenant, identity.user_id)
            known = calendar(found.timezone)
            if self._sessions[identity.tenant]:
                self._calendars[identity.tenant] = known
        return known

    async def leave(self, identity: Identity) -> None:
        """A session of a tenant is not served any more."""
        tenant = identity.tenant
        self._sessions[tenant] -= 1
        if self._sessions[tenant] > 0:
            return
        del self._sessions[tenant]
        self._calendars.pop(tenant, None)
        if identity.org_id is not None:
            await self.accounts.unsubscribe(self.live.keys.limits_channel(tenant))

    def _changed(self, tenant: str, message: object) -> None:
        freed = isinstance(message, dict) and "freed" in message
        if not freed:
            self._calendars.pop(tenant, None)
        self._listener(tenant, freed)
