"""Ticks of a session: at which pace they go to whom, and only as far as time is proven.

A tick is service, and service is billed to the last proof of life. So a tick goes out only
while the newest proof is fresh (``Position.fresh_until``): at first the client must answer
a ping before each one, and the longer it has answered, the longer its word is taken for
the next seconds. A tick that waits goes out with the pong. Counted time lies between two
ticks, too: who comes and goes gets no tick that was not earned.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from protocol import limits
from protocol.metering.meter import Meter
from protocol.metering.snapshots import tick
from protocol.wire.codec import tick_template
from server import limits as server_limits
from server.runtime.isolation import failed, isolated
from server.runtime.timers import Timer
from server.sessions.pending_requests import Member
from server.transport.frames import text_frame

if TYPE_CHECKING:
    from server.sessions.local_session import Place


class Owner(Protocol):
    """What the service of a session needs of the seat that it is a part of."""

    place: "Place"
    meter: Meter

    def drain(self) -> None:
        """Carries out what the meter wants."""


NOBODY: Final[frozenset[Any]] = frozenset()
"""Shared by all seats without watchers: an empty set takes 216 bytes."""
NO_OBSERVERS: Final[Mapping[Any, bool]] = {}


class TickGroup:
    """The members of a seat that want their ticks at the same pace."""

    __slots__ = (
        "every_ms",
        "members",
        "next_ms",
        "owed",
        "phase_ms",
        "service",
        "spacing_ms",
        "timer",
    )

    def __init__(self, service: "Service", every_ms: int, now_ms: int) -> None:
        self.service = service
        self.every_ms = every_ms
        self.members: list[Member] = []
        # The first one is due an interval after the join: joins are spread over time.
        self.phase_ms = now_ms % every_ms
        self.timer: Timer | None = None
        self.spacing_ms = every_ms * service.speed * server_limits.TICK_SPACING_PERCENT // 100
        """Counted time that lies between two ticks at least, for timers that are late."""
        self.next_ms = service.meter.elapsed_at(now_ms) + self.spacing_ms
        """Counted time before which no tick is due."""
        self.owed = False
        """A tick is due, and waits for a proof of life."""

    def arm(self, now_ms: int) -> None:
        """Sets the timer to the next tick that is due after ``now_ms``."""
        if self.timer is None:
            every_ms = self.every_ms
            due_at = now_ms - (now_ms - self.phase_ms) % every_ms + every_ms
            self.timer = self.service.place.timers.tick(due_at, self._fire)

    def _fire(self, now_ms: int) -> None:
        self.timer = None
        service = self.service
        meter = service.meter
        if not self.members or not meter.counting:
            return  # armed again when time runs again
        elapsed_ms = meter.elapsed_at(now_ms)
        if elapsed_ms < self.next_ms:
            self._wait(elapsed_ms, now_ms)
            return
        self.next_ms = elapsed_ms + self.spacing_ms
        self.arm(now_ms)
        # Looked at anew only where the proof of before will not do for the next tick.
        if service.served_until >= now_ms + self.every_ms or service.fresh_until(now_ms) >= now_ms:
            self._push(now_ms)
        else:
            self.owed = True
            service.await_proof(now_ms)

    def _wait(self, elapsed_ms: int, now_ms: int) -> None:
        """So soon after the last tick, or a join, no other is due."""
        # Counted time may have gone back: what was not proven is not counted.
        self.next_ms = min(self.next_ms, elapsed_ms + self.spacing_ms)
        wait_ms = -(-(self.next_ms - elapsed_ms) // self.service.speed)
        # Where it stands still, for want of a grant, nothing is gained by looking often.
        due_at = now_ms + max(wait_ms, self.every_ms // 10)
        self.timer = self.service.place.timers.tick(due_at, self._fire)

    def push_owed(self, now_ms: int) -> None:
        """Sends the tick that has waited for a proof of life, as it is now."""
        if self.owed:
            self._push(now_ms)

    def _push(self, now_ms: int) -> None:
        """Sends a tick, and asks for a proof of life where the one there is will not do for the
        next one. Where it never does, that one waits for its own."""
        self.owed = False
        service = self.service
        frame = text_frame(tick(service.meter, service.template, now_ms))
        tally = service.place.metrics.tally
        for member in self.members:
            try:
                is_sent = member.send_tick(frame)
            except Exception:
                failed("tick", session=service.key)
                continue
            if is_sent:
                tally.ticks_pushed += 1
                tally.bytes_pushed += len(frame)
            else:
                tally.ticks_skipped += 1
        service.ticked_at = now_ms
        if service.served_until < now_ms + self.every_ms and self.every_ms <= service.window_ms(
            now_ms
        ):
            service.ask_for_proof(now_ms)


class Service:
    """The sockets of a session on this process, and how far they are served: a part of its
    seat."""

    __slots__ = (
        "_asked_at", "_is_awaited", "_is_awaiting", "_newcomers", "_seat", "groups", "meter",
        "observers", "place",
        "proven_until", "served_until", "speed", "template", "ticked_at", "watchers",
    )  # fmt: skip

    def __init__(self, seat: Owner) -> None:
        self._seat: Owner | None = seat
        self.place = seat.place
        self.meter = meter = seat.meter
        self.groups: list[TickGroup] = []
        """The sockets, by the pace of their ticks."""
        self.watchers: frozenset[Member] = NOBODY
        """Those of them that do not keep the session alive."""
        self.observers: Mapping[Member, bool] = NO_OBSERVERS
        """Those of these that only watch, the oldest first; whether the session's own user does."""
        self.speed = meter.session.identity.terms.speed
        self.template = tick_template(meter.session.identity.session_id)
        self.served_until = 0
        """The same instant as ``fresh_until`` when that was asked last; 0 after a change of who
        sits here."""
        self.ticked_at = 0
        """When the last tick went out to anybody here."""
        self.proven_until = 0
        """Up to when ticks may go out where somebody only watches, as others have told."""
        self._newcomers: frozenset[Member] = NOBODY
        """Sockets that have joined since it is asked whether those before are there."""
        self._is_awaiting = False
        """A tick waits for a proof of life, or another process does."""
        self._is_awaited = False
        """Another process waits for one."""
        self._asked_at = 0
        """When another process was asked for one."""

    @property
    def key(self) -> str:
        """The session's name across tenants."""
        return self.meter.session.key

    def close(self) -> None:
        """Serves nothing any more. Its seat is let go, so that neither is garbage to look for."""
        self._seat = None
        for group in self.groups:
            if group.timer is not None:
                group.timer.cancel()
        self.groups.clear()

    def _drain(self) -> None:
        if self._seat is not None:
            self._seat.drain()

    @property
    def members(self) -> list[Member]:
        """The sockets, as they are now."""
        return [member for group in self.groups for member in group.members]

    def add(self, member: Member, tick_ms: int, *, watching: bool) -> None:
        """A socket takes part; with another pace than before if it was here already."""
        newcomers = self._newcomers
        if self.meter.is_in_doubt and not watching and not self._keeps(member):
            newcomers |= {member}
        self.remove(member)
        self.served_until = 0
        self._newcomers = newcomers
        if watching:
            self.watchers |= {member}
        group = next((one for one in self.groups if one.every_ms == tick_ms), None)
        if group is None:
            group = TickGroup(self, tick_ms, self.place.clock.now())
            self.groups.append(group)
        group.members.append(member)
        if self.meter.counting:
            group.arm(self.place.clock.now())

    def _keeps(self, member: Member) -> bool:
        """Whether a socket is here already, and keeps the session alive."""
        return member not in self.watchers and member in self.members

    def observe(self, member: Member, *, is_own: bool) -> None:
        """A socket watches from now on; the session's own user's, or another's."""
        self.add(member, self.meter.session.identity.terms.tick_ms, watching=True)
        self.observers = {**self.observers, member: is_own}

    def remove(self, member: Member) -> None:
        """A socket takes no part any more."""
        self.served_until = 0
        if member in self.observers:
            self.observers = {
                one: is_own for one, is_own in self.observers.items() if one is not member
            }
        if self.watchers:
            self.watchers -= {member}
        if self._newcomers:
            self._newcomers -= {member}
        for group in self.groups:
            if member in group.members:
                group.members.remove(member)
                if not group.members:
                    self.groups.remove(group)
                return

    # --- What is proven ----------------------------------------------------------------

    def alive(self, at_ms: int, now_ms: int, member: Member | None = None) -> None:
        """A proof of life of one of the sockets, as of ``at_ms``."""
        self.confirm(member, at_ms, now_ms)
        if self.meter.alive(at_ms, now_ms):
            self._drain()
        if self._is_awaiting:
            self._proven(now_ms)

    def confirm(self, member: Member | None, at_ms: int, now_ms: int) -> None:
        """What a socket has proven last. One that was there when another joined says by that
        whether it was still there."""
        if not self.meter.is_in_doubt:
            self._newcomers = NOBODY
        elif member not in self._newcomers:
            self.meter.confirm(at_ms, now_ms)

    def promise(self, until_ms: int, now_ms: int) -> None:
        """A heartbeat's proof of life, which reaches into the future."""
        if self.meter.promise(until_ms, now_ms):
            self._drain()
        if self._is_awaiting:
            self._proven(now_ms)

    def farewell(self, at_ms: int) -> None:
        """The user took leave of the session: proofs in advance of before end."""
        for member in self.members:
            isolated("farewell", member.farewell, at_ms, session=self.key)

    def window_ms(self, now_ms: int) -> int:
        """How long after a proof of life ticks go out."""
        return self.meter.window_ms(now_ms) if self.meter.sockets else limits.PROOF_FRESH_MS_MAX

    def fresh_until(self, now_ms: int) -> int:
        """The instant up to which ticks may go out. Where somebody only watches, those who hear
        the client have said it."""
        meter = self.meter
        self.served_until = meter.fresh_until(now_ms) if meter.sockets else self.proven_until
        return self.served_until

    def await_proof(self, now_ms: int) -> None:
        """A tick is due, and goes out when the client has proven that it is there."""
        self._is_awaiting = True
        self.ask_for_proof(now_ms)

    def ask_for_proof(self, now_ms: int) -> None:
        """Asks the sockets for a proof of life; or the processes that have some."""
        if self.meter.sockets:
            self.probe()
        elif now_ms >= self._asked_at + server_limits.PROOF_ASKED_MS:
            self._asked_at = now_ms
            self.place.ask_elsewhere(self.meter.session.identity)

    def ask_the_others(self, came_at: int, *, has_others: bool) -> None:
        """A socket has joined at ``came_at``: asks those that were there before whether they
        are there, here and on other processes."""
        self.probe()
        if has_others:
            self.place.ask_elsewhere(self.meter.session.identity, came_at)

    def wanted_elsewhere(self, now_ms: int, *, at_once: bool = False) -> None:
        """Another process, where somebody only watches, asks for a proof of life. ``at_once``:
        or where somebody joined; it wants to know of the last one, too."""
        if self.meter.sockets:
            if at_once:
                # In a doubt of its own, it says since when: it is one gap for both.
                meter, since = self.meter, self.meter.doubted_since
                self.place.tell_proven(meter.session.identity, 0, meter.alive_at, since)
            self._is_awaited = True
            self.await_proof(now_ms)
            if self.meter.promised_until > now_ms:
                self._proven(now_ms)  # a heartbeat cannot be asked for more

    def proven_elsewhere(
        self, until_ms: int, now_ms: int, at_ms: int = 0, came_at: int | None = None
    ) -> None:
        """Another process says up to when the session is proven: ticks may go out until
        ``until_ms``, and the proof came in at ``at_ms``. ``came_at``: it asks others, too, since
        a socket joined there."""
        if self.meter.is_in_doubt:
            self.meter.confirm(at_ms, now_ms, came_at)
            self._drain()
        self.proven_until = max(self.proven_until, until_ms)
        if self._is_awaiting:
            self._proven(now_ms)

    def probe(self) -> None:
        """Asks the sockets that keep the session alive for a proof of life."""
        for member in self.members:
            if member not in self.watchers:
                isolated("probe", member.probe, session=self.key)

    def _proven(self, now_ms: int) -> None:
        """Something came in that may be the proof which is waited for."""
        until_ms = self.fresh_until(now_ms)
        if until_ms < now_ms:
            return  # of before this process stood still, or too old for another reason
        self._is_awaiting = False
        if self._is_awaited:
            self._is_awaited = False
            self.place.tell_proven(self.meter.session.identity, until_ms, self.meter.alive_at)
        if self.meter.counting:
            for group in self.groups:
                group.push_owed(now_ms)

    def count_unproven(self) -> None:
        """The last socket is gone: service after its last proof of life is not paid for."""
        if self.meter.counting:
            unproven_ms = self.ticked_at - self.meter.alive_at
            self.place.metrics.unproven.inc(max(0, unproven_ms) / 1000)
