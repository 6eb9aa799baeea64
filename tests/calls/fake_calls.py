"""Calls of a provider that is not there: truth and events."""

import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class SentWebhook(NamedTuple):
    """One webhook, as the provider sends it."""

    at_ms: int
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class FakePresence:
    """One device of one user in a run, as it truly was."""

    user: str
    device: str
    from_ms: int
    to_ms: int | None = None


@dataclass
class FakeRun:
    """One run of a call, as it truly was."""

    call: str
    session: str
    name: str
    """By which the provider's REST knows the call."""
    started_ms: int
    ended_ms: int | None = None
    presences: list[FakePresence] = field(default_factory=list)
    custom: dict[str, Any] = field(default_factory=dict)
    creator: str = ""
    """Who made the call, where the provider says so."""

    def present(self) -> list[FakePresence]:
        """Those who are in the call now."""
        return [each for each in self.presences if each.to_ms is None]

    def true_ms(self, user: str) -> int:
        """The time with at least one device of the user in it."""
        total_ms, until_ms = 0, 0
        for each in sorted(self.presences, key=lambda one: one.from_ms):
            if each.user == user:
                assert each.to_ms is not None, "the call goes on"
                total_ms += max(0, each.to_ms - max(each.from_ms, until_ms))
                until_ms = max(until_ms, each.to_ms)
        return total_ms


class FakeCalls:
    """What fakes of all providers share: calls in virtual time.

    A test moves ``now_ms``, has calls begin and end, and takes the events from ``sent``.
    """

    def __init__(self, now_ms: int, seed: int = 0) -> None:
        self.now_ms = now_ms
        self.random = random.Random(seed)
        self.runs: list[FakeRun] = []
        self.sent: list[SentWebhook] = []
        self.ends_refused = 0
        """Requests to end something that the provider will refuse, as the next ones."""
        self.ends: list[tuple[str, str | None]] = []
        """Ends that the provider was asked for, also refused ones: session, user."""

    def start(self, call: str, **custom: Any) -> FakeRun:
        """A run of a call begins."""
        run = self._new_run(call, custom)
        self.runs.append(run)
        self.send_started(run)
        return run

    def join(self, run: FakeRun, user: str, device: str | None = None) -> FakePresence:
        """A device of a user comes in."""
        presence = FakePresence(user, device or self._new_device(), self.now_ms)
        run.presences.append(presence)
        self.send_joined(run, presence)
        return presence

    def leave(self, run: FakeRun, presence: FakePresence) -> None:
        """A device goes."""
        presence.to_ms = self.now_ms
        self.send_left(run, presence)

    def end(self, run: FakeRun) -> None:
        """All go, and the run is over."""
        for presence in run.present():
            self.leave(run, presence)
        run.ended_ms = self.now_ms
        self.send_ended(run)

    def end_asked(self, run: FakeRun, user: str | None) -> bool:
        """Ends a participant's call, or the whole, as REST was asked.

        Returns whether the provider agrees.
        """
        self.ends.append((run.session, user))
        if self.ends_refused:
            self.ends_refused -= 1
            return False
        if user is None:
            self.end(run)
        for presence in run.present():
            if presence.user == user:
                self.leave(run, presence)
        return True

    def current(self, name: str) -> FakeRun | None:
        """The run of a call that goes on."""
        return next((run for run in self.runs if run.name == name and run.ended_ms is None), None)

    def take(self) -> list[SentWebhook]:
        """The events that were sent since the last time."""
        taken, self.sent = self.sent, []
        return taken

    def _hex(self, characters: int) -> str:
        return f"{self.random.getrandbits(4 * characters):0{characters}x}"

    def _new_run(self, call: str, custom: dict[str, Any]) -> FakeRun:
        raise NotImplementedError

    def _new_device(self) -> str:
        raise NotImplementedError

    def send_started(self, run: FakeRun) -> None:
        """Sends that a run has begun."""
        raise NotImplementedError

    def send_joined(self, run: FakeRun, presence: FakePresence) -> None:
        """Sends that a device came in."""
        raise NotImplementedError

    def send_left(self, run: FakeRun, presence: FakePresence) -> None:
        """Sends that a device went."""
        raise NotImplementedError

    def send_ended(self, run: FakeRun) -> None:
        """Sends that a run is over."""
        raise NotImplementedError

    def answer(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        """The answer of REST: status, content type, body.

        Headers are in lower case.
        """
        raise NotImplementedError
