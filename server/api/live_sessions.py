"""Live sessions of all tenants, the processes, and the summary, for operators."""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol import limits
from protocol.wire.fields import InstantAt, describe
from protocol.wire.filters import BadFilterError, RowFilter, parse_filter
from server.access.principals import READERS
from server.api.reports import harmless, streamed
from server.http.openapi import CURSOR, LIMIT, Operation, described, query_parameter
from server.http.paging import cursor_of, cursor_values, foreign_cursor, page_rows
from server.http.problems import Problem
from server.http.requests import process_of
from server.http.responses import answer, json_response
from server.ops import limits as ops_limits
from server.ops.feed import Feed
from server.ops.live_answers import LiveSessionRow, SummarySample, live_session_row
from server.ops.row_orders import DEFAULT_SORT, SORT_FIELDS, OrderKey, RowSort, parse_sort
from storage import limits as storage_limits

_PLACE = msgspec.json.Decoder(OrderKey)
QUERY = query_parameter(
    "q",
    "A filter: `user:ann kind:call,chat -state:paused age:>10m credits:<5`. Every word must match. "
    "The fields are `session`, `user`, `org`, `account`, `kind`, `state`, `limit`, `node`, `age`, "
    "`credits`, `tag` and `meta.NAME`; commas mean or, `-` means not, quotes keep spaces.",
    {"type": "string", "maxLength": limits.FILTER_CHARACTERS_MAX},
)
SORT = query_parameter(
    "sort",
    "The field to sort by, with `-` for the greatest first.",
    {
        "type": "string",
        "enum": [sign + field for field in SORT_FIELDS for sign in ("", "-")],
        "default": DEFAULT_SORT,
    },
)
COLUMNS = tuple(LiveSessionRow.__struct_fields__)


class LiveSessionPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of live sessions.

    All pages of a list have the figures of one instant.
    """

    items: list[LiveSessionRow]
    total: Annotated[int, describe("All that match, at this moment.")]
    next_cursor: Annotated[
        str | None, describe("Asks for the page after this one; null: this is the last.")
    ]
    server_time_at: InstantAt


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of all processes, now and in the last hour."""

    now: Annotated[SummarySample | None, describe("The last second; null: there is none yet.")]
    history: Annotated[list[SummarySample], describe("The seconds of the last hour, newest last.")]
    server_time_at: InstantAt


class ProcessRow(msgspec.Struct, frozen=True, kw_only=True):
    """A process."""

    node: Annotated[str, describe("Its name; it changes with each start.")]
    alive_at: Annotated[int, describe("Its last proof of life, in epoch ms.")]
    silent_ms: Annotated[
        int, describe(f"How long ago that was; a process is dead after {limits.NODE_SILENT_MS}.")
    ]
    figures: Annotated[
        SummarySample | None, describe("Its newest figures; null: it has sent none.")
    ]


class ProcessList(msgspec.Struct, frozen=True, kw_only=True):
    """All processes, by name."""

    items: list[ProcessRow]
    server_time_at: InstantAt


def feed_of(request: Request) -> Feed:
    """The feed of the process that serves the request."""
    feed: Feed = request.app.state.feed
    return feed


def bad_filter(error: BadFilterError) -> Problem:
    """The problem document of a filter that cannot be read."""
    detail = f"q: {error.message}"
    return Problem(400, "bad_filter", detail, token=error.token, at=error.at)


def _wanted(request: Request) -> tuple[RowFilter, RowSort]:
    """The filter and the sort of a request; raises ``bad_filter`` and ``bad_message``."""
    try:
        wanted = parse_filter(request.query_params.get("q", ""))
    except BadFilterError as error:
        raise bad_filter(error) from None
    return wanted, parse_sort(request.query_params.get("sort", DEFAULT_SORT))


def _place_of(request: Request, sort: RowSort) -> tuple[int, OrderKey] | None:
    """The list's instant and the last page's end; None: the first page."""
    values = cursor_values(request, (int, str, str))
    if values is None:
        return None
    at, sorted_by, encoded = values
    try:
        place = _PLACE.decode(encoded)
    except msgspec.MsgspecError:
        raise foreign_cursor() from None
    if sorted_by != sort.text or not sort.has_place(place):
        raise foreign_cursor()
    return at, place


@described(
    Operation(
        tag="operators",
        roles=READERS,
        parameters=(QUERY, SORT, CURSOR, LIMIT),
        answers={200: (LiveSessionPage,)},
        errors={400: ("bad_filter",)},
    )
)
async def list_live(request: Request) -> Response:
    """Live sessions of all tenants that match a filter.

    All pages of a list have the figures of the instant of its first page, and its order. Sessions
    that end meanwhile are missing on later pages. A process that does not answer within two
    seconds is left out.
    """
    wanted, sort = _wanted(request)
    count, process, feed = page_rows(request), process_of(request), feed_of(request)
    begun = _place_of(request, sort)
    at = process.clock.now() if begun is None else begun[0]
    order = await feed.rows(wanted, sort, at)
    places = order.first(count + 1) if begun is None else order.after(begun[1], count + 1)
    page, rows = places[:count], feed.table.rows
    last = msgspec.json.encode(page[-1]).decode() if page else ""
    return answer(
        LiveSessionPage(
            items=[live_session_row(rows[key], at) for _, _, key in page if key in rows],
            total=len(order),
            next_cursor=cursor_of(at, sort.text, last) if len(places) > count else None,
            server_time_at=process.clock.now(),
        )
    )


@described(
    Operation(
        tag="operators",
        roles=READERS,
        parameters=(QUERY, SORT),
        answers={200: "text/csv"},
        errors={400: ("bad_filter",)},
    )
)
async def live_csv(request: Request) -> Response:
    """Live sessions that match a filter, as streamed CSV (RFC 4180).

    The columns are the fields of `/v1/ops/sessions`; instants are RFC 3339 in UTC, `metadata` is
    JSON. The figures are those of one instant, which is in the file's name. A cell that a
    spreadsheet would take for a formula has an apostrophe in front.
    """
    wanted, sort = _wanted(request)
    at = process_of(request).clock.now()
    feed = feed_of(request)

    @contextlib.asynccontextmanager
    async def batches() -> AsyncIterator[AsyncIterator[list[LiveSessionRow]]]:
        yield _batches(feed, wanted, sort, at)

    stamp = datetime.datetime.fromtimestamp(at / 1000, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return await streamed(request, f"sessions-{stamp}.csv", COLUMNS, batches, _cells)


async def _batches(
    feed: Feed, wanted: RowFilter, sort: RowSort, at: int
) -> AsyncIterator[list[LiveSessionRow]]:
    order, offset = await feed.rows(wanted, sort, at), 0
    while keys := order.keys(offset, ops_limits.ORDERED_PER_TURN):
        rows = feed.table.rows
        yield [live_session_row(rows[key], at) for key in keys if key in rows]
        offset += len(keys)
        await asyncio.sleep(0)


def _cells(row: LiveSessionRow) -> list[object]:
    cells: list[object] = []
    for name in COLUMNS:
        value = getattr(row, name)
        if name in ("started_at", "as_of_at"):
            at = datetime.datetime.fromtimestamp(value / 1000, datetime.UTC)
            cells.append(at.isoformat(timespec="milliseconds").replace("+00:00", "Z"))
        elif name == "metadata":
            cells.append("" if value is None else msgspec.json.encode(value).decode())
        elif name == "nodes":
            cells.append(" ".join(value))
        elif value is None or isinstance(value, int) or name.startswith("credits"):
            cells.append("" if value is None else value)
        else:
            cells.append(harmless(value))
    return cells


@described(Operation(tag="operators", roles=READERS, answers={200: (Summary,)}))
async def read_summary(request: Request) -> Response:
    """The figures of all processes: now, and for an hour back."""
    store, now_ms = feed_of(request).store, process_of(request).clock.now()
    newest = (await store.samples(1))[1:-1] or b"null"
    # The texts of Redis go on as they are: reading 3,600 samples would delay other users.
    history = await store.samples(storage_limits.SAMPLES_KEPT)
    body = b'{"now":%b,"history":%b,"server_time_at":%d}' % (newest, history, now_ms)
    return json_response(body)


@described(Operation(tag="operators", roles=READERS, answers={200: (ProcessList,)}))
async def list_nodes(request: Request) -> Response:
    """The processes, with their figures.

    A dead process is listed until another one has swept it.
    """
    process = process_of(request)
    figures = await feed_of(request).store.figures()
    now_ms = process.clock.now()
    return answer(
        ProcessList(
            items=[
                ProcessRow(
                    node=node,
                    alive_at=alive_at,
                    silent_ms=max(0, now_ms - alive_at),
                    figures=_figures(figures.get(node)),
                )
                for node, alive_at in sorted(process.membership.nodes.items())
            ],
            server_time_at=now_ms,
        )
    )


def _figures(found: dict[str, Any] | None) -> SummarySample | None:
    return None if found is None else msgspec.convert({"nodes": 1, **found}, SummarySample)


ROUTES = [
    Route("/v1/ops/sessions", list_live),
    Route("/v1/ops/sessions.csv", live_csv),
    Route("/v1/ops/summary", read_summary),
    Route("/v1/ops/nodes", list_nodes),
]
