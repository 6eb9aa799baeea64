"""Spends: charges an operation at once, or asks whether that works."""

from typing import Annotated, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire.fields import AccountCredits, Credits, describe
from protocol.wire.money import format_credits
from server.access.principals import Principal
from server.api.billing import (
    OPERATION_OR_AMOUNT,
    AccountId,
    Charge,
    EntryId,
    OperationName,
    account_of_call,
    check_charge,
    has_succeeded,
    operation_micros,
    price_of,
    refusal_of,
    user_of,
)
from server.credits.outcomes import Spent
from server.http.idempotency import IdempotentRequest, idempotent_of, once
from server.http.openapi import IDEMPOTENCY_KEY, ORG, USER, Operation, described
from server.http.problems import Problem
from server.http.requests import process_of, raw_body, read_body
from server.http.responses import answer
from server.process import Process
from storage.redis.spending import AccountName


class SpendMade(msgspec.Struct, frozen=True, kw_only=True):
    """Credits were taken, and the ledger has the entry."""

    entry_id: EntryId
    account_id: AccountId
    operation: Annotated[str | None, describe("What was done; null: an amount was taken.")]
    amount: Annotated[Credits, describe("What was taken; 0 of an operation that failed.")]
    credits: AccountCredits


@described(
    Operation(
        tag="accounts",
        roles=("user", "key"),
        path={"id": "The credit account."},
        parameters=(ORG, USER, IDEMPOTENCY_KEY),
        body=Charge,
        body_rule=OPERATION_OR_AMOUNT,
        answers={201: (SpendMade,)},
        errors={
            400: ("idempotency_key_required",),
            402: ("insufficient_credits",),
            409: ("idempotency_under_way",),
            422: ("idempotency_mismatch", "unknown_operation"),
            429: ("operation_limit",),
        },
    )
)
async def spend(request: Request) -> Response:
    """Charges an operation, or an amount, once for each `Idempotency-Key`.

    Credits that running sessions merely hold never stand in the way: the sessions give them back. A
    refusal is the final answer for its key. With `"success": false` in the metadata a backend
    records a failed operation, which costs nothing; a user cannot.
    """
    process = process_of(request)
    principal, account = account_of_call(request)
    raw = await raw_body(request)
    charge = read_body(raw, Charge)
    check_charge(charge, principal)
    idempotent = idempotent_of(request, principal, account.tenant, "spends", raw)
    return await once(
        process.records, idempotent, lambda: _spend(process, principal, idempotent, account, charge)
    )


async def _spend(
    process: Process,
    principal: Principal,
    idempotent: IdempotentRequest,
    account: AccountName,
    charge: Charge,
) -> Response:
    price, entry_id = price_of(process, charge), idempotent.entry_id("spend")
    spent = await process.ledger.spend(
        account,
        entry_id=entry_id,
        micros=price.micros,
        operation=price.operation,
        user_id=user_of(charge, principal, account),
        metadata=charge.metadata,
        succeeded=has_succeeded(charge.metadata),
    )
    if not isinstance(spent, Spent):
        raise await refusal_of(process, account, price, spent)
    if spent.operation != charge.operation or (
        charge.operation is None and spent.amount_micros != price.micros
    ):
        # The ledger decides: it remembers keys longer than the cache of answers does.
        raise Problem(422, "idempotency_mismatch", "the key was used for another spend")
    return answer(
        SpendMade(
            entry_id=entry_id,
            account_id=account.account_id,
            operation=price.operation,
            amount=format_credits(spent.amount_micros),
            credits=format_credits(spent.credits_micros),
        ),
        201,
    )


# --- Beforehand -----------------------------------------------------------------------


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Asks whether an operation could be done."""

    operation: OperationName


class CanPerformAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an operation could be done now. Only a hold guarantees it."""

    can_perform: bool
    reason: Annotated[
        Literal["insufficient_credits", "operation_limit"] | None,
        describe("The code with which it would be refused; null: it would not be."),
    ]
    cost: Annotated[Credits, describe("What it costs.")]
    credits: AccountCredits


@described(
    Operation(
        tag="accounts",
        roles=("user", "key"),
        path={"id": "The credit account."},
        parameters=(ORG, USER),
        body=Question,
        answers={200: (CanPerformAnswer,)},
        errors={422: ("unknown_operation",)},
    )
)
async def can_perform(request: Request) -> Response:
    """Whether an operation could be done now, and if not, why."""
    process = process_of(request)
    _, account = account_of_call(request)
    asked = read_body(await raw_body(request), Question)
    operation_micros(process, asked.operation)
    found = await process.ledger.can_perform(account, asked.operation)
    return answer(
        CanPerformAnswer(
            can_perform=found.can_perform,
            reason=found.reason,
            cost=format_credits(found.cost_micros),
            credits=format_credits(found.credits_micros),
        )
    )


ROUTES = [
    Route("/v1/accounts/{id}/spend", spend, methods=["POST"]),
    Route("/v1/accounts/{id}/can-perform", can_perform, methods=["POST"]),
]
