"""The messages of the WebSocket, both directions, as types (PROTOCOL section 1).

They are the one source for the codec, the type checker, JSON Schema and AsyncAPI, so
every field says what it is. ``type`` is the tag and comes first. Fields that PROTOCOL
marks with ``?`` are optional: left out of the JSON when they are None. Fields that it
calls nullable are always there, as ``null`` when there is nothing to say.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from protocol import limits
from protocol.wire.fields import (
    AccountCredits,
    BindingLimit,
    CounterpartId,
    CreditReason,
    Credits,
    DurationMs,
    ElapsedMs,
    FreeRemainingMs,
    InstantAt,
    KindName,
    LastSeq,
    LimitField,
    Metadata,
    Paid,
    RemainingMs,
    RequestId,
    SequenceNumber,
    SessionId,
    StateName,
    StopReason,
    Token,
    UserId,
    describe,
    describe_id,
)

# --- Client to server ------------------------------------------------------------


class ClientMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """A request of a client. Fields that it does not have are ignored."""

    id: RequestId | None = None


class SessionRequest(ClientMessage, frozen=True, kw_only=True):
    """A request about one session."""

    session_id: SessionId


class Auth(ClientMessage, frozen=True, kw_only=True, tag="auth"):
    """The first message of a socket. Answered by `welcome`."""

    token: Token


class Refresh(ClientMessage, frozen=True, kw_only=True, tag="refresh"):
    """A new token with the same `sub`, before the old one expires. Answered by `welcome`."""

    token: Token


class Start(SessionRequest, frozen=True, kw_only=True, tag="start"):
    """Starts a session, or joins it where it lives already. Answered by `session`."""

    kind: KindName
    counterpart_id: CounterpartId | None = None
    tick_ms: (
        Annotated[
            int,
            Meta(
                ge=limits.TICK_MS_MIN,
                le=limits.TICK_MS_MAX,
                description="The time between ticks; the kind's own when left out.",
            ),
        ]
        | None
    ) = None
    metadata: Metadata | None = None
    last_seq: LastSeq | None = None


class Pause(SessionRequest, frozen=True, kw_only=True, tag="pause"):
    """Time stops. Answered by `session`."""


class Resume(SessionRequest, frozen=True, kw_only=True, tag="resume"):
    """Time goes on. Answered by `session`."""


class Stop(SessionRequest, frozen=True, kw_only=True, tag="stop"):
    """Settles and ends the session. Answered by `stopped`."""


class Leave(SessionRequest, frozen=True, kw_only=True, tag="leave"):
    """This socket leaves; the session goes on for others, else its reconnect grace runs."""


class Watch(SessionRequest, frozen=True, kw_only=True, tag="watch"):
    """Receive the session's pushes without keeping it alive. Answered by `session`."""

    org: (
        Annotated[str, describe_id("Of operators: the organisation whose session it is.")] | None
    ) = None
    user: (
        Annotated[str, describe_id("Of operators: the user without one whose session it is.")]
        | None
    ) = None


class Ping(ClientMessage, frozen=True, kw_only=True, tag="ping"):
    """A proof of life that asks for an answer. Answered by `pong`."""


Request = Auth | Refresh | Start | Pause | Resume | Stop | Leave | Watch | Ping
"""Every request. To be matched on: ``ClientMessage`` is their base class."""

CLIENT_MESSAGES: tuple[type[ClientMessage], ...] = (
    Auth,
    Refresh,
    Start,
    Pause,
    Resume,
    Stop,
    Leave,
    Watch,
    Ping,
)


# --- Parts of what the server says -----------------------------------------------


class LimitRemaining(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of a session and how far away it is."""

    limit: LimitField
    remaining_ms: Annotated[
        DurationMs, describe("Time until it binds, at today's burn of all the account's sessions.")
    ]


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of counted time."""

    from_at: InstantAt
    to_at: InstantAt


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch without a proof of life, after which the session went on."""

    from_at: InstantAt
    to_at: InstantAt
    billed: Annotated[bool, describe("Whether the kind bills gaps.")]


class Receipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a session came to: in `stopped`, and at `GET /v1/sessions/{id}`."""

    session_id: SessionId
    kind: Annotated[str, describe("The kind of the rate card.")]
    user_id: UserId
    org_id: Annotated[str | None, describe("The organisation; null for a user without one.")]
    counterpart_id: Annotated[str | None, describe("The other side; null when none was named.")]
    started_at: InstantAt
    ended_at: InstantAt
    reason: Annotated[StopReason, describe("Why the session ended.")]
    elapsed_ms: ElapsedMs
    free_ms: Annotated[DurationMs, describe("How much of the elapsed time was free.")]
    billed_ms: Annotated[DurationMs, describe("The time charged, after increments.")]
    minutes: Annotated[int, Meta(ge=0, description="The number of rows in `usage_tracking`.")]
    credits: Annotated[Credits, describe("What was charged.")]
    segments: Annotated[list[Segment], describe("The stretches of counted time.")]
    gaps: Annotated[list[Gap], describe("The stretches without proof of life.")]
    provider_ms: (
        Annotated[int, Meta(ge=0, description="The duration by an external clock.")] | None
    ) = None
    difference_ms: (
        Annotated[int, describe("The external clock's figure less ours; signed.")] | None
    ) = None


# --- Server to client ------------------------------------------------------------


class ServerMessage(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True
):
    """Something that the server says; the subclasses inherit `omit_defaults`."""


class Answer(ServerMessage, frozen=True, kw_only=True):
    """Something that can answer a request, whose `id` it then echoes."""

    id: RequestId | None = None


class Welcome(Answer, frozen=True, kw_only=True, tag="welcome"):
    """The token was good. After `auth` and `refresh`."""

    user_id: UserId
    org_id: Annotated[str | None, describe("The user's organisation; null: none.")]
    account_id: Annotated[str, describe("The credit account that the sessions burn.")]
    credits: AccountCredits
    node: Annotated[str, describe("The server process, for support.")]
    server_time_at: InstantAt
    ping_ms: Annotated[DurationMs, describe("The server pings so often.")]
    expires_at: Annotated[int | None, describe("When the token expires; null: never (an API key).")]


class FreeTime(ServerMessage, frozen=True, kw_only=True, tag="free_time"):
    """Free time ended."""

    session_id: SessionId
    seq: SequenceNumber
    free_remaining_ms: FreeRemainingMs
    paid: Paid


class LimitWarning(ServerMessage, frozen=True, kw_only=True, tag="limit_warning"):
    """A threshold was crossed downwards; once per crossing."""

    session_id: SessionId
    seq: SequenceNumber
    limit: LimitField
    remaining_ms: Annotated[DurationMs, describe("Time until the limit binds.")]
    threshold_ms: Annotated[DurationMs, describe("The threshold that was crossed.")]


class LimitCleared(ServerMessage, frozen=True, kw_only=True, tag="limit_cleared"):
    """A top-up or adjustment lifted a limit above its threshold again."""

    session_id: SessionId
    seq: SequenceNumber
    limit: LimitField
    remaining_ms: RemainingMs


class LimitReached(ServerMessage, frozen=True, kw_only=True, tag="limit_reached"):
    """The auto-stop: counting has stopped. `resume` after a top-up goes on."""

    session_id: SessionId
    seq: SequenceNumber
    limit: LimitField
    stopped_at: Annotated[InstantAt, describe("When counting stopped.")]
    elapsed_ms: Annotated[ElapsedMs, describe("What was counted when it stopped: to be shown.")]
    grace_ms: Annotated[DurationMs, describe("Unbilled time to save, from `stopped_at`.")]


class Stopped(Answer, frozen=True, kw_only=True, tag="stopped"):
    """The session ended. Once, to each of its sockets."""

    session_id: SessionId
    seq: SequenceNumber
    reason: Annotated[StopReason, describe("Why the session ended.")]
    limit: LimitField | None = None
    receipt: Receipt


Notice = FreeTime | LimitWarning | LimitCleared | LimitReached | Stopped
"""The messages with a ``seq``: kept, and delivered again after a reconnect."""


class Session(Answer, frozen=True, kw_only=True, tag="session"):
    """The snapshot: after start, join, pause, resume, and any change no tick can show."""

    session_id: SessionId
    kind: Annotated[str, describe("The kind of the rate card.")]
    state: Annotated[StateName, describe("`stopping` is the grace after `limit_reached`.")]
    seq: SequenceNumber
    started_at: InstantAt
    elapsed_ms: ElapsedMs
    free_remaining_ms: FreeRemainingMs
    paid: Paid
    credits: AccountCredits
    credits_per_minute: Annotated[Credits, describe("The price of a billed minute.")]
    limit: BindingLimit
    remaining_ms: RemainingMs
    ends_at: Annotated[int | None, describe("When the limit binds; null: none.")]
    limits: Annotated[list[LimitRemaining], describe("Every limit of the session.")]
    missed: Annotated[list[Notice], describe("The kept notices above `last_seq`, oldest first.")]
    server_time_at: InstantAt
    # A factory, so that 1 is written too: only plain defaults are left out.
    speed: Annotated[
        int, Meta(ge=1, description="Counted milliseconds per real one; 1 but in demonstrations.")
    ] = msgspec.field(default_factory=lambda: 1)


class Tick(ServerMessage, frozen=True, kw_only=True, tag="tick"):
    """Every `tick_ms` while active. Droppable: a slow socket gets the newest only."""

    session_id: SessionId
    elapsed_ms: ElapsedMs
    free_remaining_ms: FreeRemainingMs
    paid: Paid
    credits: AccountCredits
    remaining_ms: RemainingMs
    limit: BindingLimit


class Credit(ServerMessage, frozen=True, kw_only=True, tag="credit"):
    """The account changed by something else than this session's own time."""

    account_id: Annotated[str, describe("The credit account.")]
    credits: AccountCredits
    delta: Annotated[Credits, describe("What was added; negative for what was taken.")]
    reason: Annotated[CreditReason, describe("What changed it.")]
    operation: Annotated[str, describe("The operation of the rate card.")] | None = None
    entry_id: Annotated[str, describe("The ledger entry, or the hold.")]


class Minute(ServerMessage, frozen=True, kw_only=True, tag="minute"):
    """A minute was completed and is on its way to the record."""

    session_id: SessionId
    minute: Annotated[int, Meta(ge=0, description="The minute's number in its session, from 0.")]
    seconds: Annotated[int, Meta(ge=1, le=60, description="60, except in a last minute.")]
    credits: Annotated[Credits, describe("What the minute cost.")]


class Reconnect(ServerMessage, frozen=True, kw_only=True, tag="reconnect"):
    """This process drains: close and come back."""

    after_ms: Annotated[DurationMs, describe("Spread the return over so long.")]


class Pong(Answer, frozen=True, kw_only=True, tag="pong"):
    """The answer to `ping`."""

    server_time_at: InstantAt


class Error(Answer, frozen=True, kw_only=True, tag="error"):
    """A request failed."""

    code: Annotated[
        Literal[
            "bad_message",
            "unauthenticated",
            "forbidden",
            "unknown_kind",
            "unknown_session",
            "session_ended",
            "limit_reached",
            "rate_limited",
            "unavailable",
        ],
        describe("What failed, for programs."),
    ]
    message: Annotated[str, describe("What failed, for the person who reads the log.")]
    retryable: Annotated[bool, describe("Whether the same request may succeed a little later.")]
    limit: LimitField | None = None
    retry_after_ms: Annotated[
        int | None, describe("Of `rate_limited`: when the same request is let through.")
    ] = None


SERVER_MESSAGES: tuple[type[ServerMessage], ...] = (
    Welcome,
    Session,
    Tick,
    FreeTime,
    Credit,
    LimitWarning,
    LimitCleared,
    LimitReached,
    Minute,
    Stopped,
    Reconnect,
    Pong,
    Error,
)
