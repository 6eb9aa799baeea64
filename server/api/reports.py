"""Reports for operators: every minute that was used, as a table.

A report may be larger than memory, so it is read from a cursor and sent batch by batch. A report
that its client does not read is abandoned, because it occupies a connection and a snapshot.
"""

import asyncio
import contextlib
import csv
import datetime
import io
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from protocol.wire.errors import BadMessageError
from protocol.wire.money import format_credits
from server import limits as server_limits
from server.access.principals import READERS, tenant_of
from server.api.usage import usage_of
from server.http.openapi import Operation, described, query_parameter
from server.http.problems import Problem
from server.http.requests import query_id
from storage.postgres.usage import UsageReportRow

Row = TypeVar("Row")
MEDIA_TYPE = "text/csv; charset=utf-8; header=present"
COLUMNS = (
    "org_id",
    "user_id",
    "account_id",
    "session_id",
    "kind",
    "counterpart_id",
    "minute",
    "started_at",
    "day",
    "month",
    "seconds",
    "counted",
    "credits",
    "free_ms",
)

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# Spreadsheets take a cell that begins with one of these for a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _day_parameter(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": True,
        "description": description,
        "schema": {"type": "string", "format": "date"},
    }


DAYS_AND_ORG = (
    _day_parameter("from", "The first day: `2026-11-01`."),
    _day_parameter("to", "The last day, included: `2026-11-30`."),
    query_parameter("org", "The organisation; left out, all of them and users without one."),
)


class ReportStream(StreamingResponse):
    """A table that is sent while it is read.

    It ends when its client leaves or reads nothing for ``REPORT_STALLED_S``.
    """

    def __init__(self, lines: AsyncGenerator[bytes, None], name: str) -> None:
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        super().__init__(lines, headers=headers, media_type=MEDIA_TYPE)
        self.lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the table (the interface of ASGI)."""

        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(server_limits.REPORT_STALLED_S):
                await send(message)

        # Closed here and not by the garbage collector, because the iterator has a cursor.
        async with contextlib.aclosing(self.lines):
            await super().__call__(scope, receive, send_soon)


@described(
    Operation(
        tag="operations",
        roles=READERS,
        parameters=DAYS_AND_ORG,
        answers={200: "text/csv"},
    )
)
async def usage_report(request: Request) -> Response:
    """Every minute that began between two days, as CSV (RFC 4180), streamed.

    Days are those of each organisation's calendar. The columns: `org_id`, `user_id`, `account_id`,
    `session_id`, `kind`, `counterpart_id`; `minute` (its number in the session, from 0),
    `started_at` (RFC 3339, UTC), `day` and `month` (by the organisation's calendar, a month by its
    first day), `seconds` (1 to 60), `counted` (whether it counts against the month's limits),
    `credits` (its cost, a decimal), `free_ms` (its free part).

    A cell that a spreadsheet would take for a formula has an apostrophe in front. A report that
    fails midway breaks off without the end of its transfer, so it cannot be taken for the whole.
    """
    from_day, to_day = days_of(request)
    org_id = query_id(request, "org")
    tenant = None if org_id is None else tenant_of(org_id, "")
    name = f"usage-{from_day}-{to_day}.csv"
    return await streamed(
        request,
        name,
        COLUMNS,
        lambda: usage_of(request).report(tenant, from_day, to_day),
        _row,
    )


async def streamed(
    request: Request,
    name: str,
    columns: Sequence[str],
    found: Callable[[], AbstractAsyncContextManager[AsyncIterator[list[Row]]]],
    row: Callable[[Row], Iterable[object]],
) -> Response:
    """A report as CSV under a ``name``; ``row`` makes the cells."""
    lines = _lines(request, columns, found, row)
    report = ReportStream(lines, name)
    if request.method != "HEAD":
        # An error before the first line is still answered as an error.
        report.body_iterator = _after(await anext(lines), lines)
    return report


def days_of(request: Request) -> tuple[datetime.date, datetime.date]:
    """The first and the last day of a report; raises ``bad_message``."""
    from_day, to_day = _day(request, "from"), _day(request, "to")
    if to_day < from_day:
        raise BadMessageError("to: must not be before from")
    return from_day, to_day


def _day(request: Request, name: str) -> datetime.date:
    value = request.query_params.get(name, "")
    with contextlib.suppress(ValueError):
        if _DAY.fullmatch(value):
            return datetime.date.fromisoformat(value)
    raise BadMessageError(f"{name}: expected a day such as 2026-11-30")


async def _lines(
    request: Request,
    columns: Sequence[str],
    found: Callable[[], AbstractAsyncContextManager[AsyncIterator[list[Row]]]],
    row: Callable[[Row], Iterable[object]],
) -> AsyncGenerator[bytes, None]:
    """The table, a batch of lines at a time, its header first."""
    state = request.app.state
    if state.reports >= server_limits.REPORTS_AT_ONCE_MAX:
        raise Problem(503, "unavailable", "too many reports are being read; come back later")
    state.reports += 1
    try:
        async with found() as batches:
            yield _encoded([columns])
            async for batch in batches:
                yield _encoded(row(one) for one in batch)
    finally:
        state.reports -= 1


async def _after(first: bytes, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in lines:
        yield part


def _encoded(rows: Iterable[Iterable[object]]) -> bytes:
    """Encodes lines as CSV, with RFC 4180's line ends."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def _row(minute: UsageReportRow) -> list[object]:
    names = (
        minute.org_id,
        minute.user_id,
        minute.account_id,
        minute.session_id,
        minute.kind,
        minute.counterpart_id,
    )
    return [
        *map(harmless, names),
        minute.minute,
        minute.started_at,
        minute.day,
        minute.month,
        minute.seconds,
        "true" if minute.counts else "false",
        format_credits(minute.charged_micros),
        minute.free_ms,
    ]


def harmless(name: str | None) -> str:
    """A name that no spreadsheet takes for a formula; empty for None."""
    if name is None:
        return ""
    return f"'{name}" if name.startswith(_FORMULA) else name


ROUTES = [Route("/v1/ops/reports/usage.csv", usage_report)]
