"""A server process: its parts, their start and their stop."""

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable

import structlog

from protocol.rate_card import RateCard
from server import limits as server_limits
from server.access.bad_guesses import BadGuesses
from server.access.credentials import Authenticator
from server.access.rate_limits import UserMessages, UserPosts, UserRequests, UserStarts
from server.counters.loading import Loader
from server.counters.member_months import MemberMonths
from server.credits.credit_ledger import CreditLedger
from server.recovery.engine_health import EngineHealth
from server.recovery.membership import Membership
from server.recovery.orphans import Orphans
from server.recovery.reassertion import Recovery
from server.runtime.clock import ClusterClock
from server.runtime.isolation import isolated
from server.runtime.metrics import Metrics
from server.runtime.origins import Origins
from server.runtime.settings import Settings
from server.runtime.stall_detector import StallDetector
from server.runtime.timers import Timers
from server.sessions.registry import SessionRegistry
from server.transport.connection_limiter import ConnectionLimiter
from server.transport.open_sockets import Sockets
from storage.postgres.records import Records, UnavailableError
from storage.redis.keys import Keys
from storage.redis.live import Live, LiveError, connect
from storage.tasks import end

log = structlog.get_logger()


class Process:
    """All parts that serve sockets and requests in one process."""

    def __init__(
        self,
        settings: Settings,
        rates: RateCard,
        records: Records,
        connections_max: int = server_limits.DESCRIPTORS_WANTED,
    ) -> None:
        assert settings.redis_url is not None
        self.settings = settings
        self.rates = rates
        self.records = records
        self.node = f"node-{secrets.token_hex(6)}"
        """This process's name, which clients see: it reveals nothing about the host."""
        self.metrics = Metrics()
        self.clock = ClusterClock()
        self.timers = Timers(self.clock)
        self.redis = connect(settings.redis_url)
        self.live = Live(self.redis, Keys(settings.partitions), self.node)
        self.live.times.reading = self.clock.reading
        self.loader = Loader(self.live, records, self.clock)
        self.registry = SessionRegistry(
            self.live, self.loader, self.clock, self.timers, self.metrics, settings.uncovered_ms
        )
        self.member_months = MemberMonths(
            self.live,
            self.loader,
            self.registry.tenants,
            self.registry.accounts,
            self.clock,
            self.timers,
            self.registry.turns,
            counts=any(terms.counts_minutes for terms in rates.kinds.values()),
        )
        self.registry.tenants.listeners.append(self.member_months.limits_changed)
        self.recovery = Recovery(self.registry, self.loader, records, self.clock)
        self.membership = Membership(
            self.live, Orphans(self.registry, self.live), self.clock, self.recovery
        )
        self.authenticator = Authenticator(settings)
        self.ledger = CreditLedger(
            self.live, records, self.clock, self.registry.accounts, rates, self.metrics
        )
        self.sockets = Sockets(self.metrics)
        self.stall_detector = StallDetector(self.clock, self._resumed, self.membership.beat_first)
        self.bad_guesses = BadGuesses(self.clock)
        self.requests = UserRequests(self.clock)
        self.messages = UserMessages(self.clock)
        self.posts = UserPosts(self.clock)
        self.starts = UserStarts(self.clock)
        self.origins = Origins(settings.origins, self.metrics)
        self.limiter = ConnectionLimiter(self.metrics, connections_max)
        self.engine_health = EngineHealth(self)
        self.draining = False
        """The process is about to stop and is no longer ready."""
        self.at_drain: list[Callable[[], None]] = []
        """Called when a drain sends clients away; ends other signs of life of clients, such as
        heartbeats."""
        self._started = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connects, sets the clock, and begins to serve.

        The process also begins to take over what dead processes left. A second call does nothing.
        Raises ``LiveError`` where Redis is away; Postgres may be away.
        """
        if self._started:
            return
        self._started = True
        await self.live.prepare()
        await self.authenticator.prepare()
        await self.registry.accounts.start()
        self.timers.start()
        await self.membership.start()
        self.stall_detector.start()
        try:
            await self.ledger.apply_inbox()
        except (LiveError, UnavailableError) as error:
            log.warning("inbox_not_read", error=str(error))  # the ledger's task tries again
        self._tasks = [
            asyncio.create_task(self.authenticator.run()),
            asyncio.create_task(self.ledger.run()),
        ]
        log.info("process_started", node=self.node, host=socket.gethostname(), pid=os.getpid())

    def _resumed(self) -> None:
        self.registry.turns.run(self.sockets, self.sockets.probe())

    @staticmethod
    def wall_ms() -> int:
        """Wall time in epoch milliseconds, in which tokens expire."""
        return time.time_ns() // 1_000_000

    async def redis_answers(self) -> bool:
        """Whether Redis answers now."""
        try:
            await self.membership.beat()
            await self.live.ping()
        except LiveError:
            return False
        return True

    async def outbox(self) -> tuple[int, int]:
        """Outbox entries that wait, and the oldest's age in milliseconds."""
        entries, oldest_at = await self.live.outbox()
        redis_ms = self.clock.now() + round(self.clock.stepped_ms)
        return entries, max(0, redis_ms - oldest_at) if oldest_at else 0

    async def drain(self) -> None:
        """Sends the clients away, and waits until their sessions are settled.

        Takes at most ``DRAIN_SPREAD_MS``, ``DRAIN_LEFT_MS`` and ``SETTLE_MS`` together. With few
        clients, all of which obey, the drain ends at once.
        """
        self.draining = True
        log.info("draining", sockets=len(self.sockets.connections))
        await self.sockets.drain()
        for drain in self.at_drain:
            isolated("drain", drain)
        await self._settle()

    async def _settle(self) -> None:
        """Waits, a bounded time, until every socket has left its sessions."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(server_limits.SETTLE_MS / 1000):
                await self.sockets.gone()
                await self.registry.idle()

    async def stop(self) -> None:
        """Stops all parts; the caller has closed the sockets before."""
        await self._settle()
        await end(self._tasks)
        await self.membership.stop()
        self.stall_detector.stop()
        self.timers.stop()
        await self.recovery.stop()
        await self.member_months.stop()
        await self.loader.stop()
        await self.registry.accounts.stop()
        await self.redis.aclose()
        log.info("process_stopped", node=self.node)
