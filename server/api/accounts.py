"""Credit accounts: what they have, what became of it, and money in."""

import base64
import binascii
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol import limits
from protocol.errors import BadMessageError, ErrorCode, PeerError
from protocol.events import EntryPosted
from protocol.fields import AccountCredits, Amount, Credits, InstantAt, describe, describe_id
from protocol.money import format_credits, parse_credits
from protocol.projection import AccountProjection
from server.auth import Principal
from server.http import (
    Problem,
    answer,
    path_id,
    principal_of,
    process_of,
    raw_body,
    read_body,
    tenant_of_call,
)
from server.idempotency import Deed, deed_of, once
from server.openapi import CURSOR, IDEMPOTENCY_KEY, LIMIT, ORG, USER, Operation, described
from server.process import Process
from storage.live import LiveError
from storage.rows import LedgerEntry

PRIORITY_DEFAULT = 100
EXPIRES_AT_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999: later ones are no date to most who read them."""

AccountId = Annotated[str, describe_id("The credit account.")]
Reason = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=limits.REASON_CHARACTERS_MAX,
        description="Why, for whoever reads the ledger.",
    ),
]
Priority = Annotated[int, Meta(ge=0, le=255, description="Lower burns first.")]
EntryId = Annotated[str, describe("The ledger entry; the same at every attempt.")]


class GrantWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for credits to be added to an account."""

    amount: Annotated[Amount, describe("What to add; more than 0.")]
    reason: Reason
    expires_at: (
        Annotated[
            int,
            Meta(ge=0, le=EXPIRES_AT_MAX, description="When what is left of it is lost."),
        ]
        | None
    ) = None
    priority: Priority = PRIORITY_DEFAULT


class GrantMade(msgspec.Struct, frozen=True, kw_only=True):
    """Credits were added to an account."""

    entry_id: EntryId
    account_id: AccountId
    amount: Annotated[Credits, describe("What was added.")]
    credits: AccountCredits
    created_at: InstantAt
    expires_at: Annotated[int | None, describe("When what is left of it is lost; null: never.")]
    priority: Priority
    reason: Reason


class AccountAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A credit account at this instant."""

    account_id: AccountId
    credits: AccountCredits
    held: Annotated[Credits, describe("Of these, held for the time that sessions may still run.")]
    reserved: Annotated[Credits, describe("Of these, held for operations.")]
    credits_per_minute: Annotated[Credits, describe("What all its sessions burn together now.")]
    ends_at: Annotated[
        int | None,
        describe("When they will have burnt it all, if nothing changes; null: never."),
    ]
    sessions: Annotated[int, Meta(ge=0, description="Sessions that have not ended.")]
    server_time_at: InstantAt


class LedgerLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of an account's ledger. It is never changed: a correction is another one."""

    entry_id: EntryId
    kind: Annotated[
        str,
        Meta(
            description="What it was: money in (`grant`, `adjust`, `expire`), a minute's cost "
            "(`burn`), an operation (`spend`, `hold`, `post`, `void`)."
        ),
    ]
    amount: Annotated[Credits, describe("What it added; negative for what it took.")]
    created_at: InstantAt
    reason: Annotated[str, describe("Why.")] | None = None
    operation: Annotated[str, describe("The operation of the rate card.")] | None = None
    session_id: Annotated[str, describe("The session whose minute this is.")] | None = None
    minute: Annotated[int, Meta(ge=0, description="The minute's number.")] | None = None
    priority: Priority | None = None
    expires_at: Annotated[int, describe("When what is left of it is lost.")] | None = None
    metadata: Annotated[dict[str, Any], describe("What was sent with it.")] | None = None


class LedgerPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a ledger, newest first."""

    account_id: AccountId
    entries: list[LedgerLine]
    next_cursor: Annotated[
        str | None, describe("Asks for the page after this one; null: this is the last.")
    ]


class View(msgspec.Struct, frozen=True):
    """An account as it stands in Redis at this instant."""

    projection: AccountProjection
    held_micros: int
    """Held for the time that sessions may still run."""

    def credits(self, now_ms: int) -> str:
        """The balance after the burn of all sessions; below 0 only for a real debt."""
        micros = self.projection.credits_micros(now_ms)
        return format_credits(max(0, micros) if self.projection.gross_micros >= 0 else micros)


async def view_account(process: Process, tenant: str, account_id: str) -> View:
    """The account, out of the ledger if it is cold; nothing is subscribed to for it."""
    figures = await process.live.account(tenant, account_id)
    if figures is None:
        await process.loader.account(tenant, account_id)
        figures = await process.live.account(tenant, account_id)
    if figures is None:
        raise LiveError("the account does not stay in Redis")
    projection = AccountProjection(tenant, account_id)
    projection.replace(
        figures.version, figures.gross_micros, figures.reserved_micros, figures.lines
    )
    return View(projection, figures.held_micros)


async def _asked(request: Request) -> tuple[Process, str, str]:
    """The process, the tenant and the account that a reading call is about."""
    principal = await principal_of(request, "user", "key", "ops")
    account_id = path_id(request)
    tenant = tenant_of_call(request, principal, account_id)
    if not principal.may_see_account(account_id):
        raise PeerError(ErrorCode.FORBIDDEN, "the account is not this token's")
    return process_of(request), tenant, account_id


READING = Operation(
    tag="accounts",
    roles=("user", "key", "ops"),
    path={"id": "The credit account."},
    parameters=(ORG, USER),
    answers={200: (AccountAnswer,)},
)


@described(READING)
async def read_account(request: Request) -> Response:
    """An account's balance, what its sessions burn, and when it ends."""
    process, tenant, account_id = await _asked(request)
    view = await view_account(process, tenant, account_id)
    projection, now_ms = view.projection, process.clock.now()
    burn_micros = sum(
        line.burn_micros
        for line in projection.lines.values()
        if line.elapsed_at(now_ms) >= line.free_ms
    )
    dry_at = projection.dry_at(now_ms)
    return answer(
        AccountAnswer(
            account_id=account_id,
            credits=view.credits(now_ms),
            held=format_credits(view.held_micros),
            reserved=format_credits(projection.reserved_micros),
            credits_per_minute=format_credits(burn_micros),
            ends_at=None if dry_at is None else int(dry_at),
            sessions=len(projection.lines),
            server_time_at=now_ms,
        )
    )


@described(
    msgspec.structs.replace(
        READING, parameters=(ORG, USER, CURSOR, LIMIT), answers={200: (LedgerPage,)}
    )
)
async def read_ledger(request: Request) -> Response:
    """An account's ledger, newest first.

    Minutes and operations are in it once they are written down, a moment after they
    were decided.
    """
    process, tenant, account_id = await _asked(request)
    before = _position(request.query_params.get("cursor"))
    count = _page_rows(request.query_params.get("limit"))
    found = await process.records.ledger(tenant, account_id, before, count + 1)
    page = found[:count]
    return answer(
        LedgerPage(
            account_id=account_id,
            entries=[_line(entry) for entry in page],
            next_cursor=_cursor(page[-1].position) if len(found) > count else None,
        )
    )


def _line(entry: LedgerEntry) -> LedgerLine:
    return LedgerLine(
        entry_id=entry.entry_id,
        kind=entry.entry_kind,
        amount=format_credits(entry.amount_micros),
        created_at=entry.created_at,
        reason=entry.reason,
        operation=entry.operation,
        session_id=entry.session_id,
        minute=entry.minute,
        priority=entry.priority if entry.entry_kind == "grant" else None,
        expires_at=entry.expires_at,
        metadata=entry.metadata,
    )


def _cursor(position: int) -> str:
    return base64.urlsafe_b64encode(b"%d" % position).rstrip(b"=").decode()


def _position(cursor: str | None) -> int | None:
    """The position in a cursor; raises ``bad_message`` for one that we did not make."""
    if cursor is None:
        return None
    try:
        position = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error):
        position = 0
    if position < 1 or _cursor(position) != cursor or position > limits.SAFE_INTEGER_MAX:
        raise BadMessageError("cursor: not one of ours")
    return position


def _page_rows(limit: str | None) -> int:
    if limit is None:
        return limits.PAGE_ROWS_DEFAULT
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 6):
        raise BadMessageError("limit: expected a whole number")
    if not 1 <= int(limit) <= limits.PAGE_ROWS_MAX:
        raise BadMessageError(f"limit: must be between 1 and {limits.PAGE_ROWS_MAX}")
    return int(limit)


# --- Money in ----------------------------------------------------------------------


@described(
    Operation(
        tag="accounts",
        roles=("key", "ops"),
        path={"id": "The credit account."},
        parameters=(ORG, USER, IDEMPOTENCY_KEY),
        body=GrantWanted,
        answers={201: (GrantMade,)},
        errors={
            400: ("idempotency_key_required",),
            409: ("idempotency_under_way",),
            422: ("idempotency_mismatch", "balance_too_high"),
        },
    )
)
async def grant_credits(request: Request) -> Response:
    """Adds credits to an account, once for each `Idempotency-Key`.

    Live sessions learn of it at once. `credits` is the balance after the burn of all
    sessions so far.
    """
    process = process_of(request)
    principal = await principal_of(request, "key", "ops")
    account_id = path_id(request)
    tenant = tenant_of_call(request, principal, account_id)
    raw = await raw_body(request)
    wanted = read_body(raw, GrantWanted)
    if parse_credits(wanted.amount, name="amount") == 0:
        raise BadMessageError("amount: must be more than 0")
    deed = deed_of(request, principal, tenant, "grants", raw)
    return await once(
        process.records, deed, lambda: _grant(process, principal, deed, account_id, wanted)
    )


async def _grant(
    process: Process, principal: Principal, deed: Deed, account_id: str, wanted: GrantWanted
) -> Response:
    """Makes the entry if it is not there, and applies it if it is not applied."""
    tenant, entry_id = deed.tenant, deed.entry_id("grant")
    entry = EntryPosted(
        tenant=tenant,
        account_id=account_id,
        entry_id=entry_id,
        entry_kind="grant",
        amount_micros=parse_credits(wanted.amount, name="amount"),
        at=process.clock.now(),
        reason=wanted.reason,
    )
    made = await process.records.entry(tenant, account_id, entry_id)
    if made is None:
        await _check_new(process, entry, wanted)
    await process.money.enter(entry, wanted.priority, wanted.expires_at)
    # The ledger has the last word: it knows its keys longer than the answers are kept.
    made = made or await process.records.entry(tenant, account_id, entry_id)
    assert made is not None
    if (made.amount_micros, made.priority, made.expires_at) != (
        entry.amount_micros,
        wanted.priority,
        wanted.expires_at,
    ):
        raise Problem(422, "idempotency_mismatch", "the key was used for another grant")
    view = await view_account(process, tenant, account_id)
    grant = GrantMade(
        entry_id=entry_id,
        account_id=account_id,
        amount=format_credits(made.amount_micros),
        credits=view.credits(process.clock.now()),
        created_at=made.created_at,
        expires_at=made.expires_at,
        priority=made.priority,
        reason=made.reason or wanted.reason,
    )
    return answer(grant, 201)


async def _check_new(process: Process, entry: EntryPosted, wanted: GrantWanted) -> None:
    """What a grant must be when it is made, and may have ceased to be when it is repeated."""
    if wanted.expires_at is not None and wanted.expires_at <= entry.at:
        raise BadMessageError("expires_at: must be in the future")
    view = await view_account(process, entry.tenant, entry.account_id)
    if view.projection.gross_micros + entry.amount_micros > limits.BALANCE_MICROS_MAX:
        raise Problem(
            422,
            "balance_too_high",
            f"no account may have more than {format_credits(limits.BALANCE_MICROS_MAX)} credits",
        )


ROUTES = [
    Route("/v1/accounts/{id}", read_account),
    Route("/v1/accounts/{id}/ledger", read_ledger),
    Route("/v1/accounts/{id}/grants", grant_credits, methods=["POST"]),
]
