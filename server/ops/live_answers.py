"""Live sessions and figures as operators get them."""

from typing import Annotated, Any

import msgspec

from protocol.wire.fields import (
    AccountCredits,
    BindingLimit,
    Credits,
    ElapsedMs,
    InstantAt,
    RemainingMs,
    SessionId,
    StateName,
    UserId,
    describe,
)
from protocol.wire.money import format_credits
from server.ops.live_rows import LiveRow


class LiveSessionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A live session."""

    session_id: SessionId
    user_id: UserId
    org_id: Annotated[str | None, describe("The organisation; null for a user without one.")]
    account_id: Annotated[str, describe("The credit account.")]
    kind: Annotated[str, describe("The kind of the rate card.")]
    state: StateName
    started_at: InstantAt
    as_of_at: Annotated[
        int, describe("The instant of these figures; until the next ones they run on at `pace`.")
    ]
    elapsed_ms: ElapsedMs
    pace: Annotated[
        int, describe("Counted time for each ms of real time; 0 while the session stands still.")
    ]
    credits: AccountCredits
    credits_per_minute: Annotated[Credits, describe("What all of the account's sessions burn.")]
    limit: BindingLimit
    remaining_ms: RemainingMs
    nodes: Annotated[list[str], describe("The processes with sockets of it.")]
    metadata: Annotated[dict[str, Any] | None, describe("What it was given at its start.")]


class SummarySample(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of all processes in one second."""

    at: Annotated[int, describe("When the second begins, in epoch ms.")]
    nodes: Annotated[int, describe("Processes.")]
    sessions: Annotated[
        dict[str, dict[str, int]],
        describe("Live sessions by kind and state; one with two processes counts twice."),
    ] = {}
    sockets: Annotated[int, describe("Open WebSockets.")] = 0
    streams: Annotated[int, describe("Open event streams.")] = 0
    burn_micros: Annotated[
        int, describe("What all sessions burn in a minute, in millionths of a credit.")
    ] = 0
    lag_ms: Annotated[int, describe("How late the latest event loop was at most.")] = 0
    pushes: Annotated[int, describe("Messages sent to sockets in about a second.")] = 0
    started: Annotated[int, describe("Sessions that were started in it.")] = 0
    rejoined: Annotated[int, describe("Sockets that joined a session that had started.")] = 0
    closed: Annotated[dict[str, int], describe("Sockets closed in it, by close code.")] = {}


def live_session_row(row: LiveRow, at: int) -> LiveSessionRow:
    """A row with its figures at an instant, in cluster time."""
    return LiveSessionRow(
        session_id=row.session_id,
        user_id=row.user_id,
        org_id=row.org_id,
        account_id=row.account_id,
        kind=row.kind,
        state=row.state,  # type: ignore[arg-type]
        started_at=row.started_at,
        as_of_at=at,
        elapsed_ms=row.elapsed_at(at),
        pace=row.pace,
        credits=format_credits(row.credits_at(at)),
        credits_per_minute=format_credits(row.burn_micros),
        limit=row.limit,  # type: ignore[arg-type]
        remaining_ms=row.remaining_at(at),
        nodes=list(row.nodes),
        metadata=row.metadata,
    )
