"""What the calls about calls answer."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from protocol.wire import messages
from protocol.wire.fields import Credits, InstantAt, StateName, describe
from server.calls import limits as call_limits
from server.calls.mapping import CallPlan

CallStateName = Literal["active", "parked", "ended"]
STATES: dict[str, Any] = {"type": "string", "enum": ["active", "parked", "ended"]}
CallSession = Annotated[str, describe("One run of the call, by the provider's name.")]
ProviderName = Annotated[str, describe("The call's provider.")]
CallState = Annotated[
    CallStateName,
    describe(
        "`parked`: a participant of it cannot be billed, or a fact fails; `active`, or `ended`."
    ),
]
ParkedCode = Annotated[
    str | None, describe("Why the participant is parked, a stable code; null: is not.")
]


class CallFact(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the provider said, or that a sweep found out."""

    kind: Annotated[str, describe("`started`, `joined`, `left` or `ended`.")]
    device: Annotated[str | None, describe("The participant's connection.")]
    happened_at: Annotated[int, describe("The provider's instant, in epoch ms.")]
    received_at: InstantAt
    state: Annotated[str, describe("`applied`, `waiting`, or `parked`.")]
    swept: Annotated[bool, describe("Whether a sweep found it out: its event was lost, or late.")]


class CallParticipant(msgspec.Struct, frozen=True, kw_only=True):
    """A participant of one run."""

    provider_user_id: Annotated[str, describe("The provider's user id.")]
    call_session: CallSession
    parked_because: ParkedCode
    user_id: Annotated[str | None, describe("Our user; null: parked.")]
    org_id: Annotated[str | None, describe("The user's organisation.")]
    account_id: Annotated[str | None, describe("The account that pays.")]
    kind: Annotated[str | None, describe("The kind of the rate card.")]
    session_id: Annotated[str | None, describe("The session that counts the time; null: parked.")]
    state: Annotated[StateName | None, describe("The session's; null: it is not known, or none.")]
    elapsed_ms: Annotated[int | None, describe("Counted time so far; null: not known now.")]
    credits: Annotated[Credits | None, describe("What it has cost so far; null: not known now.")]
    provider_ms: Annotated[
        int | None, describe("The provider's own figure; null: none, or not known yet.")
    ]
    difference_ms: Annotated[int | None, describe("The provider's figure less ours.")]
    corrected_because: Annotated[
        str | None, describe("Why there is a difference, or a correction; null: there is none.")
    ]
    corrections: Annotated[
        list[messages.ReceiptCorrection], describe("Entries that brought it to the other clock.")
    ]
    receipt: Annotated[messages.Receipt | None, describe("Its receipt; null: it has not ended.")]
    facts: Annotated[list[CallFact], describe("The newest facts, in the order of arrival.")]


class CallParkedFact(msgspec.Struct, frozen=True, kw_only=True):
    """A fact that failed each time it was applied."""

    kind: Annotated[str, describe("`started`, `joined`, `left` or `ended`.")]
    provider_user_id: Annotated[str | None, describe("Whose; null: it is of the whole run.")]
    happened_at: Annotated[int, describe("The provider's instant, in epoch ms.")]
    received_at: InstantAt
    attempts: Annotated[int, describe("Failed attempts.")]
    error: Annotated[str, describe("The last one's error.")]


ParkedFacts = Annotated[
    list[CallParkedFact],
    describe(
        "Facts that failed each time. A plan, also the same one again, or `calls retry` has them "
        f"applied again. At most {call_limits.CALL_FACTS_FAILED_SHOWN_MAX}, the oldest."
    ),
]


class CallRunShown(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a call."""

    call_session: CallSession
    state: CallState
    started_at: Annotated[int | None, describe("The provider's instant; null: not known.")]
    ended_at: Annotated[int | None, describe("The provider's instant; null: it has not ended.")]
    first_fact_at: Annotated[int, describe("When its first fact came in.")]
    swept_at: Annotated[int | None, describe("When the provider was last asked; null: never.")]
    parked_facts: ParkedFacts


class CallShown(msgspec.Struct, frozen=True, kw_only=True):
    """A call, its newest runs, and their participants."""

    id: Annotated[str, describe("The call. Stream: the cid; LiveKit: the room's sid.")]
    provider: ProviderName
    state: Annotated[
        CallStateName | Literal["planned"],
        describe("That of its newest run; `planned`: a backend put it, and nothing has happened."),
    ]
    plan: Annotated[CallPlan | None, describe("What a backend put; null: nothing.")]
    plan_version: Annotated[int, Meta(ge=0, description="Rises with each plan; 0: none.")]
    runs: list[CallRunShown]
    participants: list[CallParticipant]


class CallPersonListed(msgspec.Struct, frozen=True, kw_only=True):
    """A participant of a run, in the list."""

    provider_user_id: str
    parked_because: ParkedCode
    user_id: str | None
    org_id: str | None
    session_id: str | None


class CallListed(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a call, in the list."""

    id: str
    provider: ProviderName
    call_session: CallSession
    state: CallState
    started_at: int | None
    ended_at: int | None
    first_fact_at: int
    participants: Annotated[
        list[CallPersonListed],
        describe(f"At most {call_limits.CALL_PARTICIPANTS_LISTED_MAX}, by their names."),
    ]
    parked_facts: ParkedFacts


class CallPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of runs, newest first."""

    items: list[CallListed]
    next_cursor: Annotated[
        str | None, describe("Asks for the page after this one; null: this is the last.")
    ]
