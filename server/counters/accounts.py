"""The accounts that this process serves, and the messages on their channels.

Each account has one subscription, made before the account is read, so that no change falls between
the two. A message carries the account's version. If a version is missing, or the connection to
Redis was lost for a while, the account is read again.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import structlog

from protocol.metering.projection import AccountProjection
from server import limits as server_limits
from server.counters.channel_reader import ChannelReader
from server.counters.loading import Loader
from server.runtime.isolation import isolated
from server.runtime.turns import Turns
from server.runtime.waiting import Locks
from storage import limits as storage_limits
from storage.redis.encoding import burn_line_from
from storage.redis.live import AccountChange, Live, LiveError
from storage.tasks import end

log = structlog.get_logger()

AccountKey = tuple[str, str]
"""Tenant and account id."""
Listener = Callable[["Account", dict[str, Any]], None]


class EventCounts(NamedTuple):
    """How many messages of each sort concerned all sessions of an account.

    A session that has handled fewer handles all the missed ones at once: hundreds of messages are
    one look.
    """

    changes: int = 0
    frees: int = 0
    recalls: int = 0
    breaks: int = 0
    """Losses of the connection: messages are lost."""


class Account:
    """One account on this process: its projection, and its users here."""

    __slots__ = (
        "event_counts",
        "is_looked_at",
        "listeners",
        "local_sessions",
        "projection",
        "read_at",
        "users",
    )

    def __init__(self, tenant: str, account_id: str) -> None:
        self.projection = AccountProjection(tenant, account_id)
        self.users = 0
        """Number of sessions, sockets and requests here that need the account."""
        self.listeners: dict[Listener, None] = {}
        """Called with each message: for instance sockets that show the balance."""
        self.local_sessions: dict[str, Any] = {}
        """The sessions here that burn its credits (``server.sessions.local_session``), by id."""
        self.event_counts = EventCounts()
        self.is_looked_at = False
        """Its sessions are about to handle new events."""
        self.read_at = -math.inf
        """When it was last read again, by the loop's clock, in seconds."""


class Accounts:
    """The accounts of a process."""

    def __init__(self, live: Live, loader: Loader, turns: Turns) -> None:
        self.live = live
        self.loader = loader
        self.turns = turns
        self.listener: Listener = lambda *_: None
        """Gets each message of an account's channel, once the account's figures are up to date."""
        self.looker: Callable[[Account], None] = lambda _: None
        """Has the sessions of an account look at its figures."""
        self._accounts: dict[AccountKey, Account] = {}
        self._locks = Locks()
        self.channels = ChannelReader(live.redis)
        self._tasks: set[asyncio.Task[None]] = set()
        self._unread: dict[Account, list[dict[str, Any]]] = {}
        """Accounts that are about to be read again, and the messages to handle after that."""

    async def start(self) -> None:
        """Begins to listen."""
        self.channels.start()

    async def stop(self) -> None:
        """Stops listening."""
        await self.channels.stop()
        await end(self._tasks)

    def get(self, tenant: str, account_id: str) -> Account | None:
        """The account, if this process serves it."""
        return self._accounts.get((tenant, account_id))

    def __iter__(self) -> Iterator[Account]:
        return iter(list(self._accounts.values()))

    async def open(self, tenant: str, account_id: str) -> Account:
        """The account, current and subscribed; give it back with ``close``.

        Raises :class:`LiveError` or ``ServiceError`` if Redis or Postgres does not answer.
        """
        key = (tenant, account_id)
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(tenant, account_id)
        account.users += 1
        try:
            async with self._locks.hold(key):
                if account.projection.version < 0:
                    channel = self.live.keys.channel(tenant, account_id)
                    await self.channels.subscribe(channel, partial(self._told, account))
                    await self.read(account)
        except BaseException:
            await self.close(account)
            raise
        return account

    async def close(self, account: Account) -> None:
        """Gives an account back; the last user ends the subscription."""
        account.users -= 1
        projection = account.projection
        if account.users == 0:
            self._accounts.pop((projection.tenant, projection.account_id), None)
            channel = self.live.keys.channel(projection.tenant, projection.account_id)
            await self.channels.unsubscribe(channel)

    async def read(self, account: Account) -> None:
        """Reads the account from Redis; a cold one from the ledger."""
        projection = account.projection
        figures = await self.live.account(projection.tenant, projection.account_id)
        if figures is None:
            await self.loader.account(projection.tenant, projection.account_id)
            figures = await self.live.account(projection.tenant, projection.account_id)
        if figures is None:
            raise LiveError("Redis does not keep the account")
        projection.replace(
            figures.version, figures.gross_micros, figures.reserved_micros, figures.lines
        )

    def changed(
        self, account: Account, change: AccountChange, session_id: str | None, line: Any
    ) -> None:
        """Applies a change that this process made itself.

        The account's other sessions here look at it in the next turn: its message may never come.
        """
        before = account.projection.version
        if not account.projection.apply(
            change.version, change.gross_micros, change.reserved_micros, session_id, line
        ):
            self._read_later(account)
        elif account.projection.version > before:
            asyncio.get_running_loop().call_soon(self.looker, account)

    def doubt(self, account: Account) -> None:
        """Reads an account again soon: Redis may have lost changes.

        The next change may have a version that this process has seen already.
        """
        self._read_later(account)

    @property
    def busy(self) -> bool:
        """Whether an account is being read again."""
        return bool(self._tasks)

    async def idle(self) -> None:
        """Waits until no account is being read again."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _told(self, account: Account, message: dict[str, Any]) -> None:
        if message.get("reload"):
            self._read_later(account, message if "again" in message else None)
            return
        if message.get("bumped"):
            gross, reserved, version = message["account"]
            message["known"] = int(version) <= account.projection.version
            line = message.get("line")
            taken = account.projection.apply(
                int(version),
                int(gross),
                int(reserved),
                message.get("session_id"),
                burn_line_from(line) if line else None,
            )
            if not taken:
                self._read_later(account, message)
                return
        self.listener(account, message)

    def _read_later(
        self, account: Account, message: dict[str, Any] | None = None, failures: int = 0
    ) -> None:
        """Reads the account again, until success or its last user leaves.

        One read serves all requests that come before it begins.
        """
        waiting = self._unread.get(account)
        if waiting is not None:
            if message is not None and len(waiting) < storage_limits.MESSAGES_WAITING_MAX:
                waiting.append(message)
            elif {} not in waiting:
                waiting.append({})
            return
        self._unread[account] = [message or {}]
        self._run(self._read_unread(account, failures))

    async def _read_unread(self, account: Account, failures: int) -> None:
        clock = asyncio.get_running_loop().time
        pause_s = account.read_at + server_limits.ACCOUNT_READ_PAUSE_MS / 1000 - clock()
        if failures:
            pause_s = min(
                server_limits.ACCOUNT_RETRY_S_MAX,
                server_limits.ACCOUNT_RETRY_S_MIN * 2 ** min(failures - 1, 10),
            )
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        projection = account.projection
        key = (projection.tenant, projection.account_id)
        messages: list[dict[str, Any]] = []
        try:
            async with self._locks.hold(key):
                messages = self._unread.pop(account)
                if self._accounts.get(key) is not account:
                    return
                await self.read(account)
                account.read_at = clock()
        except Exception as error:
            if not failures:
                log.warning("account_not_read", account=key[1], error=str(error))
            if account not in self._unread:
                self._unread[account] = messages
                self._run(self._read_unread(account, failures + 1))
            else:
                self._unread[account][:0] = messages
            return
        for message in messages:
            await self.turns.take(account)
            isolated("message", self.listener, account, message)

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
