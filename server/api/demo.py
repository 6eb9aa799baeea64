"""The calls of the demonstration page at ``/``; served in development only.

Tokens are signed with the real secret, so they are for visitors only, never for a user of an
application. Strangers who come through a proxy on this machine get nothing either, unless
``TAXIMETER_DEVELOPMENT_CONFIRMED`` allows them.
"""

import secrets
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.metering.records import EntryPosted
from protocol.wire.errors import ErrorCode, PeerError
from protocol.wire.fields import ID_PATTERN
from protocol.wire.money import format_credits, parse_credits
from server import limits as server_limits
from server.access.principals import PUBLIC, tenant_of
from server.access.tokens import mint_token
from server.api.accounts import view_account
from server.http.requests import principal_of, process_of, raw_body, read_body
from server.http.responses import answer
from server.http.routes import Access, declared
from server.process import Process
from server.runtime.loopback import is_loopback

FIRST_CREDITS_MICROS = 2_500_000
"""Credits of a new visitor: two and a half minutes of chat after the free time."""
VISITOR = "visitor-"
"""Prefix of the ids of visitors."""


class TokenWanted(msgspec.Struct):
    """Asks for a token."""

    EMPTY_BODY: ClassVar[bool] = True

    user_id: Annotated[str, Meta(pattern=ID_PATTERN)] | None = None


class TopUp(msgspec.Struct):
    """Asks for credits."""

    amount: str


@declared(Access(roles=PUBLIC))
async def token(request: Request) -> Response:
    """A token for a visitor, with some credits to begin with."""
    process = process_of(request)
    _check_near(process, request)
    wanted = read_body(await raw_body(request), TokenWanted)
    user_id = wanted.user_id or f"{VISITOR}{secrets.token_hex(4)}"
    _check_visitor(user_id)
    tenant = tenant_of(None, user_id)
    await process.ledger.enter(
        EntryPosted(
            tenant=tenant,
            account_id=user_id,
            entry_id="demo:welcome",
            entry_kind="grant",
            amount_micros=FIRST_CREDITS_MICROS,
            at=process.clock.now(),
            reason="to try it",
        )
    )
    account = await view_account(process, tenant, user_id)
    micros = account.projection.credits_micros(process.clock.now())
    return answer(
        {
            "token": mint_token(process.settings, user_id, ttl_seconds=3600),
            "user_id": user_id,
            "account_id": user_id,
            "credits": format_credits(micros),
        }
    )


@declared(Access(roles=("user",)))
async def top_up(request: Request) -> Response:
    """Credits for the user of the token."""
    process = process_of(request)
    _check_near(process, request)
    principal = principal_of(request)
    wanted = read_body(await raw_body(request), TopUp)
    added = parse_credits(
        wanted.amount, name="amount", micros_max=server_limits.DEMO_TOP_UP_MICROS_MAX
    )
    assert principal.tenant is not None
    assert principal.account_id is not None
    await process.ledger.enter(
        EntryPosted(
            tenant=principal.tenant,
            account_id=principal.account_id,
            entry_id=f"demo:{secrets.token_hex(8)}",
            entry_kind="grant",
            amount_micros=added,
            at=process.clock.now(),
            reason="top-up of the demonstration",
        )
    )
    account = await view_account(process, principal.tenant, principal.account_id)
    return answer(
        {"credits": format_credits(account.projection.credits_micros(process.clock.now()))}
    )


def _check_visitor(user_id: str) -> None:
    if not user_id.startswith(VISITOR):
        raise PeerError(
            ErrorCode.FORBIDDEN, f"this is for visitors, whose user_id begins with {VISITOR}"
        )


def _check_near(process: Process, request: Request) -> None:
    address = request.client.host if request.client else ""
    if process.settings.development_confirmed or not address or is_loopback(address):
        return
    raise PeerError(ErrorCode.FORBIDDEN, "in development this is for this machine alone")


ROUTES = [
    Route("/demo/token", token, methods=["POST"]),
    Route("/demo/top-up", top_up, methods=["POST"]),
]
