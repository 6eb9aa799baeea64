"""Ticks of a session: their pace, and the proof they need.

A tick is service, and service is billed up to the last proof of life. So a tick goes out only while
the newest proof is fresh (``MeterState.fresh_until``). At first the client must answer a ping
before each tick. The longer the client has answered, the longer one proof counts for the seconds
that follow. A tick that waits for a proof goes out with the pong.

Counted time lies between two ticks, too: a client that comes and goes gets no tick that was not
earned.
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
from server.sessions.pending_requests import Subscriber
from server.transport.frames import text_frame

if TYPE_CHECKING:
    from server.sessions.local_session import SessionOwner


class ServiceOwner(Protocol):
    """What the tick service of a session needs of its local session."""

    owner: "SessionOwner"
    meter: Meter

    def drain(self) -> None:
        """Carries out the meter's effects."""


NO_SUBSCRIBERS: Final[frozenset[Any]] = frozenset()
"""Shared by all local sessions without observers: an empty set takes 216 bytes."""
NO_OBSERVERS: Final[Mapping[Any, bool]] = {}


class TickGroup:
    """The subscribers of a local session with the same tick pace."""

    __slots__ = (
        "every_ms",
        "next_ms",
        "owed",
        "phase_ms",
        "service",
        "spacing_ms",
        "subscribers",
        "timer",
    )

    def __init__(self, service: "TickService", every_ms: int, now_ms: int) -> None:
        self.service = service
        self.every_ms = every_ms
        self.subscribers: list[Subscriber] = []
        # The first tick is due one interval after the join, so that joins are spread over time.
        self.phase_ms = now_ms % every_ms
        self.timer: Timer | None = None
        self.spacing_ms = every_ms * service.speed * server_limits.TICK_SPACING_PERCENT // 100
        """Least counted time between two ticks; it guards against timers that are late."""
        self.next_ms = service.meter.elapsed_at(now_ms) + self.spacing_ms
        """Counted time before which no tick is due."""
        self.owed = False
        """A tick is due and waits for a proof of life."""

    def arm(self, now_ms: int) -> None:
        """Sets the timer to the next tick that is due after ``now_ms``."""
        if self.timer is None:
            every_ms = self.every_ms
            due_at = now_ms - (now_ms - self.phase_ms) % every_ms + every_ms
            self.timer = self.service.owner.timers.tick(due_at, self._fire)

    def _fire(self, now_ms: int) -> None:
        self.timer = None
        service = self.service
        meter = service.meter
        if not self.subscribers or not meter.counting:
            return  # armed again when time runs again
        elapsed_ms = meter.elapsed_at(now_ms)
        if elapsed_ms < self.next_ms:
            self._wait(elapsed_ms, now_ms)
            return
        self.next_ms = elapsed_ms + self.spacing_ms
        self.arm(now_ms)
        # The freshness is computed anew only if the last known proof does not cover the next tick.
        if service.served_until >= now_ms + self.every_ms or service.fresh_until(now_ms) >= now_ms:
            self._push(now_ms)
        else:
            self.owed = True
            service.await_proof(now_ms)

    def _wait(self, elapsed_ms: int, now_ms: int) -> None:
        """Arms the timer again, too soon after a tick or join."""
        # Counted time may have gone back: time that was not proven is not counted.
        self.next_ms = min(self.next_ms, elapsed_ms + self.spacing_ms)
        wait_ms = -(-(self.next_ms - elapsed_ms) // self.service.speed)
        # Without a grant, counted time stands still, and frequent checks would gain nothing.
        due_at = now_ms + max(wait_ms, self.every_ms // 10)
        self.timer = self.service.owner.timers.tick(due_at, self._fire)

    def push_owed(self, now_ms: int) -> None:
        """Sends the tick that waited for a proof, with current figures."""
        if self.owed:
            self._push(now_ms)

    def _push(self, now_ms: int) -> None:
        """Sends a tick, and asks for the next tick's proof if needed.

        If no proof lasts until the next tick, that tick waits for its own proof.
        """
        self.owed = False
        service = self.service
        frame = text_frame(tick(service.meter, service.template, now_ms))
        tally = service.owner.metrics.tally
        for subscriber in self.subscribers:
            try:
                is_sent = subscriber.send_tick(frame)
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


class TickService:
    """The sockets of a local session, their ticks and proofs of life.

    The service is a part of its local session.
    """

    __slots__ = (
        "_asked_at", "_is_awaited", "_is_awaiting", "_local", "_newcomers", "farewell_at",
        "groups", "meter",
        "observers", "owner", "passive", "proven_until", "served_until", "speed", "template",
        "ticked_at",
    )  # fmt: skip

    def __init__(self, local: ServiceOwner) -> None:
        self._local: ServiceOwner | None = local
        self.owner = local.owner
        self.meter = meter = local.meter
        self.groups: list[TickGroup] = []
        """The sockets, by the pace of their ticks."""
        self.passive: frozenset[Subscriber] = NO_SUBSCRIBERS
        """The sockets that do not keep the session alive."""
        self.observers: Mapping[Subscriber, bool] = NO_OBSERVERS
        """The passive sockets that watch, oldest first. True: the session's own user watches."""
        self.speed = meter.session.identity.terms.speed
        self.template = tick_template(meter.session.identity.session_id)
        self.served_until = 0
        """The last value of ``fresh_until``; 0 after a change of the sockets."""
        self.farewell_at = 0
        """When the user last took leave of the session, as far as is known here."""
        self.ticked_at = 0
        """When the last tick went out on this process."""
        self.proven_until = 0
        """Up to when observers here may get ticks, as other processes have reported."""
        self._newcomers: frozenset[Subscriber] = NO_SUBSCRIBERS
        """Sockets that joined since the earlier ones were asked for a proof of life."""
        self._is_awaiting = False
        """A tick, or another process, waits for a proof of life."""
        self._is_awaited = False
        """Another process waits for a proof of life."""
        self._asked_at = 0
        """When this process last asked other processes for a proof of life."""

    @property
    def key(self) -> str:
        """The session's name across tenants."""
        return self.meter.session.key

    def close(self) -> None:
        """Ends all ticks, and lets go of the local session.

        Without the mutual reference, neither object becomes work for the garbage collector.
        """
        self._local = None
        for group in self.groups:
            if group.timer is not None:
                group.timer.cancel()
        self.groups.clear()

    def _drain(self) -> None:
        if self._local is not None:
            self._local.drain()

    @property
    def subscribers(self) -> list[Subscriber]:
        """The sockets, as they are now."""
        return [subscriber for group in self.groups for subscriber in group.subscribers]

    def add(self, subscriber: Subscriber, tick_ms: int, *, passive: bool) -> None:
        """Adds a socket, or changes the pace of one already here."""
        newcomers = self._newcomers
        if self.meter.is_in_doubt and not passive and not self._keeps(subscriber):
            newcomers |= {subscriber}
        self.remove(subscriber)
        self.served_until = 0
        self._newcomers = newcomers
        if passive:
            self.passive |= {subscriber}
        group = next((one for one in self.groups if one.every_ms == tick_ms), None)
        if group is None:
            group = TickGroup(self, tick_ms, self.owner.clock.now())
            self.groups.append(group)
        group.subscribers.append(subscriber)
        if self.meter.counting:
            group.arm(self.owner.clock.now())

    def _keeps(self, subscriber: Subscriber) -> bool:
        """Whether a socket is here already, and keeps the session alive."""
        return subscriber not in self.passive and subscriber in self.subscribers

    def observe(self, subscriber: Subscriber, *, is_own: bool) -> None:
        """Adds an observer; ``is_own``: it is the session's own user's."""
        self.add(subscriber, self.meter.session.identity.terms.tick_ms, passive=True)
        self.observers = {**self.observers, subscriber: is_own}

    def remove(self, subscriber: Subscriber) -> None:
        """Removes a socket or an observer."""
        self.served_until = 0
        if subscriber in self.observers:
            self.observers = {
                one: is_own for one, is_own in self.observers.items() if one is not subscriber
            }
        if self.passive:
            self.passive -= {subscriber}
        if self._newcomers:
            self._newcomers -= {subscriber}
        for group in self.groups:
            if subscriber in group.subscribers:
                group.subscribers.remove(subscriber)
                if not group.subscribers:
                    self.groups.remove(group)
                return

    # --- What is proven ----------------------------------------------------------------

    def alive(self, at_ms: int, now_ms: int, subscriber: Subscriber | None = None) -> None:
        """Takes a socket's proof of life, as of ``at_ms``."""
        self.confirm(subscriber, at_ms, now_ms)
        if self.meter.alive(at_ms, now_ms):
            self._drain()
        if self._is_awaiting:
            self._proven(now_ms)

    def confirm(self, subscriber: Subscriber | None, at_ms: int, now_ms: int) -> None:
        """Takes a socket's newest proof of life, to settle a doubt.

        A socket that was there before another socket joined thereby says whether it was still
        there.
        """
        if not self.meter.is_in_doubt:
            self._newcomers = NO_SUBSCRIBERS
        elif subscriber not in self._newcomers:
            self.meter.confirm(at_ms, now_ms)

    def promise(self, until_ms: int, now_ms: int) -> None:
        """Takes a heartbeat's proof of life, which reaches into the future."""
        if self.meter.promise(until_ms, now_ms):
            self._drain()
        if self._is_awaiting:
            self._proven(now_ms)

    def farewell(self, at_ms: int) -> None:
        """Ends proofs in advance that are older than the user's farewell.

        A heartbeat that is joining compares itself with ``farewell_at`` afterwards.
        """
        if at_ms <= self.farewell_at:
            return
        self.farewell_at = at_ms
        for subscriber in self.subscribers:
            isolated("farewell", subscriber.farewell, at_ms, session=self.key)

    def window_ms(self, now_ms: int) -> int:
        """How long after a proof of life ticks go out."""
        return self.meter.window_ms(now_ms) if self.meter.sockets else limits.PROOF_FRESH_MS_MAX

    def fresh_until(self, now_ms: int) -> int:
        """The instant up to which ticks may go out.

        On a process with observers only, the processes that hear the client have reported that
        instant.
        """
        meter = self.meter
        self.served_until = meter.fresh_until(now_ms) if meter.sockets else self.proven_until
        return self.served_until

    def await_proof(self, now_ms: int) -> None:
        """Lets the due ticks wait until the client has proven its life."""
        self._is_awaiting = True
        self.ask_for_proof(now_ms)

    def ask_for_proof(self, now_ms: int) -> None:
        """Asks the sockets, or other processes' sockets, for a proof of life."""
        if self.meter.sockets:
            self.probe()
        elif now_ms >= self._asked_at + server_limits.PROOF_ASKED_MS:
            self._asked_at = now_ms
            self.owner.ask_elsewhere(self.meter.session.identity)

    def ask_the_others(self, came_at: int, *, has_others: bool) -> None:
        """Asks the earlier sockets, on all processes, whether they are there.

        A socket has joined at ``came_at``, and a doubt begins. The newcomers of the last doubt are
        earlier sockets of this one.
        """
        self._newcomers = NO_SUBSCRIBERS
        self.probe()
        if has_others:
            self.owner.ask_elsewhere(self.meter.session.identity, came_at)

    def wanted_elsewhere(self, now_ms: int, *, at_once: bool = False) -> None:
        """Handles another process's question for a proof of life.

        The other process has observers only. With ``at_once``, a socket has joined there, and the
        process wants the newest proof, too.
        """
        if self.meter.sockets:
            if at_once:
                # If this process has a doubt of its own, it reports since when: both record one
                # gap.
                meter, since = self.meter, self.meter.doubted_since
                more = {} if since is None else {"came_at": since}
                self.owner.tell_proven(meter.session.identity, 0, meter.alive_at, **more)
            self._is_awaited = True
            self.await_proof(now_ms)
            if self.meter.promised_until > now_ms:
                self._proven(now_ms)  # a heartbeat cannot be asked for more
        elif at_once and self.meter.is_losing:
            # The loss is not recorded yet, so only this process knows when the last socket went.
            self.owner.tell_proven(self.meter.session.identity, 0, self.meter.alive_at, gone=True)

    def proven_elsewhere(
        self,
        until_ms: int,
        now_ms: int,
        at_ms: int = 0,
        came_at: int | None = None,
        *,
        is_gone: bool = False,
    ) -> None:
        """Takes another process's report of a proof of life.

        Ticks may go out until ``until_ms``; the proof came in at ``at_ms``. ``came_at``: that
        process asks others, too, because a socket joined there at that instant. ``is_gone``: that
        process has lost its last socket at ``at_ms``.
        """
        if self.meter.is_in_doubt:
            self.meter.confirm(at_ms, now_ms, came_at, is_gone=is_gone)
            self._drain()
        self.proven_until = max(self.proven_until, until_ms)
        # The sockets here answer for themselves: their last proof is older than the question.
        if self._is_awaiting and not self.meter.sockets:
            self._proven(now_ms)

    def probe(self) -> None:
        """Asks the sockets that are not passive for a proof of life."""
        for subscriber in self.subscribers:
            if subscriber not in self.passive:
                isolated("probe", subscriber.probe, session=self.key)

    def _proven(self, now_ms: int) -> None:
        """Sends the waiting ticks if the newest proof is fresh."""
        until_ms = self.fresh_until(now_ms)
        if until_ms < now_ms:
            return  # of before this process stood still, or too old for another reason
        self._is_awaiting = False
        if self._is_awaited:
            self._is_awaited = False
            self.owner.tell_proven(self.meter.session.identity, until_ms, self.meter.alive_at)
        if self.meter.counting:
            for group in self.groups:
                group.push_owed(now_ms)

    def count_unproven(self) -> None:
        """Counts, in the metrics, service after the last proof of life.

        That service is not paid for.
        """
        if self.meter.counting:
            unproven_ms = self.ticked_at - self.meter.alive_at
            self.owner.metrics.unproven.inc(max(0, unproven_ms) / 1000)
