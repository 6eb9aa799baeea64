"""The report of calls: both clocks of each session, as a table."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire.money import format_credits
from server.access.principals import READERS, tenant_of
from server.api.reports import DAYS_AND_ORG, days_of, harmless, streamed
from server.http.openapi import Operation, described
from server.http.requests import process_of, query_id
from storage.postgres.call_clocks import CallClocks, CallReportRow

COLUMNS = (
    "day",
    "org_id",
    "user_id",
    "account_id",
    "provider",
    "call_id",
    "call_session",
    "session_id",
    "started_at",
    "elapsed_ms",
    "facts_ms",
    "provider_ms",
    "difference_ms",
    "reason",
    "corrected_credits",
    "corrected_minutes",
    "uncollected_ms",
    "uncollected_credits",
)


@described(
    Operation(tag="operations", roles=READERS, parameters=DAYS_AND_ORG, answers={200: "text/csv"})
)
async def call_report(request: Request) -> Response:
    """Both clocks of every call between two days, as streamed CSV.

    A line (RFC 4180) is one participant's session of one ended run. Days are those of each
    organisation's calendar. The columns: `day`, `org_id`, `user_id`, `account_id`, `provider`,
    `call_id`, `call_session`, `session_id`, `started_at` (RFC 3339, UTC); `elapsed_ms` (our
    clock), `facts_ms` (by the instants of the provider's events), `provider_ms` (the provider's own
    figure, empty without one), `difference_ms` (the provider's less ours), `reason` (empty without
    a difference: `tolerance`, `longer`, `shorter`, `limit`, `operator`, `cap`, `kind`,
    `not_started`); `corrected_credits` and `corrected_minutes` (signed), `uncollected_ms` and
    `uncollected_credits` (what neither balance nor limits covered when it became known).
    """
    from_day, to_day = days_of(request)
    org_id = query_id(request, "org")
    tenant = None if org_id is None else tenant_of(org_id, "")
    clocks = CallClocks.over(process_of(request).records)
    return await streamed(
        request,
        f"calls-{from_day}-{to_day}.csv",
        COLUMNS,
        lambda: clocks.report(tenant, from_day, to_day),
        _row,
    )


def _row(call: CallReportRow) -> list[object]:
    theirs_ms = call.facts_ms if call.provider_ms is None else call.provider_ms
    names = (
        call.org_id, call.user_id, call.account_id, call.provider, call.call_id,
        call.call_session, call.session_id,
    )  # fmt: skip
    return [
        call.day,
        *map(harmless, names),
        call.started_at,
        call.elapsed_ms,
        call.facts_ms,
        "" if call.provider_ms is None else call.provider_ms,
        theirs_ms - call.elapsed_ms,
        call.reason,
        format_credits(call.corrected_micros),
        call.corrected_minutes,
        call.uncollected_ms,
        format_credits(call.uncollected_micros),
    ]


ROUTES = [Route("/v1/ops/reports/calls.csv", call_report)]
