"""Intents: what is to happen to a session, waiting for its turn at Redis.

A session has one step on its way at a time. What comes meanwhile waits here, in order,
and is judged when its turn comes: by then it may be settled already, or impossible.
"""

from collections.abc import Iterator

import msgspec

from protocol import limits
from protocol.metering.states import Event


class Intent(msgspec.Struct, eq=False):
    """Something that is to happen."""

    event: Event
    at: int
    token: object = None
    """Whoever asked for it, as the shell knows them; None: nobody waits for an answer."""
    reason: str = "client"
    starts: bool = False
    """It is a resumption that starts the session."""

    @property
    def waits_for_proof(self) -> bool:
        """Whether it is a stop by somebody else, before which the client may prove the
        last seconds of its time."""
        return self.event is Event.STOP and self.reason != "client"

    @property
    def ends_at_request(self) -> bool:
        """Whether it is a client's, and ends the running time where it was asked for."""
        return self.event in (Event.PAUSE, Event.STOP) and self.reason == "client"


class Intents:
    """The intents of one session, and the one whose step is on its way."""

    __slots__ = ("_waiting", "current")

    def __init__(self) -> None:
        self._waiting: list[Intent] = []
        self.current: Intent | None = None
        """What the step on its way was asked for; None: a claim, or nothing."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Intent]:
        if self.current is not None:
            yield self.current
        yield from self._waiting

    @property
    def full(self) -> bool:
        """Whether so many wait that no more requests are taken."""
        return len(self._waiting) >= limits.REQUESTS_WAITING_PER_SESSION_MAX

    @property
    def first(self) -> Intent | None:
        """The one whose turn is next."""
        return self._waiting[0] if self._waiting else None

    def add(self, intent: Intent) -> None:
        """Queues an intent. One that nobody waits for is not queued twice."""
        if intent.token is not None or all(
            waiting.event is not intent.event for waiting in self._waiting
        ):
            self._waiting.append(intent)

    def add_first(self, intent: Intent) -> None:
        """Queues an intent before all others."""
        self._waiting.insert(0, intent)

    def take(self) -> Intent:
        """Takes the one whose turn it is."""
        return self._waiting.pop(0)

    def drop(self, event: Event) -> None:
        """Forgets what waits for ``event``: it has happened, or need not any more."""
        self._waiting = [intent for intent in self._waiting if intent.event is not event]

    def entitle(self, event: Event, token: object) -> bool:
        """Lets ``token`` be answered when ``event`` is done, if nobody is yet."""
        for intent in self:
            if intent.event is event and intent.token is None:
                intent.token = token
                return True
        return False

    def abandon(self) -> list[object]:
        """Hands back everybody who waits for an answer; what they asked for stays."""
        tokens = [intent.token for intent in self if intent.token is not None]
        for intent in self:
            intent.token = None
        return tokens
