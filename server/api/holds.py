"""Holds: credits reserved before an operation, then charged or given back."""

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.metering.records import HoldState
from protocol.wire.codec import check_metadata
from protocol.wire.errors import BadMessageError
from protocol.wire.fields import AccountCredits, Credits, InstantAt, describe, describe_id
from protocol.wire.money import NOT_NEGATIVE_PATTERN, format_credits, parse_credits
from server import limits as server_limits
from server.access.principals import Principal, tenant_of
from server.api.billing import (
    OPERATION_OR_AMOUNT,
    SUCCESS,
    AccountId,
    Charge,
    Metadata,
    account_of_call,
    check_charge,
    has_succeeded,
    price_of,
    refusal_of,
    user_of,
)
from server.credits.outcomes import Exceeds, Held, HoldGone
from server.http.idempotency import IdempotentRequest, idempotent_of, once
from server.http.openapi import IDEMPOTENCY_KEY, ORG, USER, Operation, described
from server.http.problems import Problem
from server.http.requests import path_id, principal_of, process_of, query_id, raw_body, read_body
from server.http.responses import answer
from server.process import Process
from storage.redis.spending import AccountName
from storage.rows.accounts import HoldRow

Done = Annotated[
    dict[str, Any],
    Meta(description="What the operation took. A failed one is voided.", extra_json_schema=SUCCESS),
]


class HoldWanted(Charge, frozen=True, kw_only=True):
    """Asks for a hold for an operation, or up to an amount."""

    metadata: Annotated[Done, describe("What is known of it beforehand.")] | None = None
    ttl_ms: Annotated[
        int,
        Meta(
            ge=1,
            le=server_limits.HOLD_MS_MAX,
            description="Time after which the hold expires without a charge.",
        ),
    ] = server_limits.HOLD_MS_DEFAULT


class PostWanted(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a hold to charge."""

    amount: Annotated[
        str,
        Meta(
            description="Credits, no more than are held.",
            examples=["3.25", "0"],
            extra_json_schema={"pattern": NOT_NEGATIVE_PATTERN},
        ),
    ]
    metadata: Annotated[Done, describe("What it took; added to the hold's.")] | None = None


class VoidWanted(msgspec.Struct, frozen=True):
    """An optional body, which must be an object if present."""

    EMPTY_BODY: ClassVar[bool] = True


class HoldAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A hold, and the balance of its account."""

    hold_id: Annotated[str, describe_id("The hold.")]
    account_id: AccountId
    state: Annotated[
        HoldState,
        describe("`open` while it holds; then its final state."),
    ]
    amount: Annotated[Credits, describe("What is held, or was.")]
    posted: Annotated[Credits, describe("What was charged of it.")]
    operation: Annotated[str | None, describe("The operation it is for; null: an amount.")]
    user_id: Annotated[str | None, describe("Whose operation it is, where that is known.")]
    created_at: InstantAt
    expires_at: InstantAt
    metadata: Metadata | None
    credits: AccountCredits


OPENING = Operation(
    tag="accounts",
    roles=("key",),
    path={"id": "The credit account."},
    parameters=(ORG, USER, IDEMPOTENCY_KEY),
    body=HoldWanted,
    body_rule=OPERATION_OR_AMOUNT,
    answers={201: (HoldAnswer,)},
    errors={
        400: ("idempotency_key_required",),
        402: ("insufficient_credits",),
        409: ("idempotency_under_way",),
        422: ("idempotency_mismatch", "unknown_operation"),
        429: ("operation_limit",),
    },
)
OF_HOLD = Operation(
    tag="holds",
    roles=("key",),
    path={"id": "The hold."},
    parameters=(ORG, USER),
    answers={200: (HoldAnswer,)},
    errors={404: ("unknown_hold",)},
)
CLOSING = msgspec.structs.replace(
    OF_HOLD,
    parameters=(ORG, USER, IDEMPOTENCY_KEY),
    errors={
        400: ("idempotency_key_required",),
        404: ("unknown_hold",),
        409: ("hold_closed", "idempotency_under_way"),
        422: ("idempotency_mismatch",),
    },
)


@described(OPENING)
async def open_hold(request: Request) -> Response:
    """Holds credits for an operation or an amount.

    Done once for each `Idempotency-Key`. Until the hold is posted, voided or expires, nothing else
    can spend the credits. The operation counts in its month from now on, unless the hold is voided
    or expires. Credits that running sessions merely hold never stand in the way.
    """
    process = process_of(request)
    principal, account = account_of_call(request)
    raw = await raw_body(request)
    wanted = read_body(raw, HoldWanted)
    check_charge(wanted, principal)
    _refuse_failure(wanted.metadata)
    idempotent = idempotent_of(request, principal, account.tenant, "holds", raw)
    return await once(
        process.records, idempotent, lambda: _open(process, principal, idempotent, account, wanted)
    )


async def _open(
    process: Process,
    principal: Principal,
    idempotent: IdempotentRequest,
    account: AccountName,
    wanted: HoldWanted,
) -> Response:
    price, hold_id = price_of(process, wanted), idempotent.entry_id("hold")
    held = await process.ledger.hold(
        account,
        hold_id=hold_id,
        micros=price.micros,
        ttl_ms=wanted.ttl_ms,
        operation=price.operation,
        user_id=user_of(wanted, principal, account),
        metadata=wanted.metadata,
    )
    if not isinstance(held, Held):
        raise await refusal_of(process, account, price, held)
    hold = await _hold_of(process, account.tenant, hold_id)
    is_other = (hold.account_id, hold.operation) != (account.account_id, wanted.operation)
    if is_other or (wanted.operation is None and hold.amount_micros != price.micros):
        # Holds are kept longer than the answers to idempotency keys.
        raise Problem(422, "idempotency_mismatch", "the key was used for another hold")
    return _answer(hold, held.credits_micros, 201)


@described(OF_HOLD)
async def read_hold(request: Request) -> Response:
    """A hold, and its result."""
    process = process_of(request)
    _, tenant, hold_id = await _asked(request)
    hold = await _hold_of(process, tenant, hold_id)
    standing = await process.ledger.balance(AccountName(tenant, hold.account_id), None)
    return _answer(hold, standing.credits_micros)


@described(
    msgspec.structs.replace(
        CLOSING,
        body=PostWanted,
        errors={
            **CLOSING.errors,
            409: ("hold_closed", "hold_expired", "idempotency_under_way"),
            422: ("hold_exceeded", "idempotency_mismatch"),
        },
    )
)
async def post_hold(request: Request) -> Response:
    """Charges an operation that was done, up to the hold.

    The rest is given back.
    """
    process = process_of(request)
    principal, tenant, hold_id = await _asked(request)
    raw = await raw_body(request)
    wanted = read_body(raw, PostWanted)
    micros = parse_credits(wanted.amount, name="amount")
    check_metadata(wanted.metadata)
    _refuse_failure(wanted.metadata)

    async def post() -> Response:
        posted = await process.ledger.post(tenant, hold_id, micros, wanted.metadata)
        if isinstance(posted, HoldGone):
            raise _gone(posted)
        if isinstance(posted, Exceeds):
            held = format_credits(posted.amount_micros)
            raise Problem(422, "hold_exceeded", f"no more than {held} is held", amount=held)
        if posted.repeated and posted.posted_micros != micros:
            raise _closed("posted")
        hold = await _hold_of(process, tenant, hold_id)
        return _answer(hold, posted.credits_micros)

    idempotent = idempotent_of(request, principal, tenant, "posts", raw)
    return await once(process.records, idempotent, post)


@described(CLOSING)
async def void_hold(request: Request) -> Response:
    """Gives back a hold, because the operation was not done.

    A hold that was already voided or has expired is answered as it is: it holds nothing.
    """
    process = process_of(request)
    principal, tenant, hold_id = await _asked(request)
    raw = await raw_body(request)

    async def void() -> Response:
        voided = await process.ledger.void(tenant, hold_id)
        if isinstance(voided, HoldGone) and voided.state != "expired":
            raise _gone(voided)
        hold = await _hold_of(process, tenant, hold_id)
        standing = await process.ledger.balance(AccountName(tenant, hold.account_id), None)
        return _answer(hold, standing.credits_micros)

    read_body(raw, VoidWanted)
    idempotent = idempotent_of(request, principal, tenant, "voids", raw)
    return await once(process.records, idempotent, void)


# --- Implementation ---------------------------------------------------------------------


async def _asked(request: Request) -> tuple[Principal, str, str]:
    """The sender, and the tenant and id of the hold.

    A hold's id contains its tenant, so a request may leave the tenant out.
    """
    principal = principal_of(request)
    process, hold_id = process_of(request), path_id(request)
    org_id, user_id = query_id(request, "org"), query_id(request, "user")
    if org_id is not None or user_id is not None:
        return principal, tenant_of(org_id, user_id or ""), hold_id
    tenant = await process.records.tenant_of_hold(hold_id)
    if tenant is None:
        raise _gone(HoldGone(None))
    return principal, tenant, hold_id


async def _hold_of(process: Process, tenant: str, hold_id: str) -> HoldRow:
    hold = await process.ledger.hold_of(tenant, hold_id)
    if hold is None:
        raise _gone(HoldGone(None))
    return hold


def _refuse_failure(metadata: dict[str, Any] | None) -> None:
    if not has_succeeded(metadata):
        raise BadMessageError("metadata.success: what failed is voided, and costs nothing")


def _gone(gone: HoldGone) -> Problem:
    if gone.state is None:
        return Problem(404, "unknown_hold", "there is no such hold")
    if gone.state == "expired":
        return Problem(409, "hold_expired", "the hold has expired, and nothing was charged")
    return _closed(gone.state)


def _closed(state: HoldState) -> Problem:
    return Problem(409, "hold_closed", f"the hold was {state} already", state=state)


def _answer(hold: HoldRow, credits_micros: int, status: int = 200) -> Response:
    return answer(
        HoldAnswer(
            hold_id=hold.hold_id,
            account_id=hold.account_id,
            state=hold.state,
            amount=format_credits(hold.amount_micros),
            posted=format_credits(hold.posted_micros),
            operation=hold.operation,
            user_id=hold.user_id,
            created_at=hold.created_at,
            expires_at=hold.expires_at,
            metadata=hold.metadata,
            credits=format_credits(credits_micros),
        ),
        status,
    )


ROUTES = [
    Route("/v1/accounts/{id}/holds", open_hold, methods=["POST"]),
    Route("/v1/holds/{id}", read_hold),
    Route("/v1/holds/{id}/post", post_hold, methods=["POST"]),
    Route("/v1/holds/{id}/void", void_hold, methods=["POST"]),
]
