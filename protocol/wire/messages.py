"""The messages of the WebSocket, both directions, as types (PROTOCOL section 1).

These types are the one source for the codec, the type checker, JSON Schema and AsyncAPI, so every
field has a description. ``type`` is the tag and comes first. A field that PROTOCOL marks with ``?``
is optional: the JSON leaves it out when it is None. A field that PROTOCOL calls nullable is always
present, as ``null`` when it has no value.
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
    """A request of a client. The server ignores unknown fields."""

    id: RequestId | None = None


class SessionRequest(ClientMessage, frozen=True, kw_only=True):
    """A request about one session."""

    session_id: SessionId


class Auth(ClientMessage, frozen=True, kw_only=True, tag="auth"):
    """The first message of a socket. Answered by `welcome`."""

    token: Token


class Refresh(ClientMessage, frozen=True, kw_only=True, tag="refresh"):
    """A new token with the same `sub`, before the old one expires.

    Answered by `welcome`.
    """

    token: Token


class Start(SessionRequest, frozen=True, kw_only=True, tag="start"):
    """Starts a session, or joins a live one. Answered by `session`."""

    kind: KindName
    counterpart_id: CounterpartId | None = None
    tick_ms: (
        Annotated[
            int,
            Meta(
                ge=limits.TICK_MS_MIN,
                le=limits.TICK_MS_MAX,
                description="The time between ticks; left out: the kind's own.",
            ),
        ]
        | None
    ) = None
    metadata: Metadata | None = None
    last_seq: LastSeq | None = None


class Pause(SessionRequest, frozen=True, kw_only=True, tag="pause"):
    """Stops the counting of time. Answered by `session`."""


class Resume(SessionRequest, frozen=True, kw_only=True, tag="resume"):
    """Continues the counting of time. Answered by `session`."""


class Stop(SessionRequest, frozen=True, kw_only=True, tag="stop"):
    """Settles and ends the session. Answered by `stopped`."""


class Leave(SessionRequest, frozen=True, kw_only=True, tag="leave"):
    """Removes this socket.

    Other sockets keep the session; else its reconnect grace runs.
    """


class Watch(SessionRequest, frozen=True, kw_only=True, tag="watch"):
    """Receives the session's messages without keeping it alive. Answered by `session`."""

    org: Annotated[str, describe_id("For operators: the session's organisation.")] | None = None
    user: (
        Annotated[str, describe_id("For operators: the session's user, if without organisation.")]
        | None
    ) = None


class Ping(ClientMessage, frozen=True, kw_only=True, tag="ping"):
    """A proof of life that asks for an answer. Answered by `pong`."""


Request = Auth | Refresh | Start | Pause | Resume | Stop | Leave | Watch | Ping
"""Every request, for ``match`` statements; ``ClientMessage`` is the common base class."""

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


# --- Parts of the server's messages ----------------------------------------------


class LimitRemaining(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of a session and how far away it is."""

    limit: LimitField
    remaining_ms: Annotated[
        DurationMs, describe("Time until the limit binds, at the account's present burn.")
    ]


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of counted time."""

    from_at: InstantAt
    to_at: InstantAt


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch without a proof of life, after which the session continued."""

    from_at: InstantAt
    to_at: InstantAt
    billed: Annotated[bool, describe("Whether the kind bills gaps.")]


class ReceiptCorrection(msgspec.Struct, frozen=True):
    """An entry that corrects what a session was charged or counted."""

    entry_id: Annotated[str, describe("The entry in the ledger.")]
    at: InstantAt
    credits: Annotated[Credits, describe("Charged further; negative for credits given back.")]
    minutes: Annotated[int, describe("Minutes counted further; negative for those given back.")]
    reason: Annotated[str, describe("Why, in words.")]


class Receipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a session cost and why: in `stopped`, and at `GET /v1/sessions/{id}`."""

    session_id: SessionId
    kind: Annotated[str, describe("The kind of the rate card.")]
    user_id: UserId
    org_id: Annotated[str | None, describe("The organisation; null for a user without one.")]
    counterpart_id: Annotated[str | None, describe("The other side; null without a counterpart.")]
    started_at: InstantAt
    ended_at: InstantAt
    reason: Annotated[StopReason, describe("Why the session ended.")]
    elapsed_ms: ElapsedMs
    free_ms: Annotated[DurationMs, describe("The free part of the elapsed time.")]
    billed_ms: Annotated[DurationMs, describe("The time charged, after increments.")]
    minutes: Annotated[int, Meta(ge=0, description="The number of rows in `usage_tracking`.")]
    credits: Annotated[Credits, describe("What was charged.")]
    segments: Annotated[list[Segment], describe("The stretches of counted time.")]
    gaps: Annotated[list[Gap], describe("The stretches without proof of life.")]
    provider_ms: (
        Annotated[int, Meta(ge=0, description="The duration by an external clock.")] | None
    ) = None
    difference_ms: (
        Annotated[int, describe("The external clock's duration minus ours; signed.")] | None
    ) = None
    corrections: (
        Annotated[
            list[ReceiptCorrection],
            describe("Further entries. The figures above stay as they were when it ended."),
        ]
        | None
    ) = None


# --- Server to client ------------------------------------------------------------


class ServerMessage(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True
):
    """A message of the server; the subclasses inherit `omit_defaults`."""


class Answer(ServerMessage, frozen=True, kw_only=True):
    """A message that can answer a request, whose `id` it echoes."""

    id: RequestId | None = None


class Welcome(Answer, frozen=True, kw_only=True, tag="welcome"):
    """The server accepted the token. After `auth` and `refresh`."""

    user_id: UserId
    org_id: Annotated[str | None, describe("The user's organisation; null: none.")]
    account_id: Annotated[str, describe("The credit account that the sessions burn.")]
    credits: AccountCredits
    node: Annotated[str, describe("The server process, for support.")]
    server_time_at: InstantAt
    ping_ms: Annotated[DurationMs, describe("The interval of the server's pings.")]
    expires_at: Annotated[int | None, describe("When the token expires; null: never (an API key).")]


class FreeTime(ServerMessage, frozen=True, kw_only=True, tag="free_time"):
    """Free time ended."""

    session_id: SessionId
    seq: SequenceNumber
    free_remaining_ms: FreeRemainingMs
    paid: Paid


class LimitWarning(ServerMessage, frozen=True, kw_only=True, tag="limit_warning"):
    """The remaining time fell below a threshold; sent once per crossing."""

    session_id: SessionId
    seq: SequenceNumber
    limit: LimitField
    remaining_ms: Annotated[DurationMs, describe("Time until the limit binds.")]
    threshold_ms: Annotated[DurationMs, describe("The threshold that was crossed.")]


class LimitCleared(ServerMessage, frozen=True, kw_only=True, tag="limit_cleared"):
    """A top-up or adjustment raised the remaining time above its threshold again."""

    session_id: SessionId
    seq: SequenceNumber
    limit: LimitField
    remaining_ms: RemainingMs


class LimitReached(ServerMessage, frozen=True, kw_only=True, tag="limit_reached"):
    """The automatic stop: counting has stopped. After a top-up, `resume` continues."""

    session_id: SessionId
    seq: SequenceNumber
    limit: LimitField
    stopped_at: Annotated[InstantAt, describe("When counting stopped.")]
    elapsed_ms: Annotated[ElapsedMs, describe("The counted time at the stop, for display.")]
    grace_ms: Annotated[DurationMs, describe("Unbilled time to save, from `stopped_at`.")]


class Stopped(Answer, frozen=True, kw_only=True, tag="stopped"):
    """The session ended. Sent once to each of its sockets."""

    session_id: SessionId
    seq: SequenceNumber
    reason: Annotated[StopReason, describe("Why the session ended.")]
    limit: LimitField | None = None
    receipt: Receipt


Notice = FreeTime | LimitWarning | LimitCleared | LimitReached | Stopped
"""The messages with a ``seq``: kept, and delivered again after a reconnect."""


class Session(Answer, frozen=True, kw_only=True, tag="session"):
    """The snapshot: answers, and changes that no tick shows.

    Sent after start, join, pause, resume, and each change that no tick shows.
    """

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
    ends_at: Annotated[
        int | None, describe("When the limit binds, or the grace after it ends; null: never.")
    ]
    limits: Annotated[list[LimitRemaining], describe("Every limit of the session.")]
    missed: Annotated[list[Notice], describe("The kept notices above `last_seq`, oldest first.")]
    server_time_at: InstantAt
    # A factory makes msgspec write 1 too: it leaves out plain defaults only.
    speed: Annotated[
        int,
        Meta(ge=1, description="Counted milliseconds per real one; above 1 in demonstrations."),
    ] = msgspec.field(default_factory=lambda: 1)


class Tick(ServerMessage, frozen=True, kw_only=True, tag="tick"):
    """Sent every `tick_ms` while active.

    Droppable: a slow socket gets only the newest.
    """

    session_id: SessionId
    elapsed_ms: ElapsedMs
    free_remaining_ms: FreeRemainingMs
    paid: Paid
    credits: AccountCredits
    remaining_ms: RemainingMs
    limit: BindingLimit


class Credit(ServerMessage, frozen=True, kw_only=True, tag="credit"):
    """The account changed by something other than this session's own time."""

    account_id: Annotated[str, describe("The credit account.")]
    credits: AccountCredits
    delta: Annotated[Credits, describe("The credits added; negative for credits taken.")]
    reason: Annotated[CreditReason, describe("What changed the account.")]
    operation: Annotated[str, describe("The operation of the rate card.")] | None = None
    entry_id: Annotated[str, describe("The ledger entry, or the hold.")]


class MonthUsage(ServerMessage, frozen=True, kw_only=True, tag="usage"):
    """The member's month: after `auth`, and after each counted minute.

    A slow socket gets the newest only.
    """

    month: Annotated[str, describe("The month, by its first day: `2026-11-01`.")]
    member_used_ms: Annotated[
        DurationMs, describe("What the member has used of the month: whole minutes, once begun.")
    ]
    member_limit_ms: Annotated[int | None, describe("The member's limit; null: none.")]
    org_used_ms: Annotated[
        int | None, describe("What all members have used; null for a user without one.")
    ]
    org_limit_ms: Annotated[
        int | None, describe("The organisation's limit, which overage may exceed; null: none.")
    ]


class Minute(ServerMessage, frozen=True, kw_only=True, tag="minute"):
    """A minute was completed and is on its way to the record."""

    session_id: SessionId
    minute: Annotated[int, Meta(ge=0, description="The minute's number in its session, from 0.")]
    seconds: Annotated[int, Meta(ge=1, le=60, description="60, except in a last minute.")]
    credits: Annotated[Credits, describe("What the minute cost.")]


class Reconnect(ServerMessage, frozen=True, kw_only=True, tag="reconnect"):
    """This process drains: the client closes the socket and reconnects."""

    after_ms: Annotated[DurationMs, describe("Reconnect at a random time within this interval.")]


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
        int | None, describe("After `rate_limited`: the time until the same request is accepted.")
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
    MonthUsage,
    Minute,
    Stopped,
    Reconnect,
    Pong,
    Error,
)
