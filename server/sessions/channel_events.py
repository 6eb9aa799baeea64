"""News of the sessions here: what other processes do, and what changes for many at once.

A session hears of other processes' steps on its account's channel, and of changed limits on its
tenant's. What concerns many sessions reaches a bounded number of them in each turn of the loop.
"""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import structlog

from protocol.metering.effects import RemoteStep
from protocol.metering.session import Identity, session_key
from protocol.metering.states import Event
from protocol.wire.errors import ProtocolError
from server import limits as server_limits
from server.counters.accounts import Account, EventCounts
from server.counters.recall import may_free
from server.counters.tenants import LimitEvent
from server.runtime.isolation import isolated
from server.sessions.local_session import LocalSession
from server.sessions.session_table import SessionTable, isolated_session
from server.sessions.step_pipeline import retry_after_ms
from storage.redis.encoding import remote_step_of
from storage.redis.live import FoundSession, LiveError

log = structlog.get_logger()


class ChannelEvents:
    """Tells the local sessions of a process what concerns them."""

    def __init__(self, registry: SessionTable) -> None:
        self.registry = registry
        self._limits_due: set[tuple[str, LimitEvent, str | None]] = set()
        """Changes of limits that a tenant's sessions are about to hear of."""

    def received(self, account: Account, message: dict[str, Any]) -> None:
        """Something was told on an account's channel: by another process, or by this one."""
        if message.keys() & {"farewell", "prove", "proven"}:
            self._told_of_proof(account.projection.tenant, message)
            return
        concerned = message["session_id"] if message.get("moved") else message.get("stop")
        concerned = message.get("again", concerned)
        told = account.local_sessions.get(concerned) if concerned else None
        if told is not None:
            isolated_session(told, self._tell, told, message)
        # A recall frees nothing yet: only what changed the account is worth a claim.
        is_change = bool(message.get("bumped") or not message.keys() & {"recall", "stop"})
        before = account.event_counts
        account.event_counts = EventCounts(
            changes=before.changes + is_change,
            frees=before.frees + (is_change and may_free(message)),
            recalls=before.recalls + bool(message.get("recall")),
            breaks=before.breaks + (not message or "reload" in message),
        )
        if account.local_sessions and not account.is_looked_at:
            self._look_soon(account)
        if account.listeners:
            self.registry.turns.run((account, "listeners"), self._tell_listeners(account, message))

    def _tell(self, local: LocalSession, message: dict[str, Any]) -> None:
        """Tells a session what concerns it alone."""
        now_ms = self.registry.clock.now()
        if "again" in message:
            if message["node"] != self.registry.node:
                self.registry.run(self.read_again(local))
            return
        if _is_only_observed(local) and _misses(local, message):
            self.registry.run(self._catch_up(local))  # no step from here is answered with that
            return
        if message.get("moved"):
            remote = remote_step_of(message)
            if local.meter.is_other(remote):
                self.registry.run(self._decide_fork(local))
            if not _is_own(local, remote, message["node"]):
                local.meter.apply_remote(remote, now_ms)
            local.drain()
            self.registry.release(local)
        elif local.meter.sockets:
            # Asked for on a process without the client's sockets; here its last seconds are proven.
            local.meter.request(Event.STOP, now_ms, None, message["reason"])
            local.drain()

    def _look_at_all(self, account: Account) -> Iterator[None]:
        """Has every session of an account hear of what it has not heard of, one in each unit,
        until there is none. A message that comes meanwhile reaches the sessions that are still
        to be looked at; the others are looked at once more."""
        told: EventCounts | None = None
        while told != account.event_counts:
            if told is not None and len(account.local_sessions) > server_limits.UNITS_PER_TURN:
                # Hundreds of changes come together: again when most of them are there.
                at = self.registry.clock.now() + server_limits.ACCOUNT_LOOK_PAUSE_MS
                self.registry.timers.deadline(at, lambda _: self._look_soon(account), account)
                return
            told = account.event_counts
            local_sessions: list[LocalSession] = list(account.local_sessions.values())
            for local in local_sessions:
                if (
                    local.seen_counts == account.event_counts
                    or local.key not in self.registry.local_sessions
                ):
                    continue
                heard, local.seen_counts = local.seen_counts, account.event_counts
                isolated_session(local, self._look_at, local, heard)
                yield
        account.is_looked_at = False

    def _look_soon(self, account: Account) -> None:
        account.is_looked_at = True
        self.registry.turns.run(account, self._look_at_all(account))

    def _look_at(self, local: LocalSession, heard: EventCounts) -> None:
        now_ms, told = self.registry.clock.now(), local.seen_counts
        if told.breaks > heard.breaks and _is_only_observed(local):
            self.registry.run(self._catch_up(local))
            return
        if told.recalls > heard.recalls and local.meter.recall(now_ms):
            self.registry.metrics.recalls.inc()
        if told.changes > heard.changes:
            local.meter.changed(now_ms)
            if told.frees > heard.frees:
                local.freed()
        local.drain()

    @staticmethod
    def _tell_listeners(account: Account, message: dict[str, Any]) -> Iterator[None]:
        for told in list(account.listeners):
            if told in account.listeners:
                isolated("listener", told, account, message)
                yield

    def _told_of_proof(self, tenant: str, message: dict[str, Any]) -> None:
        """Something was told of what a client has proven; it changes no figure of the account."""
        if message.get("node") == self.registry.node:
            return  # its own question, or answer
        for told in ("farewell", "prove", "proven"):
            local = self.registry.local_sessions.get(session_key(tenant, message.get(told, "")))
            if local is None:
                continue
            if told == "farewell":
                local.service.farewell(message["at"])
            elif told == "prove":
                local.service.wanted_elsewhere(
                    self.registry.clock.now(), at_once="came_at" in message
                )
            else:
                local.service.proven_elsewhere(
                    message["until"],
                    self.registry.clock.now(),
                    message["at"],
                    message.get("came_at"),
                )

    async def _catch_up(self, local: LocalSession) -> None:
        """Shows observers what was not heard here, until that succeeds or the local session is
        cleared."""
        identity = local.meter.session.identity
        for failures in itertools.count(1):
            if self.registry.local_sessions.get(local.key) is not local or not _is_only_observed(
                local
            ):
                return
            try:
                found = await self._read(identity)
                break
            except LiveError as error:
                log.warning("session_not_read", session=local.key, error=str(error))
                await asyncio.sleep(retry_after_ms(failures) / 1000)
        if self.registry.local_sessions.get(local.key) is not local:
            return
        now_ms = self.registry.clock.now()
        if found is not None:
            local.meter.read(found.session, found.notices, now_ms)
        local.meter.changed(now_ms)
        local.drain()

    async def _read(self, identity: Identity) -> FoundSession | None:
        """The session as Redis has it; raises ``LiveError``."""
        return await self.registry.live.attach(identity.tenant, identity.session_id, read_only=True)

    async def _decide_fork(self, local: LocalSession) -> None:
        """Another process has made the step of a copy that lacks the newest one from here."""
        if self.registry.pipeline.restore is None or _is_only_observed(local):
            await self.read_again(local)
            return
        try:
            await self.registry.pipeline.restore(local.meter.session)
        except (LiveError, ProtocolError) as error:
            log.warning("fork_not_decided", session=local.key, error=str(error))

    async def read_again(self, local: LocalSession) -> None:
        """Takes a session as Redis has it, which was put back there: steps that were made here
        of an older copy may not count. Without an answer the next step hears of it."""
        identity = local.meter.session.identity
        try:
            found = await self._read(identity)
        except LiveError as error:
            log.warning("session_not_read", session=local.key, error=str(error))
            return
        if found is not None and self.registry.local_sessions.get(local.key) is local:
            local.meter.read(found.session, found.notices, self.registry.clock.now())
            local.drain()

    def limits_changed(self, tenant: str, change: LimitEvent, user_id: str | None = None) -> None:
        """A limit of the month was changed, somebody lacks minutes, or some were given back."""
        due = (tenant, change, user_id)
        if due not in self._limits_due:
            self._limits_due.add(due)
            self.registry.turns.run(tenant, self._refresh_all(*due))
        if change == "changed":
            self.registry.run(self.registry.read_calendar(tenant))

    def _refresh_all(self, tenant: str, change: LimitEvent, user_id: str | None) -> Iterator[None]:
        # Another change from here on begins a refresh of its own, behind this one.
        self._limits_due.discard((tenant, change, user_id))
        for local in self.registry.local_sessions_of(tenant):
            identity = local.meter.session.identity
            final = local.meter.session.grant.final or local.meter.kept_open
            if change == "recalled":
                is_theirs = user_id is None or identity.user_id == user_id
                concerned = is_theirs and identity.terms.counts_minutes
            elif change == "freed":
                concerned = local.waits_for_holders or final in {"member_minutes", "org_minutes"}
            else:
                concerned = True
            if concerned and self.registry.local_sessions.get(local.key) is local:
                isolated_session(local, self._refresh, local, change)
                yield

    def _refresh(self, local: LocalSession, change: LimitEvent) -> None:
        if change == "recalled":
            if local.meter.recall(self.registry.clock.now(), minutes=True):
                self.registry.metrics.recalls.inc()
        else:
            local.freed()
            local.meter.refresh(self.registry.clock.now())
        local.drain()


def _is_only_observed(local: LocalSession) -> bool:
    """Whether sockets here see a session that only other processes keep alive."""
    return bool(local.subscribers) and not local.meter.sockets


def _misses(local: LocalSession, message: dict[str, Any]) -> bool:
    """Whether a message to a session shows that something was told of it before that was not
    heard here."""
    return bool(message.get("moved")) and local.meter.misses(remote_step_of(message))


def _is_own(local: LocalSession, remote: RemoteStep, node: str) -> bool:
    """Whether a remote step is the one that the local session has asked for: its answer is on its
    way, and says to whom it is an answer."""
    asked, version = local.meter.asked, remote.session.standing.version
    return asked is not None and node == local.node and version == asked.standing.version
