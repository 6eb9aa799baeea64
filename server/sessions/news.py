"""News of the sessions here: what other processes do, and what changes for many at once.

A session hears of other processes' steps on its account's channel, and of changed limits on its
tenant's. What concerns many sessions reaches a bounded number of them in each turn of the loop.
"""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import structlog

from protocol.metering.effects import Move
from protocol.metering.session import Identity, session_key
from protocol.metering.states import Event
from protocol.wire.errors import ProtocolError
from server import limits as server_limits
from server.counters.accounts import Account, Told
from server.counters.recall import may_free
from server.counters.tenants import Change
from server.runtime.isolation import isolated
from server.sessions.local_session import Seat
from server.sessions.seating import Seating, isolated_session
from server.sessions.step_pipeline import retry_after_ms
from storage.redis.encoding import move_of
from storage.redis.live import Found, LiveError

log = structlog.get_logger()


class News:
    """Tells the seats of a process what concerns them."""

    def __init__(self, hub: Seating) -> None:
        self.hub = hub
        self._limits_due: set[tuple[str, Change, str | None]] = set()
        """Changes of limits that a tenant's sessions are about to hear of."""

    def told(self, account: Account, message: dict[str, Any]) -> None:
        """Something was told on an account's channel: by another process, or by this one."""
        if message.keys() & {"farewell", "prove", "proven"}:
            self._told_of_proof(account.projection.tenant, message)
            return
        concerned = message["session_id"] if message.get("moved") else message.get("stop")
        concerned = message.get("again", concerned)
        told = account.seats.get(concerned) if concerned else None
        if told is not None:
            isolated_session(told, self._tell, told, message)
        # A recall frees nothing yet: only what changed the account is worth a claim.
        is_change = bool(message.get("bumped") or not message.keys() & {"recall", "stop"})
        before = account.told
        account.told = Told(
            changes=before.changes + is_change,
            frees=before.frees + (is_change and may_free(message)),
            recalls=before.recalls + bool(message.get("recall")),
            breaks=before.breaks + (not message or "reload" in message),
        )
        if account.seats and not account.is_looked_at:
            self._look_soon(account)
        if account.listeners:
            self.hub.turns.run((account, "listeners"), self._tell_listeners(account, message))

    def _tell(self, seat: Seat, message: dict[str, Any]) -> None:
        """Tells a session what concerns it alone."""
        now_ms = self.hub.clock.now()
        if "again" in message:
            if message["node"] != self.hub.node:
                self.hub.run(self.read_again(seat))
            return
        if _is_only_watched(seat) and _misses(seat, message):
            self.hub.run(self._catch_up(seat))  # no step from here is answered with that
            return
        if message.get("moved"):
            move = move_of(message)
            if seat.meter.is_other(move):
                self.hub.run(self._decide_fork(seat))
            if not _is_own(seat, move, message["node"]):
                seat.meter.moved(move, now_ms)
            seat.drain()
            self.hub.release(seat)
        elif seat.meter.sockets:
            # Asked for on a process without the client's sockets; here its last seconds are proven.
            seat.meter.request(Event.STOP, now_ms, None, message["reason"])
            seat.drain()

    def _look_at_all(self, account: Account) -> Iterator[None]:
        """Has every session of an account hear of what it has not heard of, one in each unit,
        until there is none. A message that comes meanwhile reaches the sessions that are still
        to be looked at; the others are looked at once more."""
        told: Told | None = None
        while told != account.told:
            if told is not None and len(account.seats) > server_limits.UNITS_PER_TURN:
                # Hundreds of changes come together: again when most of them are there.
                at = self.hub.clock.now() + server_limits.ACCOUNT_LOOK_PAUSE_MS
                self.hub.timers.deadline(at, lambda _: self._look_soon(account), account)
                return
            told = account.told
            seats: list[Seat] = list(account.seats.values())
            for seat in seats:
                if seat.heard == account.told or seat.key not in self.hub.seats:
                    continue
                heard, seat.heard = seat.heard, account.told
                isolated_session(seat, self._look_at, seat, heard)
                yield
        account.is_looked_at = False

    def _look_soon(self, account: Account) -> None:
        account.is_looked_at = True
        self.hub.turns.run(account, self._look_at_all(account))

    def _look_at(self, seat: Seat, heard: Told) -> None:
        now_ms, told = self.hub.clock.now(), seat.heard
        if told.breaks > heard.breaks and _is_only_watched(seat):
            self.hub.run(self._catch_up(seat))
            return
        if told.recalls > heard.recalls and seat.meter.recall(now_ms):
            self.hub.metrics.recalls.inc()
        if told.changes > heard.changes:
            seat.meter.changed(now_ms)
            if told.frees > heard.frees:
                seat.freed()
        seat.drain()

    @staticmethod
    def _tell_listeners(account: Account, message: dict[str, Any]) -> Iterator[None]:
        for told in list(account.listeners):
            if told in account.listeners:
                isolated("listener", told, account, message)
                yield

    def _told_of_proof(self, tenant: str, message: dict[str, Any]) -> None:
        """Something was told of what a client has proven; it changes no figure of the account."""
        if message.get("node") == self.hub.node:
            return  # its own question, or answer
        for told in ("farewell", "prove", "proven"):
            seat = self.hub.seats.get(session_key(tenant, message.get(told, "")))
            if seat is None:
                continue
            if told == "farewell":
                seat.service.farewell(message["at"])
            elif told == "prove":
                seat.service.wanted_elsewhere(self.hub.clock.now(), at_once="came_at" in message)
            else:
                seat.service.proven_elsewhere(
                    message["until"], self.hub.clock.now(), message["at"], message.get("came_at")
                )

    async def _catch_up(self, seat: Seat) -> None:
        """Shows watchers what was not heard here, until that succeeds or the seat is cleared."""
        identity = seat.meter.session.identity
        for failures in itertools.count(1):
            if self.hub.seats.get(seat.key) is not seat or not _is_only_watched(seat):
                return
            try:
                found = await self._read(identity)
                break
            except LiveError as error:
                log.warning("session_not_read", session=seat.key, error=str(error))
                await asyncio.sleep(retry_after_ms(failures) / 1000)
        if self.hub.seats.get(seat.key) is not seat:
            return
        now_ms = self.hub.clock.now()
        if found is not None:
            seat.meter.read(found.session, found.notices, now_ms)
        seat.meter.changed(now_ms)
        seat.drain()

    async def _read(self, identity: Identity) -> Found | None:
        """The session as Redis has it; raises ``LiveError``."""
        return await self.hub.live.attach(identity.tenant, identity.session_id, read_only=True)

    async def _decide_fork(self, seat: Seat) -> None:
        """Another process has made the step of a copy that lacks the newest one from here."""
        if self.hub.claims.restore is None or _is_only_watched(seat):
            await self.read_again(seat)
            return
        try:
            await self.hub.claims.restore(seat.meter.session)
        except (LiveError, ProtocolError) as error:
            log.warning("fork_not_decided", session=seat.key, error=str(error))

    async def read_again(self, seat: Seat) -> None:
        """Takes a session as Redis has it, which was put back there: steps that were made here
        of an older copy may not count. Without an answer the next step hears of it."""
        identity = seat.meter.session.identity
        try:
            found = await self._read(identity)
        except LiveError as error:
            log.warning("session_not_read", session=seat.key, error=str(error))
            return
        if found is not None and self.hub.seats.get(seat.key) is seat:
            seat.meter.read(found.session, found.notices, self.hub.clock.now())
            seat.drain()

    def limits_changed(self, tenant: str, change: Change, user_id: str | None = None) -> None:
        """A limit of the month was changed, somebody lacks minutes, or some were given back."""
        due = (tenant, change, user_id)
        if due not in self._limits_due:
            self._limits_due.add(due)
            self.hub.turns.run(tenant, self._refresh_all(*due))
        if change == "changed":
            self.hub.run(self.hub.read_calendar(tenant))

    def _refresh_all(self, tenant: str, change: Change, user_id: str | None) -> Iterator[None]:
        # Another change from here on begins a refresh of its own, behind this one.
        self._limits_due.discard((tenant, change, user_id))
        for seat in self.hub.seats_of(tenant):
            identity = seat.meter.session.identity
            final = seat.meter.session.grant.final or seat.meter.kept_open
            if change == "recalled":
                is_theirs = user_id is None or identity.user_id == user_id
                concerned = is_theirs and identity.terms.counts_minutes
            elif change == "freed":
                concerned = seat.waits_for_holders or final in {"member_minutes", "org_minutes"}
            else:
                concerned = True
            if concerned and self.hub.seats.get(seat.key) is seat:
                isolated_session(seat, self._refresh, seat, change)
                yield

    def _refresh(self, seat: Seat, change: Change) -> None:
        if change == "recalled":
            if seat.meter.recall(self.hub.clock.now(), minutes=True):
                self.hub.metrics.recalls.inc()
        else:
            seat.freed()
            seat.meter.refresh(self.hub.clock.now())
        seat.drain()


def _is_only_watched(seat: Seat) -> bool:
    """Whether sockets here see a session that only other processes keep alive."""
    return bool(seat.members) and not seat.meter.sockets


def _misses(seat: Seat, message: dict[str, Any]) -> bool:
    """Whether a message to a session shows that something was told of it before that was not
    heard here."""
    return bool(message.get("moved")) and seat.meter.misses(move_of(message))


def _is_own(seat: Seat, move: Move, node: str) -> bool:
    """Whether a move is the step that the seat has asked for: its answer is on its way, and
    says to whom it is an answer."""
    asked, version = seat.meter.asked, move.session.standing.version
    return asked is not None and node == seat.node and version == asked.standing.version
