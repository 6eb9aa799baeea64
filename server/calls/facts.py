"""What a call provider says, in the product's words.

An adapter for each provider turns signed events into facts, asks the provider's REST for the truth
about a call, and ends calls. The rest of the product knows no provider.
"""

import enum
from collections.abc import Mapping
from typing import Protocol

import msgspec


class FactKind(enum.StrEnum):
    """What happened to the run, or to one participant of it."""

    STARTED = "started"
    JOINED = "joined"
    LEFT = "left"
    ENDED = "ended"


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a provider said about one run of a call.

    Facts arrive in any order, repeated, late, or never.
    """

    provider: str
    """The adapter's name: ``stream``, ``livekit``, ``daily``."""
    call: str
    """The call's id in ``PUT /v1/calls/{id}``. Stream: the cid; LiveKit: the room's sid; Daily: the
    room's name."""
    call_session: str
    """One run of the call."""
    participant: str | None
    """The provider's user id; None for STARTED and ENDED."""
    device: str | None
    """One connection of the participant. Stream: `user_session_id`; LiveKit: the participant's sid.
    """
    kind: FactKind
    at_ms: int
    """The provider's instant of the fact, in epoch milliseconds; it may lie ahead of our clock."""
    provider_duration_ms: int | None = None
    """The provider's own figure for this presence, only from adapters with `has_duration`."""
    key: str
    """From the signed body: equal for a repetition of the same event, never for another event."""
    custom: dict[str, str] = {}
    """The call's custom data: it may map the call (payer, org, kind). Empty also where an event
    does not carry it: other facts of the call may, and a sweep does. It is as trustworthy as the
    application's permission to write it: Stream's clients may be allowed to."""
    rest_name: str = ""
    """The provider's REST knows the call by this name; empty: by `call`."""
    is_guess: bool = False
    """A sweep did not find the device: `at_ms` is its last proof, until a leaving says more."""
    wants_sweep: bool = False
    """The event says that the run exists and something changed, but not what: sweep the run soon.
    """


class CallRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a call, as :meth:`Adapter.sweep` and :meth:`Adapter.end` take it."""

    call: str
    call_session: str
    rest_name: str = ""
    """From a fact of the run."""


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of one device of a participant in the call."""

    participant: str
    device: str | None
    from_at_ms: int
    to_at_ms: int | None
    """None: the device is in the call as of `CallTruth.asked_at_ms`."""
    duration_ms: int | None = None
    """The provider's own figure for the stretch."""


class CallTruth(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider's REST says about one run of a call."""

    provider: str
    call: str
    call_session: str
    asked_at_ms: int
    """Our clock when the question was sent: the answer is at least as new."""
    started_at_ms: int | None
    ended: bool
    """The run is over. Its presences are then closed, whatever they say."""
    ended_at_ms: int | None
    """None: the run goes on, or the provider does not remember the instant of its end."""
    presences: tuple[Presence, ...]
    has_history: bool
    """False: `presences` has only those who are in the call now (LiveKit)."""
    complete: bool
    """False: the sweep's budget ended first, and participants may be missing."""
    durations_ms: dict[str, int] = {}
    """The provider's figure for each participant, all devices summed; empty without one."""
    custom: dict[str, str] = {}
    """The call's custom data, as in :class:`Fact`."""


class EventRefusal(enum.StrEnum):
    """Why an event is refused: codes of HTTP and of the metric."""

    FORGED = "event_forged"
    """No signature, or not one of the provider's."""
    ALTERED = "event_altered"
    """The signature is the provider's, but of another body."""
    ANCIENT = "event_ancient"
    """Older than the inbox remembers for certain: a replay would not be recognised."""
    AHEAD = "event_ahead"
    """From a time that has not come."""
    OVERSIZED = "event_oversized"
    """The body as it was sent is over its bound."""
    BOMB = "event_bomb"
    """The body is over its bound once unpacked."""
    ENCODING = "event_encoding"
    """Packed in a way that the server does not unpack."""
    MALFORMED = "event_malformed"
    """Signed, but not an event as the provider documents it."""


class RefusedEventError(Exception):
    """An event is refused, and nothing of it is kept."""

    def __init__(self, code: EventRefusal, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ProviderError(Exception):
    """The provider's REST gave no usable answer.

    ``retryable``: the same question may succeed later.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class Adapter(Protocol):
    """One call provider.

    ``headers`` are looked up in lower case. ``body`` is the event's uncompressed body, within its
    bound (``server.calls.bodies``).
    """

    @property
    def name(self) -> str:
        """The provider's name in facts, paths, session ids and metrics."""

    @property
    def has_duration(self) -> bool:
        """Whether the provider has its own figure for a participant's time."""

    @property
    def maps_calls(self) -> bool:
        """Whether the call's own data may say whose it is."""

    def verify(self, headers: Mapping[str, str], body: bytes, now_ms: int) -> None:
        """Raises :class:`RefusedEventError` unless ``body`` is the provider's, and young."""

    def event_key(self, body: bytes) -> str:
        """The key of a verified event: also of one without facts.

        The keys of its facts begin with it. At most 128 characters.
        """

    def facts(self, body: bytes) -> list[Fact]:
        """The facts of a verified event, earliest first. Pure.

        Empty for an event without a meaning for the meter. Raises :class:`RefusedEventError`
        (malformed).
        """

    async def sweep(self, run: CallRun) -> CallTruth:
        """Asks the provider's REST about a run; raises :class:`ProviderError`."""

    async def end(self, run: CallRun, participant: str | None) -> None:
        """Ends a participant's call; the whole call for None.

        Returns when the provider has agreed, also when there is nothing left to end. Raises
        :class:`ProviderError`. A caller repeats it until a fact or a sweep shows that it is done.
        """


class CallInbox(Protocol):
    """Where verified events wait until they are applied."""

    async def receive(self, provider: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Keeps a verified event; returns whether it is new.

        The event is kept before this returns.
        ``body`` is uncompressed. Raises ``storage``'s errors while Postgres is away.
        """
