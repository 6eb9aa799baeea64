"""Credit accounts: their balances and their ledgers."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.metering.projection import AccountProjection
from protocol.wire.errors import ErrorCode, PeerError
from protocol.wire.fields import AccountCredits, Credits, InstantAt, describe
from protocol.wire.money import format_credits
from server.access.principals import READERS
from server.api.billing import AccountId, EntryId, Priority
from server.http.openapi import CURSOR, LIMIT, ORG, USER, Operation, described
from server.http.paging import cursor_of, cursor_values, foreign_cursor, page_rows
from server.http.requests import path_id, principal_of, process_of, tenant_of_call
from server.http.responses import answer
from server.process import Process
from storage.redis.live import LiveError
from storage.redis.spending import AccountName
from storage.rows.accounts import LedgerEntry


class AccountAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A credit account at this instant."""

    account_id: AccountId
    credits: AccountCredits
    held: Annotated[Credits, describe("Of these, held for time that sessions may still run.")]
    reserved: Annotated[Credits, describe("Of these, held for operations.")]
    credits_per_minute: Annotated[
        Credits, describe("What all sessions of the account burn together now.")
    ]
    ends_at: Annotated[
        int | None,
        describe("When the credits will be used up, if nothing changes; null: never."),
    ]
    sessions: Annotated[int, Meta(ge=0, description="Sessions that have not ended.")]
    server_time_at: InstantAt
    due: (
        Annotated[
            Credits,
            describe("Of these, the tier's allotment for this month, which is added when used."),
        ]
        | UnsetType
    ) = UNSET


class LedgerLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of an account's ledger.

    Entries never change: a correction is another entry.
    """

    entry_id: EntryId
    kind: Annotated[
        str,
        Meta(
            description="What it was: money in (`grant`, `adjust`, `expire`), a minute's cost "
            "(`burn`), an operation or an amount (`spend`, and `post` of a hold). Holds that are "
            "open or came to nothing have moved no credits, and are in no ledger."
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
    metadata: (
        Annotated[dict[str, Any], describe("Metadata that was sent with the request.")] | None
    ) = None


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
    """The part of the balance that is held for time that sessions may still run."""
    due_micros: int = 0
    """The part of the balance that the month's allotment adds and the ledger does not have yet."""

    def credits(self, now_ms: int) -> str:
        """The balance after the burn of all sessions.

        Below 0 only for a real debt.
        """
        micros = self.projection.credits_micros(now_ms)
        return format_credits(max(0, micros) if self.projection.gross_micros >= 0 else micros)


async def view_account(process: Process, tenant: str, account_id: str) -> View:
    """Reads the account; loads it from the ledger if Redis lacks it.

    The process does not subscribe to the account's channel. Raises ``LiveError``.
    """
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


async def view_as_due(process: Process, account: AccountName, *, starts: bool = False) -> View:
    """The account with the month's allotment that the ledger lacks.

    The allotment is read last: an allotment that is entered in between is missing from the answer,
    and is not counted twice. ``starts``: as a start would find it.
    """
    view = await view_account(process, *account)
    due = await process.ledger.allotment_due(account, starts=starts)
    if due is None:
        return view
    seen, projection = view.projection, AccountProjection(*account)
    gross_micros = seen.gross_micros + due.amount_micros
    projection.replace(seen.version, gross_micros, seen.reserved_micros, seen.lines)
    return View(projection, view.held_micros, due.amount_micros)


def reader_of(request: Request) -> tuple[Process, AccountName]:
    """The process, and the account that a read request is about."""
    principal = principal_of(request)
    account_id = path_id(request)
    tenant = tenant_of_call(request, principal, account_id)
    if not principal.may_see_account(account_id):
        raise PeerError(ErrorCode.FORBIDDEN, "the account is not this token's")
    return process_of(request), AccountName(tenant, account_id)


READING = Operation(
    tag="accounts",
    roles=("user", "key", *READERS),
    path={"id": "The credit account."},
    parameters=(ORG, USER),
    answers={200: (AccountAnswer,)},
)


@described(READING)
async def read_account(request: Request) -> Response:
    """An account's balance, what its sessions burn, and when it ends."""
    process, account = reader_of(request)
    view = await view_as_due(process, account)
    projection, now_ms = view.projection, process.clock.now()
    dry_at = projection.dry_at()
    return answer(
        AccountAnswer(
            account_id=account.account_id,
            credits=view.credits(now_ms),
            due=format_credits(view.due_micros) if view.due_micros else UNSET,
            held=format_credits(view.held_micros),
            reserved=format_credits(projection.reserved_micros),
            credits_per_minute=format_credits(projection.burn_at(now_ms)),
            ends_at=None if dry_at is None else max(now_ms, dry_at),
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

    Minutes and operations appear once they are recorded, a moment after they were decided.
    """
    process, account = reader_of(request)
    before = _position(request)
    count = page_rows(request)
    found = await process.records.ledger(*account, before, count + 1)
    page = found[:count]
    return answer(
        LedgerPage(
            account_id=account.account_id,
            entries=[_line(entry) for entry in page],
            next_cursor=cursor_of(page[-1].position) if len(found) > count else None,
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


def _position(request: Request) -> int | None:
    """The position in the request's cursor; None for the first page."""
    values = cursor_values(request, (int,))
    position = None if values is None else values[0]
    if position == 0:
        raise foreign_cursor()
    return position


ROUTES = [
    Route("/v1/accounts/{id}", read_account),
    Route("/v1/accounts/{id}/ledger", read_ledger),
]
