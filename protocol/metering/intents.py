"""Intents: events that are due for a session and await Redis.

A session has one step on its way at a time. Other intents wait here, in order. The meter judges an
intent when its turn comes: by then it may be done already, or impossible.
"""

from collections.abc import Iterator

import msgspec

from protocol import limits
from protocol.metering.states import Event


class Intent(msgspec.Struct, eq=False):
    """An event that is to happen to the session."""

    event: Event
    at: int
    token: object = None
    """The author of the request, as the shell knows it; None: no request waits for an answer."""
    reason: str = "client"
    starts: bool = False
    """The intent is a resumption that starts the session."""

    @property
    def waits_for_proof(self) -> bool:
        """Whether this is a stop that the client did not ask for.

        Before such a stop the client may still prove the last seconds of its time.
        """
        return self.event is Event.STOP and self.reason != "client"

    @property
    def ends_at_request(self) -> bool:
        """Whether a client's request ends the running time at its instant."""
        return self.event in (Event.PAUSE, Event.STOP) and self.reason == "client"


class Intents:
    """The intents of a session, and the one on its way."""

    __slots__ = ("_waiting", "current")

    def __init__(self) -> None:
        self._waiting: list[Intent] = []
        self.current: Intent | None = None
        """The intent of the step on its way; None: a claim, or no step."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Intent]:
        if self.current is not None:
            yield self.current
        yield from self._waiting

    @property
    def full(self) -> bool:
        """Whether no more requests are taken, because the bound is reached."""
        return len(self._waiting) >= limits.REQUESTS_WAITING_PER_SESSION_MAX

    @property
    def first(self) -> Intent | None:
        """The intent whose turn is next."""
        return self._waiting[0] if self._waiting else None

    def add(self, intent: Intent) -> None:
        """Queues an intent. An intent without a token is not queued twice."""
        if intent.token is not None or all(
            waiting.event is not intent.event for waiting in self._waiting
        ):
            self._waiting.append(intent)

    def add_first(self, intent: Intent) -> None:
        """Queues an intent before all others, but after a gap.

        Time before a gap is not counted, so no other event may count it first.
        """
        follows_gap = self.first is not None and self.first.event is Event.UNPROVEN
        self._waiting.insert(int(follows_gap), intent)

    def waits(self, event: Event) -> bool:
        """Whether an intent of ``event`` waits."""
        return any(intent.event is event for intent in self._waiting)

    def includes(self, event: Event) -> bool:
        """Whether an intent of ``event`` waits or is on its way."""
        return any(intent.event is event for intent in self)

    @property
    def end_at_request(self) -> bool:
        """Whether a client's request that ends running time is open."""
        return any(intent.ends_at_request for intent in self)

    def take(self) -> Intent:
        """Takes the intent whose turn has come."""
        return self._waiting.pop(0)

    def drop(self, event: Event) -> None:
        """Removes the waiting intents of ``event``: they are not needed any more."""
        self._waiting = [intent for intent in self._waiting if intent.event is not event]

    def entitle(self, event: Event, token: object) -> bool:
        """Gives ``token`` the answer of a pending ``event`` without a token.

        Returns whether there was such an intent.
        """
        for intent in self:
            if intent.event is event and intent.token is None:
                intent.token = token
                return True
        return False

    def abandon(self) -> list[object]:
        """Returns the tokens of requests that await answers; their intents stay."""
        tokens = [intent.token for intent in self if intent.token is not None]
        for intent in self:
            intent.token = None
        return tokens
