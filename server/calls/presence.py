"""A participant's presence: a socket of its session, in the provider's words."""

from typing import Protocol

from protocol.metering.states import Phase
from server.process import Process
from server.runtime.timers import Timer
from server.sessions.local_session import LocalSession


class PresenceOwner(Protocol):
    """What a presence needs of the calls' meter."""

    process: Process

    def unconfirmed(self, presence: "CallPresence") -> None:
        """Loses a presence that the provider has not confirmed for long."""

    def forget(self, presence: "CallPresence") -> None:
        """Forgets a presence whose session has ended."""

    def reached_limit(self, presence: "CallPresence") -> None:
        """Takes note that the presence's session has reached a limit."""


class CallPresence:
    """A participant's presence on this process.

    It is a subscriber of its local session, and drops all frames: the provider's word is the proof
    of life, and reaches ahead until the provider is silent for too long.
    """

    def __init__(self, owner: PresenceOwner, tenant: str, session_id: str) -> None:
        self.tenant = tenant
        self.session_id = session_id
        self.local: LocalSession | None = None
        self.alive_until = 0
        """Up to when the provider's last word counts."""
        self._owner = owner
        self._timer: Timer | None = None

    def send(self, frame: bytes) -> None:
        """Drops the frame; at a limit, the call ends too."""
        if self.local is not None and self.local.meter.phase is Phase.STOPPING:
            self._owner.reached_limit(self)

    def send_tick(self, frame: bytes) -> bool:
        """Drops the tick, and reports it as sent."""
        return True

    def probe(self) -> None:
        """Proves life again, if another client has ended this proof."""
        local, timers = self.local, self._owner.process.timers
        if local is not None and local.meter.promised_until < self.alive_until:
            timers.deadline(self._owner.process.clock.now(), self._promise, self.tenant)

    def farewell(self, at_ms: int) -> None:
        """Does nothing: who closes a page has not left the call."""

    def left(self, local: LocalSession) -> None:
        """Forgets the presence, because the session ended."""
        self._owner.forget(self)

    def extend(self, until_ms: int) -> None:
        """Takes the provider's word, which counts up to ``until_ms``."""
        if until_ms <= self.alive_until:
            return
        self.alive_until = until_ms
        self.stop()
        self._timer = self._owner.process.timers.deadline(until_ms, self._silent, self.tenant)
        self._promise(0)

    def stop(self) -> None:
        """Stops waiting for the provider's next word."""
        if self._timer is not None:
            self._timer.cancel()

    def _promise(self, _: int) -> None:
        now_ms = self._owner.process.clock.now()
        if self.local is not None and self in self.local.subscribers and now_ms < self.alive_until:
            self.local.service.promise(self.alive_until, now_ms)

    def _silent(self, _: int) -> None:
        self._owner.unconfirmed(self)
