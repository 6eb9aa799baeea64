"""What all calls that charge credits share.

These are the payer, the price, and refusals. A charge is for an operation of the rate card, at its
price, or for an amount that a backend names. Only a backend may say whether an operation succeeded.
A failed operation costs nothing, so a user who could report a failure would never pay.
"""

from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta
from starlette.requests import Request

from protocol import limits
from protocol.metering.quota import month_after
from protocol.wire.codec import check_metadata
from protocol.wire.errors import BadMessageError, ErrorCode, PeerError
from protocol.wire.fields import Amount, describe, describe_id
from protocol.wire.money import format_credits, parse_credits
from server.access.principals import Principal
from server.counters.calendars import calendar
from server.credits.outcomes import Limited, Short
from server.http.problems import Problem
from server.http.requests import path_id, principal_of, query_id, tenant_of_call
from server.process import Process
from storage.redis.spending import AccountName

AccountId = Annotated[str, describe_id("The credit account.")]
EntryId = Annotated[str, describe("The ledger entry; the same at every attempt.")]
Reason = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=limits.REASON_CHARACTERS_MAX,
        description="The reason, for readers of the ledger.",
    ),
]
OperationName = Annotated[str, describe_id("An operation of the rate card.")]
Priority = Annotated[int, Meta(ge=0, le=255, description="Lower burns first.")]
Metadata = Annotated[
    dict[str, Any],
    Meta(
        description="What it took, for the statistics: `service`, `tokens_used`, "
        "`response_time_ms`, `success`, and any more; at most 2 KiB.",
        extra_json_schema={"properties": {"success": {"type": "boolean"}}},
    ),
]
SUCCESS: dict[str, Any] = {"properties": {"success": {"const": True}}}
"""Metadata of an operation that did not fail."""
OPERATION_OR_AMOUNT: dict[str, Any] = {
    "oneOf": [
        {
            "required": ["operation"],
            "properties": {"operation": {"type": "string"}, "amount": {"type": "null"}},
        },
        {
            "required": ["amount"],
            "properties": {
                "amount": {"type": "string"},
                "operation": {"type": "null"},
                "metadata": SUCCESS,
            },
        },
    ]
}
"""The target of a :class:`Charge`, as JSON Schema."""


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What to charge, and for what: an operation, or an amount."""

    operation: OperationName | None = None
    amount: (
        Annotated[Amount, describe("In place of an operation: credits, more than 0.")] | None
    ) = None
    user_id: (
        Annotated[str, describe_id("Who did it, as a backend knows; a token says its own.")] | None
    ) = None
    metadata: Metadata | None = None


class Price(NamedTuple):
    """The price of a charge."""

    micros: int
    operation: str | None


def account_of_call(request: Request) -> tuple[Principal, AccountName]:
    """Who charges, and the account.

    A backend may name any account; a user has one. An operator counts as a plain user here:
    operators may look into accounts, not charge them.
    """
    principal = principal_of(request)
    account_id = path_id(request)
    if principal.is_key:
        return principal, AccountName(tenant_of_call(request, principal, account_id), account_id)
    named = {"org": principal.org_id, "user": principal.user_id}
    if any(query_id(request, name) not in (None, own) for name, own in named.items()):
        raise PeerError(ErrorCode.FORBIDDEN, "a user's token reaches that user's data alone")
    if account_id != principal.account_id:
        raise PeerError(ErrorCode.FORBIDDEN, "the account is not this token's")
    assert principal.tenant is not None
    return principal, AccountName(principal.tenant, account_id)


def check_charge(charge: Charge, principal: Principal) -> None:
    """Checks that a charge is valid, and allowed for its sender.

    Raises ``bad_message`` for an invalid charge, and ``forbidden`` for one that only a backend may
    make.
    """
    if (charge.operation is None) == (charge.amount is None):
        raise BadMessageError("operation: name either an operation or, as a backend, an amount")
    if charge.amount is not None and parse_credits(charge.amount, name="amount") == 0:
        raise BadMessageError("amount: must be more than 0")
    succeeded = has_succeeded(charge.metadata)
    if principal.is_key:
        if not succeeded and charge.operation is None:
            raise BadMessageError("metadata.success: what failed is kept of operations alone")
        return
    if charge.amount is not None:
        raise PeerError(ErrorCode.FORBIDDEN, "amount: only a backend says what something costs")
    if charge.user_id not in (None, principal.user_id):
        raise PeerError(ErrorCode.FORBIDDEN, "user_id: is not this token's")
    if not succeeded:
        raise PeerError(
            ErrorCode.FORBIDDEN, "metadata.success: only a backend says that something failed"
        )


def has_succeeded(metadata: dict[str, Any] | None) -> bool:
    """Whether ``metadata`` reports success; raises ``bad_message`` for unusable metadata."""
    said = (check_metadata(metadata) or {}).get("success", True)
    if not isinstance(said, bool):
        raise BadMessageError("metadata.success: expected true or false")
    return said


def user_of(charge: Charge, principal: Principal, account: AccountName) -> str | None:
    """Who performed the operation.

    It is the token's user, the user that a backend names, or the only user of a tenant without an
    organisation.
    """
    if not principal.is_key:
        return principal.user_id
    kind, _, name = account.tenant.partition(":")
    return charge.user_id or (name if kind == "user" else None)


def price_of(process: Process, charge: Charge) -> Price:
    """The price of a charge by the rate card; raises ``unknown_operation``."""
    if charge.operation is None:
        assert charge.amount is not None
        return Price(parse_credits(charge.amount, name="amount"), None)
    return Price(operation_micros(process, charge.operation), charge.operation)


def operation_micros(process: Process, operation: str) -> int:
    """The price of an operation; raises ``unknown_operation``."""
    try:
        return process.rates.operation_micros(operation)
    except BadMessageError as error:
        raise Problem(422, "unknown_operation", error.message) from None


async def refusal_of(
    process: Process, account: AccountName, price: Price, refused: Short | Limited
) -> Problem:
    """The problem document of a refused charge: cause, and needs."""
    if isinstance(refused, Short):
        return Problem(
            402,
            "insufficient_credits",
            f"missing: {format_credits(refused.missing_micros)} credits",
            cost=format_credits(price.micros),
            missing=format_credits(refused.missing_micros),
            credits=format_credits(refused.credits_micros),
        )
    before = await process.ledger.before(account, "")
    days, now_ms = calendar(before.timezone), process.clock.now()
    resets_at = days.start_at(month_after(days.month(now_ms)))
    return Problem(
        429,
        "operation_limit",
        f"the tier {before.tier} may {price.operation} {refused.limit} times a month, and has "
        f"{refused.used} times",
        retry_after_s=-(-(resets_at - now_ms) // 1000),
        operation=price.operation,
        limit=refused.limit,
        used=refused.used,
        resets_at=resets_at,
    )
