"""The kinds of fields in messages: ids, credits, times, names of states.

Each field has a description, which JSON Schema and AsyncAPI repeat.
"""

import re
from typing import Annotated, Any, Literal

from msgspec import Meta

from protocol import limits
from protocol.wire.money import AMOUNT_PATTERN, CREDITS_PATTERN, PRICE_PATTERN

# In Python's dialect `$` also matches before a final newline. The look-ahead excludes that newline,
# and changes nothing in the dialect of JSON Schema.
ID_PATTERN = r"^[A-Za-z0-9._:@|+=~-]{1,128}$(?!\n)"
ID_TEXT = "1-128 characters of A-Z, a-z, 0-9 and . _ : @ | + = ~ -"
"""The rule for ids, in the words of an error message."""
_ID = re.compile(r"[A-Za-z0-9._:@|+=~-]{1,128}")


def is_id(text: object) -> bool:
    """Whether ``text`` is an id: 1-128 characters of ``[A-Za-z0-9._:@|+=~-]``.

    No such character is a separator of keys (``/``) or a brace of Redis's hash tags.
    """
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def describe(description: str) -> Meta:
    """Returns the metadata of a field that needs only a description."""
    return Meta(description=description)


def describe_id(description: str) -> Meta:
    """Returns the metadata of a field that contains an id."""
    return Meta(
        pattern=ID_PATTERN,
        min_length=1,
        max_length=limits.ID_CHARACTERS_MAX,
        description=description,
    )


Credits = Annotated[
    str,
    Meta(
        pattern=CREDITS_PATTERN,
        description="Credits: a decimal string with at most 6 decimals.",
        examples=["12.5", "0", "-0.000001"],
    ),
]
Amount = Annotated[
    str,
    Meta(
        description="Credits, more than 0: a decimal string with at most 6 decimals.",
        examples=["12.5", "0.000001"],
        # For readers of the schema only: `parse_credits` makes the error message.
        extra_json_schema={"pattern": AMOUNT_PATTERN},
    ),
]
Price = Annotated[
    str,
    Meta(
        description="Credits of a minute: a decimal string with at most 6 decimals.",
        examples=["1", "0.25", "0"],
        extra_json_schema={"pattern": PRICE_PATTERN},
    ),
]
DurationMs = Annotated[int, Meta(ge=0, description="A duration in milliseconds.")]
InstantAt = Annotated[int, Meta(ge=0, description="An instant in Unix epoch milliseconds.")]
SequenceNumber = Annotated[
    int,
    Meta(
        ge=0,
        le=limits.SAFE_INTEGER_MAX,
        description="The notice's number: rises within a session, equal on every process.",
    ),
]
RequestId = Annotated[
    int,
    Meta(
        ge=-limits.SAFE_INTEGER_MAX,
        le=limits.SAFE_INTEGER_MAX,
        description="The request's own number, which its answer echoes.",
    ),
]
SessionId = Annotated[str, describe_id("The session: one chat, recording or call.")]
KindName = Annotated[str, describe_id("A kind of the rate card.")]
CounterpartId = Annotated[str, describe_id("The other side: an advisor, a callee.")]
Metadata = Annotated[
    dict[str, Any],
    describe(f"Kept with the session; at most {limits.METADATA_BYTES_MAX} bytes of JSON."),
]
LastSeq = Annotated[
    int,
    Meta(
        ge=0,
        le=limits.SAFE_INTEGER_MAX,
        description="The newest `seq` that the client has: later notices come again, in `missed`.",
    ),
]
UserId = Annotated[str, describe_id("The user, the token's `sub`.")]
Token = Annotated[
    str, Meta(min_length=1, max_length=limits.TOKEN_CHARACTERS_MAX, description="A JWT.")
]

StateName = Literal["active", "paused", "suspended", "stopping", "ended"]
LimitName = Literal["credits", "member_minutes", "org_minutes", "session_cap"]
# PROTOCOL has no `unavailable`: we added it for DESIGN's stop after uncovered time.
StopReason = Literal[
    "client", "limit", "operator", "disconnected", "call_ended", "node_lost", "unavailable"
]
CreditReason = Literal["grant", "spend", "hold", "post", "void", "adjust", "expire"]

LimitField = Annotated[LimitName, describe("Which limit.")]
BindingLimit = Annotated[
    LimitName | None, describe("The limit that binds first; null when there is none.")
]
RemainingMs = Annotated[
    int | None,
    describe("Time until the limit binds, at the account's present burn; null: no limit."),
]
AccountCredits = Annotated[
    Credits,
    describe("The account's balance at this instant, after the burn of all its sessions so far."),
]
ElapsedMs = Annotated[DurationMs, describe("Counted time: without pauses and unbilled gaps.")]
FreeRemainingMs = Annotated[DurationMs, describe("Free time that is left.")]
Paid = Annotated[bool, describe("Whether free time is over, so that time costs credits.")]
