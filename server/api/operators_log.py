"""The operators' log: who did what to whom, when, and why."""

import contextlib
import datetime
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire.errors import BadMessageError
from protocol.wire.fields import describe
from server.access.principals import READERS
from server.api.reports import harmless, streamed
from server.http.acts import log_of
from server.http.openapi import CURSOR, INSTANT, LIMIT, Operation, described, query_parameter
from server.http.paging import cursor_of, cursor_values, foreign_cursor, page_rows
from server.http.requests import query_instant
from server.http.responses import answer
from storage import limits as storage_limits
from storage.postgres.operators import OperatorRecords
from storage.rows.operators import LogFilter, LoggedAction

COLUMNS = (
    "at",
    "actor",
    "via",
    "action",
    "target",
    "org_id",
    "user_id",
    "reason",
    "outcome",
    "code",
    "before",
    "after",
    "request_id",
)
OUTCOMES = ("begun", "done", "refused", "failed")
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 512}
FILTERS = (
    query_parameter("actor", "Only what this operator did.", _TEXT),
    query_parameter("action", "Only this: `credit`, `adjust`, `end`, `limits`, …", _TEXT),
    query_parameter("target", "Only what was done to this: `account:ann`.", _TEXT),
    query_parameter("outcome", "Only what ended so.", {"type": "string", "enum": list(OUTCOMES)}),
    query_parameter("from", "Only from this instant on, in epoch ms.", INSTANT),
    query_parameter("to", "Only before this instant, in epoch ms.", INSTANT),
)


class ActionLine(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the operators' log."""

    at: Annotated[int, describe("When it was intended, in epoch ms.")]
    actor: Annotated[str, describe("Who: an operator, or a token's user.")]
    via: Annotated[str, describe("What proved it: `token`, `cookie`, `proxy`, or `command`.")]
    action: Annotated[str, describe("What: `credit`, `adjust`, `end`, `limits`, `login`, …")]
    target: Annotated[str, describe("To what: `account:ann`, `session:chat-1`.")]
    org_id: Annotated[str | None, describe("The organisation that the call named.")]
    user_id: Annotated[str | None, describe("The user without one that the call named.")]
    reason: Annotated[str | None, describe("Why; null: none was given.")]
    before: Annotated[Any, describe("What was there before, where it was read; else null.")]
    after: Annotated[Any, describe("The answer; null for an error, and for a long one.")]
    outcome: Annotated[
        str,
        describe(
            "`done`, `refused`, `failed`; `begun`: no outcome was recorded, as when a process died."
        ),
    ]
    code: Annotated[str | None, describe("The code of the error; null: none.")]
    request_id: Annotated[str, describe("As its answer showed it in `X-Request-Id`.")]


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the operators' log, newest first."""

    items: list[ActionLine]
    next_cursor: Annotated[
        str | None, describe("Asks for the page after this one; null: this is the last.")
    ]


@described(
    Operation(
        tag="operators",
        roles=READERS,
        parameters=(*FILTERS, CURSOR, LIMIT),
        answers={200: (LogPage,)},
    )
)
async def read_log(request: Request) -> Response:
    """What operators did or tried to do, newest first."""
    wanted, count = _filter(request), page_rows(request)
    values = cursor_values(request, (int,))
    before = None if values is None else values[0]
    if before == 0:
        raise foreign_cursor()
    found = await log_of(request).records.log(wanted, before, count + 1)
    page = found[:count]
    return answer(
        LogPage(
            items=[_line(row) for row in page],
            next_cursor=cursor_of(page[-1].position) if len(found) > count else None,
        )
    )


@described(Operation(tag="operators", roles=READERS, parameters=FILTERS, answers={200: "text/csv"}))
async def log_csv(request: Request) -> Response:
    """The operators' log as streamed CSV (RFC 4180), newest first.

    The columns are the fields of `/v1/ops/log`; `at` is RFC 3339 in UTC, `before` and `after` are
    JSON. A cell that a spreadsheet would take for a formula has an apostrophe in front.
    """
    wanted, records = _filter(request), log_of(request).records
    return await streamed(
        request, "operators-log.csv", COLUMNS, lambda: _batches(records, wanted), _cells
    )


@contextlib.asynccontextmanager
async def _batches(
    records: OperatorRecords, wanted: LogFilter
) -> AsyncIterator[AsyncIterator[list[LoggedAction]]]:
    """The rows in batches, without those that are added meanwhile."""

    async def read() -> AsyncIterator[list[LoggedAction]]:
        before = None
        while page := await records.log(wanted, before, storage_limits.PAGE_ROWS_MAX):
            yield list(page)
            before = page[-1].position

    yield read()


def _filter(request: Request) -> LogFilter:
    """The filters of a request; raises ``bad_message`` for a malformed one."""
    query = request.query_params
    for name in ("actor", "action", "target"):
        if name in query and not (0 < len(query[name]) <= 512 and "\0" not in query[name]):
            raise BadMessageError(f"{name}: expected 1 to 512 characters")
    outcome = query.get("outcome")
    if outcome not in (None, *OUTCOMES):
        raise BadMessageError(f"outcome: expected one of {', '.join(OUTCOMES)}")
    return LogFilter(
        actor=query.get("actor"),
        action=query.get("action"),
        target=query.get("target"),
        outcome=outcome,
        from_at=query_instant(request, "from"),
        to_at=query_instant(request, "to"),
    )


def _line(row: LoggedAction) -> ActionLine:
    kind, _, name = (row.tenant or "").partition(":")
    return ActionLine(
        at=row.at,
        actor=row.actor,
        via=row.via,
        action=row.action,
        target=row.target,
        org_id=name if kind == "org" else None,
        user_id=name if kind == "user" else None,
        reason=row.reason,
        before=row.before,
        after=row.after,
        outcome=row.outcome,
        code=row.code,
        request_id=row.request_id,
    )


def _cells(row: LoggedAction) -> list[object]:
    line = _line(row)
    at = datetime.datetime.fromtimestamp(line.at / 1000, datetime.UTC)
    texts = (line.actor, line.via, line.action, line.target, line.org_id, line.user_id, line.reason)
    return [
        at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        *map(harmless, texts),
        line.outcome,
        line.code or "",
        _json(line.before),
        _json(line.after),
        line.request_id,
    ]


def _json(value: object) -> str:
    return "" if value is None else msgspec.json.encode(value).decode()


ROUTES = [
    Route("/v1/ops/log", read_log),
    Route("/v1/ops/log.csv", log_csv),
]
