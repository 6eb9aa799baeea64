"""The report of calls: both clocks as a table, for operators only."""

import csv
import io

import msgspec

from storage.postgres.call_clocks import CallClocks
from tests.fixtures.server import TestServer
from tests.server.api import ask
from tests.storage.test_call_clocks import KNOWN, MADE

PATH = "/v1/ops/reports/calls.csv?from=2026-11-30&to=2026-11-30"


async def test_a_call_is_a_line(server: TestServer) -> None:
    clocks = CallClocks.over(server.process.records)
    await clocks.put_duration(msgspec.structs.replace(KNOWN, call_id="=1", corrections=(MADE,)))
    operator = server.token("olga", scope="ops")
    response = await ask(server, "GET", PATH, operator)
    assert response.status_code == 200, response.text
    (line,) = csv.DictReader(io.StringIO(response.text, newline=""), strict=True)
    assert line == {
        "day": "2026-11-30",
        "org_id": "acme",
        "user_id": "ann",
        "account_id": "school",
        "provider": "fake",
        "call_id": "'=1",
        "call_session": "run",
        "session_id": "call:fake:run:ann",
        "started_at": "2026-11-30T12:00:00.000Z",
        "elapsed_ms": "80000",
        "facts_ms": "90000",
        "provider_ms": "89000",
        "difference_ms": "9000",
        "reason": "longer",
        "corrected_credits": "0.000005",
        "corrected_minutes": "1",
        "uncollected_ms": "1000",
        "uncollected_credits": "0.000002",
    }
    empty = await ask(server, "GET", PATH + "&org=other", operator)
    assert len(empty.text.splitlines()) == 1
    refused = await ask(server, "GET", PATH, server.token("ann"))
    assert refused.status_code == 403
    backwards = PATH.replace("to=2026-11-30", "to=2026-11-29")
    assert (await ask(server, "GET", backwards, operator)).status_code == 400
