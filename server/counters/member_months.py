"""The months of the members who have sockets here.

Each member has one subscription, whose messages have the newest figures of the month. A message of
the same member replaces an older one that is not sent yet, so a member whose hundred sessions
complete a minute together gets a few messages, not a hundred. A member with many sockets is served
in units of one socket, in turn with all other customers.

A month is read where no message brings it: for a new socket, after a lost connection, after a
change of limits, and when a month ends. A bounded number of reads is under way at once, and the
tenants take turns with one read each.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Iterator
from functools import partial
from typing import Any, Protocol

import structlog

from protocol import limits
from protocol.metering.quota import month_after
from protocol.metering.terms import MINUTE_MS
from protocol.wire import messages
from protocol.wire.codec import encode
from server import limits as server_limits
from server.counters.accounts import Accounts
from server.counters.loading import Loader
from server.counters.tenants import LimitEvent, Tenants
from server.runtime.clock import Clock
from server.runtime.isolation import isolated
from server.runtime.round_robin import RoundRobin
from server.runtime.timers import Timer, Timers
from server.runtime.turns import Turns
from server.runtime.waiting import Locks
from server.transport.frames import text_frame
from storage.redis.figures import MonthFigures, month_figures_of
from storage.redis.live import Live, LiveError
from storage.tasks import end

log = structlog.get_logger()


class UsageListener(Protocol):
    """A socket that is shown its member's month."""

    def show_usage(self, frame: bytes) -> None:
        """Sends the frame, or keeps it in place of an older one."""


class Member:
    """A user with sockets here, and the user's month."""

    __slots__ = (
        "due", "failures", "figures", "frame", "is_read_due", "is_served", "is_telling",
        "listeners", "org_id", "tenant", "timer", "user_id",
    )  # fmt: skip

    def __init__(self, tenant: str, org_id: str | None, user_id: str) -> None:
        self.tenant = tenant
        self.org_id = org_id
        self.user_id = user_id
        self.listeners: dict[UsageListener, None] = {}
        self.due: dict[UsageListener, None] = {}
        """The sockets that have not been shown the newest figures."""
        self.figures: MonthFigures | None = None
        self.frame = b""
        """The message with the newest figures."""
        self.is_served = False
        """The calendar and the subscription are there."""
        self.is_read_due = False
        self.is_telling = False
        self.failures = 0
        """Attempts in a row that failed."""
        self.timer: Timer | None = None
        """Due at the next attempt, or after the end of the month."""

    @property
    def key(self) -> tuple[str, str]:
        """The member's name across tenants."""
        return self.tenant, self.user_id


class MemberMonths:
    """The members with sockets here."""

    def __init__(
        self,
        live: Live,
        loader: Loader,
        tenants: Tenants,
        accounts: Accounts,
        clock: Clock,
        timers: Timers,
        turns: Turns,
        *,
        counts: bool,
    ) -> None:
        self.live = live
        self.loader = loader
        self.tenants = tenants
        self.channels = accounts.channels
        self.clock = clock
        self.timers = timers
        self.turns = turns
        self.counts = counts
        """A kind of the rate card counts minutes, so that members have months."""
        self._members: dict[tuple[str, str], Member] = {}
        self._by_tenant: dict[str, dict[Member, None]] = {}
        self._locks = Locks()
        self._unread = RoundRobin[Member]()
        """Members whose month is to be read, each once."""
        self._reads = 0
        """Tasks that read."""
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._members)

    # --- Sockets -----------------------------------------------------------------------

    def open(
        self, tenant: str, org_id: str | None, user_id: str, listener: UsageListener
    ) -> Member | None:
        """Shows a socket its member's month until ``close``.

        Returns at once; the first figures follow when they are read. None: no kind counts minutes.
        """
        if not self.counts:
            return None
        member = self._members.get((tenant, user_id))
        if member is None:
            member = self._members[tenant, user_id] = Member(tenant, org_id, user_id)
            self._by_tenant.setdefault(tenant, {})[member] = None
            self._run(self._serve(member))
        elif member.is_served:
            self._read_soon(member)
        member.listeners[listener] = member.due[listener] = None
        return member

    def close(self, member: Member, listener: UsageListener) -> None:
        """Ends that; the last socket ends the subscription."""
        member.listeners.pop(listener, None)
        member.due.pop(listener, None)
        if member.listeners or self._members.get(member.key) is not member:
            return
        del self._members[member.key]
        of_tenant = self._by_tenant[member.tenant]
        del of_tenant[member]
        if not of_tenant:
            del self._by_tenant[member.tenant]
        if member.timer is not None:
            member.timer.cancel()
        self._run(self._leave(member))

    async def stop(self) -> None:
        """Ends all reads."""
        await end(self._tasks)

    @property
    def busy(self) -> bool:
        """Whether a month is being read, or a subscription changed."""
        return bool(self._tasks)

    # --- What changes ------------------------------------------------------------------

    def limits_changed(self, tenant: str, change: LimitEvent, _: str | None = None) -> None:
        """Reads a tenant's months again after a change of limits."""
        if change == "changed" and tenant in self._by_tenant:
            self.turns.run((self, tenant), self._read_all(tenant))

    def _read_all(self, tenant: str) -> Iterator[None]:
        for member in list(self._by_tenant.get(tenant, ())):
            self._read_soon(member)
            yield

    def _told(self, member: Member, message: dict[str, Any]) -> None:
        """Takes a message on the member's channel.

        It has figures, or says that they have changed.
        """
        if "as_of" in message:
            self._take(member, month_figures_of(message))
        else:
            self._read_soon(member)

    def _take(self, member: Member, figures: MonthFigures) -> None:
        """Takes figures, unless newer ones came first, and shows them."""
        if not _is_overtaken(figures, member.figures):
            member.figures = figures
            frame = text_frame(encode(_message(member, figures)))
            if frame != member.frame:
                member.frame = frame
                member.due = dict(member.listeners)
        if member.due and not member.is_telling:
            member.is_telling = True
            self.turns.run((self, member.key), self._tell(member))

    @staticmethod
    def _tell(member: Member) -> Iterator[None]:
        while member.due:
            listener = next(iter(member.due))
            del member.due[listener]
            isolated("usage", listener.show_usage, member.frame)
            yield
        member.is_telling = False

    # --- Reading -----------------------------------------------------------------------

    async def _serve(self, member: Member) -> None:
        """Begins to listen, and reads the month."""
        async with self._locks.hold(member.key):
            if self._members.get(member.key) is not member or member.is_served:
                return
            try:
                await self.tenants.enter(member)
                try:
                    channel = self.live.keys.usage_channel(*member.key)
                    await self.channels.subscribe(channel, partial(self._told, member))
                except BaseException:
                    await self.tenants.leave(member)
                    raise
            except Exception as error:
                self._try_later(member, error)
                return
            member.is_served = True
        self._read_soon(member)

    async def _leave(self, member: Member) -> None:
        """Ends the subscription, unless the member has come back meanwhile."""
        async with self._locks.hold(member.key):
            if not member.is_served:
                return
            member.is_served = False
            successor = self._members.get(member.key)
            if successor is None or not successor.is_served:
                await self.channels.unsubscribe(self.live.keys.usage_channel(*member.key))
            await self.tenants.leave(member)

    def _read_soon(self, member: Member) -> None:
        if member.is_read_due or not member.listeners:
            return
        member.is_read_due = True
        self._unread.append(member.tenant, member)
        if self._reads < server_limits.USAGE_READS_AT_ONCE_MAX:
            self._reads += 1
            self._run(self._read_each())

    async def _read_each(self) -> None:
        try:
            while self._unread:
                member = self._unread.popleft()
                member.is_read_due = False
                if member.listeners and member.is_served:
                    await self._read(member)
        finally:
            self._reads -= 1

    async def _read(self, member: Member) -> None:
        try:
            days = await self.tenants.calendar_of(member)
            month = days.month(self.clock.now())
            figures = await self.live.usage(*member.key, month)
            if figures is None:
                await self.loader.months(*member.key)
                figures = await self.live.usage(*member.key, month)
            if figures is None:
                raise LiveError("Redis does not keep the month")
        except Exception as error:
            self._try_later(member, error)
            return
        member.failures = 0
        self._take(member, figures)
        # The members do not all read at the instant at which their month ends.
        spread_ms = zlib.crc32(member.user_id.encode()) % server_limits.USAGE_MONTH_SPREAD_MS
        self._time(member, days.start_at(month_after(month)) + spread_ms)

    def _try_later(self, member: Member, error: Exception) -> None:
        """Tries again after a wait that doubles, while the member has sockets."""
        if not member.failures:
            log.warning("usage_not_read", user=member.user_id, error=str(error))
        member.failures += 1
        wait_s = min(
            server_limits.ACCOUNT_RETRY_S_MAX,
            server_limits.ACCOUNT_RETRY_S_MIN * 2 ** min(member.failures - 1, 10),
        )
        self._time(member, self.clock.now() + round(1_000 * wait_s))

    def _time(self, member: Member, at: int) -> None:
        if member.timer is not None:
            member.timer.cancel()
        member.timer = None
        if member.listeners:
            member.timer = self.timers.deadline(at, partial(self._due, member), member.key)

    def _due(self, member: Member, _: int) -> None:
        member.timer = None
        if member.is_served:
            self._read_soon(member)
        else:
            self._run(self._serve(member))

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_overtaken(figures: MonthFigures, known: MonthFigures | None) -> bool:
    """Whether newer figures came first, over another connection.

    Figures that are much older than the known ones come from a Redis whose clock was set back.
    """
    behind_us = known.as_of_us - figures.as_of_us if known is not None else 0
    return 0 < behind_us <= limits.REDIS_TIMEOUT_MS * 1_000


def _message(member: Member, figures: MonthFigures) -> messages.MonthUsage:
    has_org = member.org_id is not None
    return messages.MonthUsage(
        month=figures.month,
        member_used_ms=max(0, figures.member_minutes) * MINUTE_MS,
        member_limit_ms=_ms(figures.member_limit_minutes),
        org_used_ms=max(0, figures.org_minutes) * MINUTE_MS if has_org else None,
        org_limit_ms=_ms(figures.org_limit_minutes) if has_org else None,
    )


def _ms(minutes: int | None) -> int | None:
    return None if minutes is None else minutes * MINUTE_MS
