"""Channel events: what local sessions hear of other processes over Pub/Sub.

A session hears of other processes' steps on its account's channel, and of changed limits on its
tenant's channel. An event that concerns many sessions reaches a bounded number of them in each turn
of the event loop.
"""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import structlog

from protocol import limits
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
    """Passes messages of the channels to the local sessions that they concern."""

    def __init__(self, registry: SessionTable) -> None:
        self.registry = registry
        registry.accounts.listener = self.received
        registry.accounts.looker = self.changed_here
        self._limits_due: set[tuple[str, LimitEvent, str | None]] = set()
        """Changes of limits whose refresh has not begun."""
        self._limits_told: set[tuple[str, LimitEvent, str | None]] = set()
        """Changes of limits whose refresh is under way, or ended a moment ago."""

    def received(self, account: Account, message: dict[str, Any]) -> None:
        """Handles a message on an account's channel, from any process."""
        if "provided" in message:
            told_of = self.registry.provided_told
            if told_of is not None and message["node"] != self.registry.node:
                isolated("provided", told_of, account.projection.tenant, message["provided"])
            return
        if message.keys() & {"farewell", "prove", "proven"}:
            self._told_of_proof(account.projection.tenant, message)
            return
        concerned = message["session_id"] if message.get("moved") else message.get("stop")
        concerned = message.get("again", concerned)
        told = account.local_sessions.get(concerned) if concerned else None
        if told is not None:
            isolated_session(told, self._tell, told, message)
        if message.get("recall"):
            until = self.registry.clock.now() + limits.REST_YIELD_MS
            account.projection.yields_until = until
        # A recall frees nothing yet. Only a change of the account is worth a claim.
        is_change = bool(message.get("bumped") or not message.keys() & {"recall", "stop"})
        is_freeing = is_change and may_free(message)
        is_news = is_freeing or not message.get("known")
        before = account.event_counts
        account.event_counts = EventCounts(
            changes=before.changes + (is_change and is_news),
            frees=before.frees + is_freeing,
            recalls=before.recalls + bool(message.get("recall")),
            breaks=before.breaks + (not message or "reload" in message),
        )
        if account.event_counts != before:
            self._look_soon(account)
        if account.listeners:
            self.registry.turns.run((account, "listeners"), self._tell_listeners(account, message))

    def _tell(self, local: LocalSession, message: dict[str, Any]) -> None:
        """Handles a message that concerns one session alone."""
        now_ms = self.registry.clock.now()
        if "again" in message:
            if message["node"] != self.registry.node:
                self.registry.run(self.read_again(local))
            return
        if _is_only_observed(local) and _misses(local, message):
            self.registry.run(self._catch_up(local))  # no step from here brings the missed steps
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
            # Another process, without the client's sockets, wants the stop. This process has the
            # sockets, so here the last seconds are proven.
            local.meter.request(Event.STOP, now_ms, None, message["reason"])
            local.drain()

    def _look_at_all(self, account: Account) -> Iterator[None]:
        """Lets each session of an account handle new events, unit by unit.

        This ends when no session has anything left to handle. A message that arrives meanwhile
        reaches the sessions that are still to come; the others are visited once more.
        """
        told: EventCounts | None = None
        while told != account.event_counts:
            if told is not None and len(account.local_sessions) > server_limits.UNITS_PER_TURN:
                # Hundreds of changes arrive together: continue when most of them are there.
                at = self.registry.clock.now() + server_limits.ACCOUNT_LOOK_PAUSE_MS
                self.registry.timers.deadline(at, lambda _: self._look_again(account), account)
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

    def changed_here(self, account: Account) -> None:
        """Has an account's sessions look at a change of this process."""
        counts = account.event_counts
        account.event_counts = counts._replace(changes=counts.changes + 1)
        self._look_soon(account)

    def _look_soon(self, account: Account) -> None:
        if account.local_sessions and not account.is_looked_at:
            self._look_again(account)

    def _look_again(self, account: Account) -> None:
        account.is_looked_at = True
        self.registry.turns.run(account, self._look_at_all(account))

    def _look_at(self, local: LocalSession, heard: EventCounts) -> None:
        now_ms, told = self.registry.clock.now(), local.seen_counts
        if told.breaks > heard.breaks and _hears_only_here(local, now_ms):
            self.registry.run(self._catch_up(local))
            if _is_only_observed(local):
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
        """Handles a message about proofs of life.

        Such a message changes no figure of the account.
        """
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
                    is_gone=message.get("gone", False),
                )

    async def _catch_up(self, local: LocalSession) -> None:
        """Takes what this process has not heard, for observers and heartbeats.

        Tries again until the read succeeds or the local session is cleared.
        """
        identity = local.meter.session.identity
        for failures in itertools.count(1):
            now_ms = self.registry.clock.now()
            is_known = self.registry.local_sessions.get(local.key) is local
            if not (is_known and _hears_only_here(local, now_ms)):
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
            local.service.farewell(found.farewell_at)
        local.meter.changed(now_ms)
        local.drain()

    async def _read(self, identity: Identity) -> FoundSession | None:
        """The session as Redis has it; raises ``LiveError``."""
        return await self.registry.live.attach(identity.tenant, identity.session_id, read_only=True)

    async def _decide_fork(self, local: LocalSession) -> None:
        """Resolves a fork of a session's steps.

        Another process made a step on a copy of the session that lacks the newest step from here.
        """
        if self.registry.pipeline.restore is None or _is_only_observed(local):
            await self.read_again(local)
            return
        try:
            await self.registry.pipeline.restore(local.meter.session)
        except (LiveError, ProtocolError) as error:
            log.warning("fork_not_decided", session=local.key, error=str(error))

    async def read_again(self, local: LocalSession) -> None:
        """Reads again a session that was put back into Redis.

        Steps that this process made on an older copy may not count. If Redis does not answer, the
        next step's reply shows the session instead.
        """
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
        """Refreshes a tenant's sessions after a change of the month's limits.

        The change is a new limit, a recall because a member lacks minutes, or minutes that were
        given back. ``user_id`` is the member that it concerns; None: all members.
        """
        due = (tenant, change, user_id)
        if due not in self._limits_due:
            self._limits_due.add(due)
            if due not in self._limits_told:
                self._refresh_soon(*due)
        if change == "changed":
            self.registry.run(self.registry.read_calendar(tenant))

    def _refresh_soon(self, tenant: str, change: LimitEvent, user_id: str | None) -> None:
        self._limits_told.add((tenant, change, user_id))
        self.registry.turns.run(tenant, self._refresh_all(tenant, change, user_id))

    def _refresh_all(self, tenant: str, change: LimitEvent, user_id: str | None) -> Iterator[None]:
        # A change that arrives from here on begins a refresh of its own, behind this one.
        due, told = (tenant, change, user_id), 0
        self._limits_due.discard(due)
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
                told += 1
                yield
        if told > server_limits.UNITS_PER_TURN:
            # Thousands of sessions may lack a minute each: refresh again when most have said so.
            at = self.registry.clock.now() + server_limits.ACCOUNT_LOOK_PAUSE_MS
            self.registry.timers.deadline(at, lambda _: self._refresh_again(*due), tenant)
        else:
            self._refresh_again(*due)

    def _refresh_again(self, tenant: str, change: LimitEvent, user_id: str | None) -> None:
        due = (tenant, change, user_id)
        self._limits_told.discard(due)
        if due in self._limits_due:
            self._refresh_soon(*due)

    def _refresh(self, local: LocalSession, change: LimitEvent) -> None:
        if change == "recalled":
            if not local.meter.recall(self.registry.clock.now(), minutes=True):
                return
            self.registry.metrics.recalls.inc()
        else:
            local.freed()
            local.meter.refresh(self.registry.clock.now())
        local.drain()


def _is_only_observed(local: LocalSession) -> bool:
    """Whether sockets here only watch a session that other processes keep alive."""
    return bool(local.subscribers) and not local.meter.sockets


def _hears_only_here(local: LocalSession, now_ms: int) -> bool:
    """Whether the session depends on messages that no step's answer repeats.

    Sockets here only watch it, or a heartbeat over HTTP ends with the user's farewell elsewhere.
    """
    return _is_only_observed(local) or local.meter.promised_until > now_ms


def _misses(local: LocalSession, message: dict[str, Any]) -> bool:
    """Whether this process missed an earlier message of the session."""
    return bool(message.get("moved")) and local.meter.misses(remote_step_of(message))


def _is_own(local: LocalSession, remote: RemoteStep, node: str) -> bool:
    """Whether a remote step is the local session's own pending one.

    The reply to that step is on its way, and names the request that it answers.
    """
    asked, version = local.meter.asked, remote.session.standing.version
    return asked is not None and node == local.node and version == asked.standing.version
