"""The report of usage: a streamed table of minutes, for operators only."""

import asyncio
import csv
import io
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from starlette.types import Message, Scope

from server import limits as server_limits
from server.api import reports
from server.hosting.app import create_app
from storage import limits as storage_limits
from storage.postgres.usage import Usage
from tests.fixtures.server import API_KEY, StartServer, TestServer
from tests.server.api import ask, assert_problem
from tests.storage.examples import at, minute

PATH = "/v1/ops/reports/usage.csv"
NOVEMBER = f"{PATH}?from=2026-11-01&to=2026-11-30"
COLUMNS = [
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
]


async def report(server: TestServer, path: str = NOVEMBER, method: str = "GET") -> httpx.Response:
    return await ask(server, method, path, server.token("olga", scope="ops"))


async def table(server: TestServer, path: str = NOVEMBER) -> list[list[str]]:
    response = await report(server, path)
    assert response.status_code == 200, response.text
    rows = list(csv.reader(io.StringIO(response.text, newline=""), strict=True))
    assert rows[0] == COLUMNS
    return rows[1:]


async def write(server: TestServer, *minutes: Any) -> None:
    await server.process.records.write(minutes)


async def test_an_empty_report_has_its_head(server: TestServer) -> None:
    response = await report(server)
    assert response.content == (",".join(COLUMNS) + "\r\n").encode()
    assert response.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    name = 'attachment; filename="usage-2026-11-01-2026-11-30.csv"'
    assert response.headers["content-disposition"] == name
    assert response.headers["cache-control"] == "no-store"


async def test_a_minute_is_a_line(server: TestServer) -> None:
    begun_at = at("UTC", 2026, 11, 10, 12)
    await write(
        server,
        minute(0, started_at=begun_at, credits_micros=1_250_000, free_ms=500, seconds=59),
        minute(
            0, started_at=begun_at, tenant="user:bob", user_id="bob", session_id="s2", counts=False,
            counterpart_id=None, credits_micros=0, kind="chat",
        ),
    )  # fmt: skip
    assert await table(server) == [
        ["acme", "ann", "ann", "s1", "recording", "advisor", "0", "2026-11-10T12:00:00.000Z",
         "2026-11-10", "2026-11-01", "59", "true", "1.25", "500"],
        ["", "bob", "bob", "s2", "chat", "", "0", "2026-11-10T12:00:00.000Z",
         "2026-11-10", "2026-11-01", "60", "false", "0", "0"],
    ]  # fmt: skip


async def test_both_days_are_included_and_lie_in_the_organisations_zone(
    server: TestServer,
) -> None:
    put = {"timezone": "Europe/Berlin"}
    assert (await ask(server, "PUT", "/v1/orgs/acme", json=put)).status_code == 200
    instants = [
        at("Europe/Berlin", 2026, 10, 31, 23, 59),
        at("Europe/Berlin", 2026, 11, 1, 0, 0),
        at("Europe/Berlin", 2026, 11, 30, 23, 59),
        at("Europe/Berlin", 2026, 12, 1, 0, 0),
    ]
    await write(
        server,
        *(
            minute(n, started_at=instant, zone="Europe/Berlin")
            for n, instant in enumerate(instants)
        ),
        *(
            minute(n, started_at=instant, tenant="user:bob", user_id="bob", session_id="s2")
            for n, instant in enumerate(instants)
        ),
    )
    rows = await table(server)
    assert [(row[0], row[6], row[8]) for row in rows] == [
        ("acme", "1", "2026-11-01"),
        ("acme", "2", "2026-11-30"),
        # Bob has no organisation, so his days are those of UTC.
        ("", "2", "2026-11-30"),
        ("", "3", "2026-11-30"),
    ]
    one_day = await table(server, f"{PATH}?from=2026-12-01&to=2026-12-01&org=acme")
    assert [row[6] for row in one_day] == ["3"]


async def test_a_report_may_be_of_one_organisation(server: TestServer) -> None:
    await write(
        server,
        minute(0),
        minute(0, tenant="org:other", session_id="s2"),
        minute(0, tenant="user:acme", user_id="acme", session_id="s3"),
    )
    assert len(await table(server)) == 3
    assert [row[3] for row in await table(server, f"{NOVEMBER}&org=acme")] == ["s1"]
    assert await table(server, f"{NOVEMBER}&org=nobody") == []


async def test_no_cell_is_a_formula(server: TestServer) -> None:
    await write(
        server,
        minute(0, user_id="-1", account_id="@here", session_id="a-b@c", counterpart_id="-x"),
    )
    (row,) = await table(server)
    assert (row[1], row[2], row[3], row[5]) == ("'-1", "'@here", "a-b@c", "'-x")


async def test_a_long_report_comes_in_batches_and_in_order(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_limits, "REPORT_BATCH_ROWS", 7)
    await write(server, *(minute(number) for number in reversed(range(30))))
    assert [row[6] for row in await table(server)] == [str(number) for number in range(30)]
    assert server.process.records._pool.get_idle_size() > 0


async def test_a_head_request_reads_nothing(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Usage, "report")
    response = await report(server, method="HEAD")
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    "query",
    [
        "",
        "from=2026-11-01",
        "to=2026-11-01",
        "from=2026-11-02&to=2026-11-01",
        "from=2026-11-31&to=2026-12-01",
        "from=20261101&to=20261130",
        "from=2026-W45-1&to=2026-11-30",
        "from=2026-11-01&to=2026-11-30T00:00",
        "from=2026-11-01&to=2026-11-30&org=a b",
    ],
)
async def test_days_are_days(server: TestServer, query: str) -> None:
    assert_problem(await report(server, f"{PATH}?{query}"), 400, "bad_message")


async def test_any_day_of_the_calendar_will_do(server: TestServer) -> None:
    await write(server, minute(0))
    assert len(await table(server, f"{PATH}?from=0001-01-01&to=9999-12-31")) == 1


async def test_reports_are_for_operators(server: TestServer) -> None:
    assert_problem(await ask(server, "GET", NOVEMBER, None), 401, "unauthenticated")
    for bearer in (API_KEY, server.token(), server.token("ann", org="acme", scope="read")):
        assert_problem(await ask(server, "GET", NOVEMBER, bearer), 403, "forbidden")


# --- When something goes wrong -------------------------------------------------------


async def test_only_so_many_reports_are_read_at_a_time(server: TestServer) -> None:
    app = create_app(server.process)
    headers = {"Authorization": f"Bearer {server.token('olga', scope='ops')}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test", headers=headers
    ) as client:
        app.state.reports = server_limits.REPORTS_AT_ONCE_MAX
        response = assert_problem(await client.get(NOVEMBER), 503, "unavailable")
        assert "reports" in response["detail"]
        app.state.reports = 0
        assert (await client.get(NOVEMBER)).status_code == 200
        assert app.state.reports == 0


async def test_without_postgres_a_report_is_unavailable(start_server: StartServer) -> None:
    server = await start_server()
    await server.process.records.close()
    assert_problem(await report(server), 503, "unavailable")


class Lines:
    """A stand-in for a table that is read and then closed."""

    def __init__(self) -> None:
        self.closed = False

    async def read(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b"a,b\r\n"
            await asyncio.Event().wait()
        finally:
            self.closed = True


SCOPE: Scope = {"type": "http", "method": "GET", "asgi": {"version": "3.0", "spec_version": "2.3"}}


async def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_limits, "REPORT_STALLED_S", 0)
    lines = Lines()

    async def wait_for_ever(*_: Message) -> Any:
        await asyncio.Event().wait()
        raise AssertionError

    reading = lines.read()
    await anext(reading)
    with pytest.raises(TimeoutError):
        await reports.ReportStream(reading, "x.csv")(SCOPE, wait_for_ever, wait_for_ever)
    assert lines.closed


async def test_a_client_that_has_gone_frees_its_cursor() -> None:
    lines, sent = Lines(), asyncio.Event()
    messages = []

    async def receive() -> Message:
        await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.append(message["type"])
        if len(messages) == 2:
            sent.set()

    await reports.ReportStream(lines.read(), "x.csv")(SCOPE, receive, send)
    assert messages == ["http.response.start", "http.response.body"]
    assert lines.closed


async def test_a_truncated_report_is_detectable(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(server, minute(0))
    monkeypatch.setattr(reports, "_row", lambda _: 1 / 0)
    with pytest.raises(httpx.RemoteProtocolError):
        await report(server)
