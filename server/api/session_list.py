"""The list of sessions, past and live, newest first, with their receipts."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.metering.counted_time import CountedTime
from protocol.metering.receipts import receipt
from protocol.metering.records import SessionEnded
from protocol.metering.session import SessionState
from protocol.metering.states import Phase
from protocol.metering.steps import ended_record
from protocol.wire import messages
from protocol.wire.errors import BadMessageError
from protocol.wire.fields import (
    Credits,
    InstantAt,
    LimitName,
    SessionId,
    StateName,
    UserId,
    describe,
)
from protocol.wire.money import format_credits
from server import limits as server_limits
from server.access.principals import READERS, Principal
from server.calls.receipts import receipts_of
from server.http.openapi import CURSOR, INSTANT, LIMIT, ORG, Operation, described, query_parameter
from server.http.paging import cursor_of, cursor_values, page_rows
from server.http.requests import principal_of, process_of, query_id, query_instant, tenant_of_call
from server.http.responses import answer
from server.process import Process
from storage.redis.live import LiveError
from storage.rows.sessions import SessionFilter, SessionRow

log = structlog.get_logger()


class SessionListed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One session of the list."""

    session_id: SessionId
    kind: Annotated[str, describe("The kind of the rate card.")]
    state: Annotated[
        StateName | None,
        describe("Its state; null: not known now, because its store does not answer."),
    ]
    user_id: UserId
    org_id: Annotated[str | None, describe("The organisation; null for a user without one.")]
    counterpart_id: Annotated[str | None, describe("The other side; null without a counterpart.")]
    started_at: InstantAt
    ended_at: Annotated[int | None, describe("When it ended; null: it has not.")]
    elapsed_ms: Annotated[int | None, describe("Counted time so far; null: not known now.")]
    credits: Annotated[Credits | None, describe("What it has cost so far; null: not known now.")]
    limit: Annotated[LimitName | None, describe("The limit that ended it; null: none did.")]
    receipt: Annotated[messages.Receipt | None, describe("Its receipt; null: it has not ended.")]
    account_id: (
        Annotated[str, describe("The credit account. For backends and operators.")] | UnsetType
    ) = UNSET
    metadata: (
        Annotated[dict[str, Any] | None, describe("What it was given. For backends and operators.")]
        | UnsetType
    ) = UNSET


class SessionPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of sessions, newest first."""

    items: list[SessionListed]
    next_cursor: Annotated[
        str | None, describe("Asks for the page after this one; null: this is the last.")
    ]
    server_time_at: InstantAt


_ROWS = {**LIMIT["schema"], "maximum": server_limits.SESSIONS_PER_PAGE_MAX}
FILTERS = (
    query_parameter(
        "user",
        "Only this user's. A user's token says its own; a backend or an operator names one, or "
        "leaves it out for all of the organisation.",
    ),
    query_parameter("counterpart", "Only those with this counterpart."),
    query_parameter("kind", "Only those of this kind, which the rate card need not have any more."),
    query_parameter(
        "from", "Only those that began at this instant or later, in epoch ms.", INSTANT
    ),
    query_parameter("to", "Only those that began before this instant, in epoch ms.", INSTANT),
)


@described(
    Operation(
        tag="sessions",
        roles=("user", "key", "org:read", *READERS),
        parameters=(ORG, *FILTERS, CURSOR, {**LIMIT, "schema": _ROWS}),
        answers={200: (SessionPage,)},
    )
)
async def list_sessions(request: Request) -> Response:
    """Sessions, past and live, newest first, with their receipts.

    A user's token shows that user's sessions only. A session appears once its start is recorded, a
    moment after it began. What lives shows its figures of this instant. The order is by the
    beginning, so pages neither repeat nor skip a session when new ones begin meanwhile.
    """
    principal = principal_of(request)
    process = process_of(request)
    tenant = tenant_of_call(request, principal)
    wanted = _filter(request, principal)
    before = cursor_values(request, (int, str))
    count = page_rows(request, server_limits.SESSIONS_PER_PAGE_MAX)
    found = await process.records.sessions_page(tenant, wanted, before, count + 1)
    page = found[:count]
    live = await live_sessions(process, tenant, page)
    ended = [row.end for row in page if row.state == "ended" and row.terms.is_provided]
    receipts = await receipts_of(process.records, tenant, ended)
    items = [
        listed(process, row, live.get(row.session_id), is_for_user=_is_user(principal))
        for row in page
    ]
    last = page[-1] if len(found) > count else None
    return answer(
        SessionPage(
            items=[
                msgspec.structs.replace(item, receipt=receipts.get(item.session_id, item.receipt))
                for item in items
            ],
            next_cursor=cursor_of(last.started_at or 0, last.session_id) if last else None,
            server_time_at=process.clock.now(),
        )
    )


def _is_user(principal: Principal) -> bool:
    return not principal.reaches_all


def _filter(request: Request, principal: Principal) -> SessionFilter:
    """The filters of a request; raises ``bad_message`` for a malformed one."""
    wanted = SessionFilter(
        user_id=query_id(request, "user") if principal.reaches_members else principal.user_id,
        counterpart_id=query_id(request, "counterpart"),
        kind=query_id(request, "kind"),
        from_at=query_instant(request, "from"),
        to_at=query_instant(request, "to"),
    )
    if None not in (wanted.from_at, wanted.to_at) and wanted.from_at >= wanted.to_at:  # type: ignore[operator]
        raise BadMessageError("to: must be after from")
    return wanted


async def live_sessions(
    process: Process, tenant: str, page: Sequence[SessionRow]
) -> dict[str, SessionState]:
    """A page's sessions that have not ended in the record, from Redis."""
    asked = [row.session_id for row in page if row.state == "live"]
    if not asked:
        return {}
    try:
        found = await process.live.sessions(tenant, asked)
    except LiveError as error:
        # The record answers while Redis is away.
        log.warning("live_sessions_not_read", error=str(error))
        return {}
    return {session.identity.session_id: session for session in found}


def listed(
    process: Process, row: SessionRow, live: SessionState | None, *, is_for_user: bool
) -> SessionListed:
    """A row of the list; Redis completes that of a live session.

    Redis has the end of a session a moment before the record has it.
    """
    end: SessionEnded | None = None
    state, elapsed_ms, micros = None, None, None
    if row.state == "ended":
        end = row.end
    elif live is not None and live.standing.phase is Phase.ENDED:
        end = ended_record(live.identity, live.standing)
    elif live is not None:
        state, standing = live.standing.phase, live.standing
        counted_time = CountedTime(live, uncovered_ms=0)
        elapsed_ms = counted_time.elapsed_at(process.clock.now())
        micros = live.identity.terms.cost_micros(elapsed_ms, standing.free_ms)
    if end is not None:
        state, elapsed_ms, micros = Phase.ENDED, end.elapsed_ms, end.credits_micros
    assert row.started_at is not None
    return SessionListed(
        session_id=row.session_id,
        kind=row.kind,
        state=state.value if state is not None else None,
        user_id=row.user_id,
        org_id=row.org_id,
        counterpart_id=row.counterpart_id,
        started_at=row.started_at,
        ended_at=end.ended_at if end is not None else None,
        elapsed_ms=elapsed_ms,
        credits=format_credits(micros) if micros is not None else None,
        limit=end.limit if end is not None else None,  # type: ignore[arg-type]
        receipt=receipt(end) if end is not None else None,
        account_id=UNSET if is_for_user else row.account_id,
        metadata=UNSET if is_for_user else row.metadata,
    )


ROUTES = [Route("/v1/sessions", list_sessions)]
