"""Credit grants: money in, by amount or by package."""

import bisect
import math
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol import limits
from protocol.metering.records import EntryPosted
from protocol.wire.errors import BadMessageError
from protocol.wire.fields import AccountCredits, Amount, Credits, InstantAt, describe, describe_id
from protocol.wire.money import format_credits, parse_credits
from server import limits as server_limits
from server.access.principals import ACTORS, READERS
from server.api.accounts import reader_of, view_account, view_as_due
from server.api.billing import AccountId, EntryId, Priority, Reason
from server.credits.credit_grants import PRIORITY_DEFAULT
from server.credits.outcomes import BalanceTooHighError
from server.http.acts import Act
from server.http.idempotency import (
    IdempotentRequest,
    claim_under_way,
    idempotent_of,
    once,
    under_way,
)
from server.http.openapi import IDEMPOTENCY_KEY, ORG, USER, Operation, described
from server.http.problems import Problem
from server.http.requests import (
    path_id,
    principal_of,
    process_of,
    raw_body,
    read_body,
    tenant_of_call,
)
from server.http.responses import answer
from server.process import Process
from storage import limits as storage_limits
from storage.redis.spending import AccountName
from storage.rows.accounts import GrantRow

ExpiresAt = Annotated[int | None, describe("When what is left of it is lost; null: never.")]
PackageId = Annotated[str, describe_id("A package of the rate card.")]

AMOUNT_OR_PACKAGE: dict[str, Any] = {
    "oneOf": [
        {
            "required": ["amount", "reason"],
            "properties": {
                "amount": {"type": "string"},
                "reason": {"type": "string"},
                "package": {"type": "null"},
            },
        },
        {
            "required": ["package"],
            "properties": {
                "package": {"type": "string"},
                "amount": {"type": "null"},
                "expires_at": {"type": "null"},
            },
        },
    ]
}
"""The choice in a :class:`GrantWanted`, as JSON Schema."""


class GrantWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for credits for an account, by amount or package."""

    amount: Annotated[Amount, describe("What to add; more than 0.")] | None = None
    package: PackageId | None = None
    reason: Reason | None = None
    expires_at: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=server_limits.INSTANT_AT_MAX,
                description="When what is left of an amount is lost.",
            ),
        ]
        | None
    ) = None
    priority: Priority = PRIORITY_DEFAULT


class GrantMade(msgspec.Struct, frozen=True, kw_only=True):
    """Credits were added to an account."""

    entry_id: EntryId
    account_id: AccountId
    amount: Annotated[Credits, describe("What was added.")]
    package: Annotated[str | None, describe("The package; null: an amount was granted.")]
    credits: AccountCredits
    created_at: InstantAt
    expires_at: ExpiresAt
    priority: Priority
    reason: Reason


class GrantLine(msgspec.Struct, frozen=True, kw_only=True):
    """A credit grant that is not used up."""

    entry_id: EntryId
    name: Annotated[
        str | None,
        describe("`package:ID`, or `allotment:TIER:MONTH` of what a tier gives; null: neither."),
    ]
    amount: Annotated[Credits, describe("What was added.")]
    used: Annotated[Credits, describe("What was used of it, as far as it is written down.")]
    left: Annotated[Credits, describe("What is left of it.")]
    granted_at: InstantAt
    expires_at: ExpiresAt
    priority: Priority
    due: (
        Annotated[
            bool, describe("True of what the tier gives, and adds when the credits are used.")
        ]
        | UnsetType
    ) = UNSET


class GrantsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The grants that make up an account's credits."""

    account_id: AccountId
    grants: Annotated[
        list[GrantLine],
        Meta(
            max_length=storage_limits.PAGE_ROWS_MAX,
            description="In the order in which they burn: lower priority, earlier end, older.",
        ),
    ]


@described(
    Operation(
        tag="accounts",
        roles=("user", "key", *READERS),
        path={"id": "The credit account."},
        parameters=(ORG, USER),
        answers={200: (GrantsAnswer,)},
    )
)
async def read_grants(request: Request) -> Response:
    """The grants of an account with credits left, in burn order."""
    process, account = reader_of(request)
    found = await process.records.grants(*account, storage_limits.PAGE_ROWS_MAX)
    lines = [_line(grant) for grant in found]
    due = await process.ledger.allotment_due(account)
    if due is not None:
        bisect.insort(lines, _line(due, due=True), key=_order)
    return answer(
        GrantsAnswer(account_id=account.account_id, grants=lines[: storage_limits.PAGE_ROWS_MAX])
    )


def _order(grant: GrantLine) -> tuple[int, float]:
    """Sort key for the order in which grants burn, without their age."""
    return grant.priority, math.inf if grant.expires_at is None else grant.expires_at


def _line(grant: GrantRow, *, due: bool = False) -> GrantLine:
    return GrantLine(
        entry_id=grant.entry_id,
        name=grant.name,
        amount=format_credits(grant.amount_micros),
        used=format_credits(grant.used_micros),
        left=format_credits(grant.left_micros),
        granted_at=grant.granted_at,
        expires_at=grant.expires_at,
        priority=grant.priority,
        due=True if due else UNSET,
    )


async def _credits_before(request: Request) -> object:
    process, account = reader_of(request)
    view = await view_account(process, *account)
    return {"credits": view.credits(process.clock.now())}


@described(
    Operation(
        tag="accounts",
        roles=("key", *ACTORS),
        act=Act(name="credit", target="account:{id}", is_keyed=True, before=_credits_before),
        path={"id": "The credit account."},
        parameters=(ORG, USER, IDEMPOTENCY_KEY),
        body=GrantWanted,
        body_rule=AMOUNT_OR_PACKAGE,
        answers={201: (GrantMade,)},
        errors={
            400: ("idempotency_key_required",),
            409: ("idempotency_under_way",),
            422: ("idempotency_mismatch", "balance_too_high", "unknown_package"),
        },
    )
)
async def grant_credits(request: Request) -> Response:
    """Adds credits to an account, once for each `Idempotency-Key`.

    An amount needs a `reason`; a package defines its amount and its expiry. Live sessions get the
    credits at once. `credits` is the balance after the burn of all sessions so far.
    """
    process = process_of(request)
    principal = principal_of(request)
    account_id = path_id(request)
    account = AccountName(tenant_of_call(request, principal, account_id), account_id)
    raw = await raw_body(request)
    wanted = read_body(raw, GrantWanted)
    _check(wanted)
    idempotent = idempotent_of(request, principal, account.tenant, "grants", raw)
    return await once(
        process.records, idempotent, lambda: _grant(process, idempotent, account, wanted)
    )


def _check(wanted: GrantWanted) -> None:
    if (wanted.amount is None) == (wanted.package is None):
        raise BadMessageError("amount: say an amount, or a package of the rate card")
    if wanted.amount is not None:
        if parse_credits(wanted.amount, name="amount") == 0:
            raise BadMessageError("amount: must be more than 0")
        if wanted.reason is None:
            raise BadMessageError("reason: missing")
    elif wanted.expires_at is not None:
        raise BadMessageError("expires_at: the package says when it expires")


async def _grant(
    process: Process, idempotent: IdempotentRequest, account: AccountName, wanted: GrantWanted
) -> Response:
    """Makes the entry in the ledger and in Redis, where missing."""
    entry, expires_at = _entry(process, idempotent, account, wanted)
    made = await process.records.entry(*account, entry.entry_id)
    if made is None:
        await _check_new(process, entry, expires_at)
    try:
        await process.ledger.enter(entry, wanted.priority, expires_at, claim_under_way())
    except BalanceTooHighError as error:
        raise _too_high(error) from None
    # The ledger decides: it remembers keys longer than the cache of answers does.
    made = made or await process.records.entry(*account, entry.entry_id)
    if made is None:
        raise under_way()  # another attempt has the key, and may have refused the grant
    package = _package_of(made.metadata)
    same = (package, made.priority) == (wanted.package, wanted.priority)
    if package is None:
        same &= (made.amount_micros, made.expires_at) == (entry.amount_micros, expires_at)
    if not same:
        raise Problem(422, "idempotency_mismatch", "the key was used for another grant")
    view = await view_as_due(process, account)
    return answer(
        GrantMade(
            entry_id=made.entry_id,
            account_id=account.account_id,
            amount=format_credits(made.amount_micros),
            package=package,
            credits=view.credits(process.clock.now()),
            created_at=made.created_at,
            expires_at=made.expires_at,
            priority=made.priority,
            reason=made.reason or "",
        ),
        201,
    )


def _entry(
    process: Process, idempotent: IdempotentRequest, account: AccountName, wanted: GrantWanted
) -> tuple[EntryPosted, int | None]:
    """The requested entry, and when it expires; raises ``unknown_package``."""
    entry_id = idempotent.entry_id("grant")
    if wanted.package is not None:
        try:
            return process.ledger.package_entry(
                account, wanted.package, entry_id=entry_id, reason=wanted.reason
            )
        except BadMessageError as error:
            raise Problem(422, "unknown_package", error.message) from None
    entry = EntryPosted(
        tenant=account.tenant,
        account_id=account.account_id,
        entry_id=entry_id,
        entry_kind="grant",
        amount_micros=parse_credits(wanted.amount, name="amount"),
        at=process.clock.now(),
        reason=wanted.reason,
    )
    return entry, wanted.expires_at


def _package_of(metadata: dict[str, Any] | None) -> str | None:
    """The package whose grant has this metadata; None for an amount."""
    kind, _, package = str((metadata or {}).get("name", "")).partition(":")
    return package if kind == "package" else None


async def _check_new(process: Process, entry: EntryPosted, expires_at: int | None) -> None:
    """Checks what must hold for a new grant only.

    It may no longer hold when the request is repeated.
    """
    if expires_at is not None and expires_at <= entry.at:
        raise BadMessageError("expires_at: must be in the future")
    view = await view_account(process, entry.tenant, entry.account_id)
    if view.projection.gross_micros + entry.amount_micros > limits.BALANCE_MICROS_MAX:
        # Postgres refuses a balance that is too high because of simultaneous grants. This check
        # includes what running sessions have used and have not settled yet.
        raise _too_high(BalanceTooHighError())


def _too_high(error: BalanceTooHighError) -> Problem:
    return Problem(422, "balance_too_high", error.message)


ROUTES = [
    Route("/v1/accounts/{id}/grants", read_grants),
    Route("/v1/accounts/{id}/grants", grant_credits, methods=["POST"]),
]
